"""A model in memory is saved as a folder that everything takes, with a record of what it was loaded from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from converter.errors import ConverterWarning, DestinationError, ModelError
from converter.glip import GLIP, GLIPConfig
from converter.glip.family import FAMILY
from converter.writing.ledger import saved_from
from tests.support.small_folder import SETTINGS, small_folder
from tests.support.small_glip import random_inputs, small_config, small_glip


def record(folder: Path, name: str = "conversion.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def trained(model: GLIP, *names: str) -> GLIP:
    """The model, with other numbers in these parameters."""
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).mul_(1.5)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_glip(dtype)
    assert model.save_pretrained(tmp_path / "saved") == tmp_path / "saved"
    loaded = GLIP.from_pretrained(tmp_path / "saved", dtype=dtype)
    assert loaded.config == model.config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert sorted(contents(tmp_path / "saved")) == ["config.json", "conversion.json", "model.safetensors"]


def test_a_loaded_model_computes_what_the_saved_one_did(tmp_path: Path) -> None:
    model = small_glip(torch.float32)
    model.save_pretrained(tmp_path / "saved")
    with torch.inference_mode():
        expected, found = (m(*random_inputs()) for m in (model, GLIP.from_pretrained(tmp_path / "saved")))
    assert all(torch.equal(a, b) for x, y in zip(expected, found, strict=True) for a, b in zip(x, y, strict=True))


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    model = small_glip(torch.float32)
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name, max_shard_size=60_000)
    assert len(contents(tmp_path / "a")) > 4
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert GLIP.from_pretrained(tmp_path / "a").config == model.config


def test_the_size_of_a_shard_is_a_number_or_a_text(tmp_path: Path) -> None:
    model = small_glip(torch.float32)
    model.save_pretrained(tmp_path / "number", max_shard_size=60_000)
    model.save_pretrained(tmp_path / "text", max_shard_size="60kB")
    assert contents(tmp_path / "number") == contents(tmp_path / "text")
    for size in ("60 pages", 0, -1, 1.5):
        with pytest.raises(DestinationError, match=r"max_shard_size: .* is not a size; write 500MB, 2GB or 1GiB"):
            model.save_pretrained(tmp_path / "refused", max_shard_size=size)  # type: ignore[arg-type]


def test_values_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    model = small_glip(torch.float32)
    values = {name: value.numpy() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"values: head\.bias is ndarray, expected a tensor"):
        model.save_pretrained(tmp_path / "saved", state_dict=values)  # type: ignore[arg-type]


def test_memory_in_another_order_is_saved_in_its_own(tmp_path: Path) -> None:
    model = small_glip(torch.float32)
    model.save_pretrained(tmp_path / "a")
    model.to(memory_format=torch.channels_last).save_pretrained(tmp_path / "b")  # type: ignore[call-overload]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_values_may_be_given_in_place_of_the_model_s(tmp_path: Path) -> None:
    model = small_glip(torch.float32)
    averages = {name: value * 0.5 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved", state_dict=averages)
    assert torch.equal(GLIP.from_pretrained(tmp_path / "saved").head.bias, averages["head.bias"])


def test_preprocessing_and_vocabulary_are_kept(tmp_path: Path) -> None:
    source = small_folder(tmp_path / "small")
    GLIP.from_pretrained(source).save_pretrained(tmp_path / "saved")
    assert record(tmp_path / "saved", "config.json")["preprocessing"] == json.loads(json.dumps(SETTINGS.to_dict()))
    kept = contents(source).keys() & {*FAMILY.files}
    assert kept
    assert all(contents(tmp_path / "saved")[name] == contents(source)[name] for name in kept)
    GLIP.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "saved", force=True)  # they are ours


def test_the_record_says_what_it_was_loaded_from_and_how_much_differs(tmp_path: Path) -> None:
    small_glip(torch.float32).save_pretrained(tmp_path / "first")
    model = trained(GLIP.from_pretrained(tmp_path / "first"), "head.bias", "head.box_scale")
    model.save_pretrained(tmp_path / "second")
    first, second = record(tmp_path / "first"), record(tmp_path / "second")
    count = len(first["tensors"])
    assert first["saved"] == [{"from": None, "sha256": None, "differing": count, "tensors": count}]
    assert second["saved"] == [
        *first["saved"],
        {"from": "first", "sha256": first["sha256"], "differing": 2, "tensors": count},
    ]
    assert (second["unknown_table"], second["lossless"]) == (True, True)
    assert saved_from(second) == (
        f"saved by save_pretrained, not converted: 2 of {count} tensors differ from 'first' "
        f"(sha256 {first['sha256'][:12]}...); before that: a model that from_pretrained did not load"
    )


def test_a_model_that_was_not_changed_is_no_other(tmp_path: Path) -> None:
    small_glip(torch.float32).save_pretrained(tmp_path / "first")
    GLIP.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "first") == contents(tmp_path / "again")


def test_it_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_glip(torch.float32)
    model.save_pretrained(tmp_path / "saved")
    before = contents(tmp_path / "saved")

    def broken(*arguments: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("converter.writing.transfer.write_at", broken)
    with pytest.raises(DestinationError, match="No space left"):
        trained(model, "head.bias").save_pretrained(tmp_path / "saved", force=True)
    with pytest.raises(DestinationError, match="No space left"):
        model.save_pretrained(tmp_path / "another")
    assert contents(tmp_path / "saved") == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_what_is_there_is_replaced_on_request_and_files_of_others_never(tmp_path: Path) -> None:
    model = small_glip(torch.float32)
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(DestinationError, match="saved exists; force=True replaces"):
        model.save_pretrained(tmp_path / "saved")
    trained(model, "head.bias").save_pretrained(tmp_path / "saved", force=True)
    assert torch.equal(GLIP.from_pretrained(tmp_path / "saved").head.bias, model.head.bias)
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    with pytest.raises(DestinationError, match=r"files that no conversion wrote \(notes\.txt\)"):
        model.save_pretrained(tmp_path / "saved", force=True)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_the_name_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DestinationError, match="a model is saved as a folder; choose a name without"):
        small_glip().save_pretrained(tmp_path / name)


def without_a_tensor(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != "head.bias"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without_a_tensor, r"missing: head\.bias \(1,\)"),
        (lambda s: {f"module.{n}": v for n, v in s.items()}, r"unexpected: module\.head\.bias"),
        (lambda s: s | {"head.box.lora_A.weight": s["head.bias"]}, r"unexpected: head\.box\.lora_A\.weight"),
        (lambda s: s | {"head.bias": torch.zeros(2)}, r"shape: head\.bias is \(2,\), expected \(1,\)"),
        (lambda s: s | {"head.bias": torch.zeros(1, dtype=torch.int8)}, r"dtype: head\.bias is int8"),
        (lambda s: s | {"head.bias": s["head.bias"].to("meta")}, r"values: head\.bias is on the meta device"),
    ],
)
def test_what_is_no_glip_is_refused_with_the_cure(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], problem: str
) -> None:
    model = small_glip(torch.float32)
    with pytest.raises(ModelError, match=r"not those of a GLIP of this configuration\. Merge adapters") as caught:
        model.save_pretrained(tmp_path / "saved", state_dict=change(dict(model.state_dict())))
    assert any(re.match(problem, line) for line in caught.value.problems)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_nan_are_saved_and_named(tmp_path: Path) -> None:
    model = small_glip(torch.float32)
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    with pytest.warns(ConverterWarning, match=r"saved, but not finite: head\.bias"):
        model.save_pretrained(tmp_path / "saved")


def test_a_released_architecture_keeps_its_name(tmp_path: Path) -> None:
    """Of other sizes it is `custom`."""
    from converter.mapping.spec import load_spec

    spec = load_spec("glip")
    assert spec.variant_of({**spec.variant("glip-l").config, "prompt_length": 7}).name == "glip-l"
    assert spec.variant_of(small_config().to_dict()).name == "custom"
    small_glip(torch.float32).save_pretrained(tmp_path / "saved")
    config = record(tmp_path / "saved", "config.json")
    assert (config["model"], config["variant"]) == ("glip", "custom")
    assert GLIPConfig.from_dict(config["config"]) == small_config()
