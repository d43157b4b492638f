"""Loading: what a file has to be, and that nothing in a loaded model comes from anywhere else."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from converter.errors import ConverterWarning, ModelError, PlanError, TableError
from converter.glip import GLIP
from tests.support.small_glip import CONFIG, random_inputs, small_config, small_glip

DOCUMENT = {"model": "glip", "config": CONFIG}
METADATA = {"config": json.dumps(DOCUMENT)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(small_glip(torch.float32).state_dict())


@pytest.fixture
def single(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    path = tmp_path / "glip.safetensors"
    save_file(state, path, metadata=METADATA)
    return path


def write_shards(folder: Path, state: dict[str, Tensor], count: int = 3) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(DOCUMENT))
    names = sorted(state)
    weight_map = {}
    for shard in range(count):
        file = f"model-{shard + 1:05d}-of-{count:05d}.safetensors"
        part = {name: state[name] for name in names[shard::count]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def same(left: GLIP, right: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.state_dict().items())


def test_a_single_file_loads_bit_for_bit(single: Path, state: dict[str, Tensor]) -> None:
    model = GLIP.from_pretrained(single)
    assert same(model, state)
    assert not model.training


def test_a_path_may_be_a_string(single: Path, state: dict[str, Tensor]) -> None:
    assert same(GLIP.from_pretrained(str(single)), state)


def test_a_folder_with_one_file_loads(tmp_path: Path, state: dict[str, Tensor]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DOCUMENT))
    save_file(state, tmp_path / "model.safetensors")
    assert same(GLIP.from_pretrained(tmp_path), state)


def test_shards_load_like_a_single_file(tmp_path: Path, state: dict[str, Tensor]) -> None:
    assert same(GLIP.from_pretrained(write_shards(tmp_path / "sharded", state)), state)


def test_a_loaded_model_computes_what_the_saved_one_did(single: Path) -> None:
    inputs = random_inputs()
    with torch.inference_mode():
        expected = small_glip(torch.float32)(*inputs)
        found = GLIP.from_pretrained(single)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(expected.token_logits, found.token_logits, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_formats_are_cast_to_float32(tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    path = tmp_path / "glip.safetensors"
    save_file({name: value.to(dtype) for name, value in state.items()}, path, metadata=METADATA)
    assert same(GLIP.from_pretrained(path), {name: value.to(dtype).float() for name, value in state.items()})


def test_all_differences_are_listed_at_once(tmp_path: Path, state: dict[str, Tensor]) -> None:
    changed = dict(state)
    changed["head.cls_logits.weight"] = torch.zeros(2)
    changed["head.bias"] = torch.zeros(2)
    changed["head.log_scale"] = torch.zeros(1, dtype=torch.int64)
    del changed["fpn.p6.bias"]
    path = tmp_path / "glip.safetensors"
    save_file(changed, path, metadata=METADATA)
    with pytest.raises(ModelError) as error:
        GLIP.from_pretrained(path)
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "- missing: fpn.p6.bias (32,)",
        "- unexpected: head.cls_logits.weight (2,)",
        "- shape: head.bias is (2,), expected (1,)",
        "- dtype: head.log_scale is int64, expected one of float16, bfloat16, float32, float64",
    ]


def test_a_parameter_left_out_of_the_reading_stays_nan(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converter.glip import weights

    fill = weights.fill
    monkeypatch.setattr(
        weights, "fill", lambda model, tensors, *how: fill(model, (t for t in tensors if t[0] != "fpn.p6.bias"), *how)
    )
    with pytest.warns(UserWarning, match=r"fpn\.p6\.bias\.$"):
        model = GLIP.from_pretrained(single)
    assert model.fpn.p6.bias.isnan().all()


def test_weights_that_are_nan_load_and_are_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "glip.safetensors"
    save_file({**state, "head.bias": torch.full((1,), math.nan)}, path, metadata=METADATA)
    with pytest.warns(ConverterWarning, match=r"NaN in the file: head\.bias\.") as said:
        model = GLIP.from_pretrained(path)
    assert said[0].filename == __file__
    assert model.head.bias.isnan().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "its record 'config' is invalid: Expecting property name"),
        ('{"model":"glip","model":"glip"}', "its record 'config' is invalid: 'model' is there twice"),
        ("[]", "is not a JSON object"),
        ("[" * 2_000_000, "more than 300000 commas"),
        ("[" * 200_000, "nested too deeply"),
        ('{"model": "dino", "config": {}}', "holds a model of 'dino', not a GLIP"),
        ('{"model": "glip"}', "'config' is missing or of another kind"),
        ('{"model": "glip", "variant": "x", "config": {}}', "missing fields"),
    ],
)
def test_a_file_whose_record_is_damaged_is_refused(
    tmp_path: Path, state: dict[str, Tensor], config: str, message: str
) -> None:
    path = tmp_path / "glip.safetensors"
    save_file(state, path, metadata={"config": config})
    with pytest.raises(ModelError, match=message):
        GLIP.from_pretrained(path)


def test_other_families_that_are_installed_do_not_matter(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise TableError("a document of another family is damaged")

    monkeypatch.setattr("converter.mapping.folders.installed_families", broken)
    GLIP.from_pretrained(single)


def test_names_cannot_write_to_the_terminal(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "glip.safetensors"
    save_file({**state, "a\x1b[2Jb": torch.zeros(1)}, path, metadata=METADATA)
    with pytest.raises(ModelError, match="does not fit the model") as caught:
        GLIP.from_pretrained(path)
    assert str(caught.value).replace("\n", "").isprintable()
    assert caught.value.problems == (r"unexpected: 'a\x1b[2Jb' (1,)",)


def test_without_a_record_it_must_be_a_known_model(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """These sizes are no variant's, and no record states them: one sentence says so, and what to do."""
    torch.save(state, tmp_path / "glip.pth")
    save_file(state, tmp_path / "glip.safetensors")
    folder = write_shards(tmp_path / "sharded", state)
    (folder / "config.json").unlink()
    for path in (tmp_path / "glip.pth", tmp_path / "glip.safetensors", folder):
        with pytest.raises(PlanError, match=r"^glip: the names are .* of the \d+ tensors that glip-t-a needs") as error:
            GLIP.from_pretrained(path)
        assert "Save the model with its save_pretrained" in str(error.value)
        assert error.value.problems == ()


def test_the_config_of_another_tool_is_no_damaged_record(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder = write_shards(tmp_path / "sharded", state)
    (folder / "config.json").write_text(json.dumps({"model_type": "swin", "embed_dim": 96}))
    with pytest.raises(PlanError, match="glip-t-a needs"):
        GLIP.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2**63), b"not a checkpoint"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """tests/checkpoint/test_safetensors.py tries what else a header can be."""
    path = tmp_path / "glip.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"glip\.safetensors: "):
        GLIP.from_pretrained(path)


def test_a_file_cut_off_anywhere_is_refused(single: Path) -> None:
    content = single.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 9):
        single.write_bytes(content[:size])
        with pytest.raises(ModelError, match=r"broke off\. Get it again"):
            GLIP.from_pretrained(single)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda content: content[:-1000], "truncated or was changed"), (lambda content: content + b"x", "was changed")],
    ids=["cut", "grown"],
)
def test_a_file_that_changes_while_it_is_read_is_an_error(
    single: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes], message: str
) -> None:
    from converter.glip import weights

    fill = weights.fill

    def change_and_fill(*args: Any) -> None:
        single.write_bytes(change(single.read_bytes()))
        fill(*args)

    monkeypatch.setattr(weights, "fill", change_and_fill)
    with pytest.raises(ModelError, match=message):
        GLIP.from_pretrained(single)


def test_a_path_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.safetensors: cannot be opened \(No such file"):
        GLIP.from_pretrained(tmp_path / "absent.safetensors")


def index_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_text())
    return document


def set_index(folder: Path, document: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def to_another_shard(folder: Path) -> None:
    document = index_of(folder)
    document["weight_map"]["head.bias"] = "model-00001-of-00003.safetensors"
    document["weight_map"]["fpn.p6.bias"] = "model-00001-of-00003.safetensors"
    set_index(folder, document)


def drop_from_index(folder: Path) -> None:
    document = index_of(folder)
    del document["weight_map"]["head.bias"]
    set_index(folder, document)


def lead_outside(folder: Path) -> None:
    document = index_of(folder)
    document["weight_map"]["head.bias"] = "../model-00001-of-00003.safetensors"
    set_index(folder, document)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (to_another_shard, r"lists tensor .* in shard .*, but it is in"),
        (drop_from_index, r"head\.bias.*and the index does not list it"),
        (lead_outside, "is not a plain file name"),
        (lambda folder: set_index(folder, {"weight_map": []}), "no `weight_map`"),
        (lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(), "lists .*, which is not there"),
        (lambda folder: (folder / "config.json").write_text("{"), "its record 'config' is invalid: Expecting"),
        (lambda folder: (folder / "config.json").write_text('{"model": "glip"}'), "'config' is missing or of another"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "with both"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "without"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(
    tmp_path: Path, state: dict[str, Tensor], spoil: Callable[[Path], object], message: str
) -> None:
    folder = write_shards(tmp_path / "sharded", state)
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        GLIP.from_pretrained(folder)


def test_a_folder_of_torch_files_is_no_conversion(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """A config.json that lies beside them is not theirs, so they must be a known model."""
    folder = write_shards(tmp_path / "sharded", state)
    (folder / "model.safetensors.index.json").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(PlanError, match=r"glip-t-a needs"):
        GLIP.from_pretrained(folder)


HUGE = {
    "layers of text": {"text_layers": 10**6},
    "blocks": {"head_blocks": 10**8},
    "layers of a stage": {"depths": [1, 2, 2, 10**9]},
    "vocabulary": {"vocab_size": 10**12},
    "vocabulary beyond any integer": {"vocab_size": 10**30},
    "positions": {"max_positions": 2**62},
    "prompt": {"prompt_length": 10**15},
    "window": {"window_size": 10**6},
    "width": {"embed_dim": 3 * 2**40},
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_config_of_any_size_is_refused_before_it_is_built(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    config = {**small_config().to_dict(), **HUGE[kind]}
    save_file(
        {name: value.contiguous() for name, value in small_glip().state_dict().items()},
        path,
        {"config": json.dumps({"model": "glip", "variant": "x", "config": config})},
    )
    with pytest.raises(ModelError):
        GLIP.from_pretrained(path)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"], ids=["long", "NUL"])
def test_a_path_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be opened"):
        GLIP.from_pretrained(tmp_path / name)


@pytest.mark.parametrize("folder", [False, True])
def test_a_fifo_is_refused_without_waiting(folder: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"not a file|is a folder without"):
        GLIP.from_pretrained(tmp_path if folder else tmp_path / "config.json")
