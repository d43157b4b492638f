"""A certificate: written for what passed, kept by a copy that is the same, and by no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.errors import CaptureError
from converter.glip import GLIP
from converter.parity.certificate import certify
from converter.parity.evidence import certificate_path
from converter.parity.mutate import mutation_score
from converter.parity.run import parity
from converter.parity.subject import Subject
from tests.support.certifying import read_weights, verify
from tests.support.saved_glip import ledger, save, saved_glip
from tests.support.small_capture import small_capture
from tests.support.small_folder import small_folder
from tests.support.small_glip import loading, small_glip, subject


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with their certificate beside them."""
    folder = tmp_path_factory.mktemp("certified")
    weights = saved_glip(folder)
    with small_capture(tmp_path_factory.mktemp("capture")) as capture:
        found = read_weights(weights)
        model = GLIP.from_pretrained(weights).double()
        certify(
            found,
            [capture],
            [parity(subject(model), capture)],
            mutation_score(subject(model), [capture], 20),
            subject(model),
        )
    return weights


@pytest.fixture
def copy(certified: Path, tmp_path: Path) -> Path:
    for path in (certified, certificate_path(certified)):
        shutil.copy(path, tmp_path)
    return tmp_path / certified.name


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite the weights with some of them edited; the config stays."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata)


def test_a_copy_passes(copy: Path) -> None:
    result = verify(copy, loading(copy))
    assert result.passed
    assert result.report is not None
    assert len(result.report.modes["propagated"]) == 68
    assert (result.report.dtype, result.report.gate.relative) == ("float64", 1e-10)


def test_a_copy_passes_in_float32(copy: Path) -> None:
    assert verify(copy, lambda: subject(GLIP.from_pretrained(copy))).passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_format_that_cannot_be_judged_is_not_passed(dtype: torch.dtype, copy: Path) -> None:
    assert verify(copy, lambda: subject(GLIP.from_pretrained(copy).to(dtype))).passed is None


def test_one_bit_flipped_in_one_tensor_fails(copy: Path) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors["fpn.p6.weight"].view(torch.int64)[0, 0, 0, 0] ^= 1

    change(copy, flip)
    result = verify(copy, loading(copy))
    assert (result.passed, result.changed, result.report) == (False, ("fpn.p6.weight",), None)


def test_a_tensor_missing_or_added_fails(copy: Path) -> None:
    change(copy, lambda tensors: tensors.update(more=tensors.pop("head.bias")))
    result = verify(copy, loading(copy))
    assert (result.passed, result.missing, result.added) == (False, ("head.bias",), ("more",))


def test_the_same_weights_in_a_model_that_computes_something_else_fail(copy: Path) -> None:
    def other() -> Subject:
        model = GLIP.from_pretrained(copy).double()
        model.fpn.p6.stride = (2, 2)
        model.backbone.norms[0].eps = 1e-6
        return subject(model)

    result = verify(copy, other)
    assert result.passed is False
    assert result.report is not None
    assert result.report.first is not None
    assert result.report.first.name == "backbone.body.1"


def test_nothing_is_certified_that_did_not_pass(tmp_path: Path) -> None:
    model = small_glip()
    with torch.no_grad():
        model.head.bias += 1
    weights = save(model, tmp_path / "wrong.safetensors")
    with small_capture(tmp_path) as capture, pytest.raises(CaptureError, match="not every comparison passed"):
        certify(read_weights(weights), [capture], [parity(subject(model), capture)], None, subject(model))
    with small_capture(tmp_path) as capture, pytest.raises(CaptureError):
        certify(read_weights(weights), [capture], [], None, subject(model))
    assert not certificate_path(weights).exists()


def test_weights_that_were_replaced_meanwhile_are_not_certified(copy: Path, tmp_path: Path) -> None:
    certificate_path(copy).unlink()
    before = read_weights(copy)
    model = GLIP.from_pretrained(copy).double()
    shutil.copy(copy, tmp_path / "other")
    (tmp_path / "other").replace(copy)  # the same bytes: who replaced them can replace them again
    (tmp_path / "capture").mkdir()
    with small_capture(tmp_path / "capture") as capture:
        with pytest.raises(CaptureError, match="changed since it was loaded"):
            certify(before, [capture], [parity(subject(model), capture)], None, subject(model))
        assert not certificate_path(copy).exists()
        certify(read_weights(copy), [capture], [parity(subject(model), capture)], None, subject(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named_before_anything_is_run(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    """In a row of a word that no caption uses: no comparison would notice."""
    name = "text_encoder.embeddings.word.weight"
    model = small_glip().to(dtype)
    with torch.no_grad():
        model.get_parameter(name)[0, -1] = value
    weights = save(model, tmp_path / "spoiled.safetensors")
    with pytest.raises(CaptureError, match=rf"NaN or infinite in 1 tensor: {name}\. "):
        read_weights(weights)


def test_a_configuration_that_was_changed_meanwhile_is_not_certified(copy: Path, tmp_path: Path) -> None:
    before = read_weights(copy)
    other = small_glip(anchor_sizes=[32, 64, 128, 256, 512])
    (tmp_path / "capture").mkdir()
    with small_capture(tmp_path / "capture") as capture:
        reports = [parity(subject(GLIP.from_pretrained(copy).double()), capture)]
        with pytest.raises(CaptureError, match="changed since it was loaded"):
            certify(before, [capture], reports, None, subject(other))


def test_a_tokenizer_that_was_changed_meanwhile_is_not_certified(copy: Path, tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "folder")
    before = read_weights(folder)
    (tmp_path / "capture").mkdir()
    with small_capture(tmp_path / "capture") as capture:
        model = subject(GLIP.from_pretrained(folder).double())
        reports = [parity(model, capture)]
        (folder / "vocab.txt").write_text("other")
        with pytest.raises(CaptureError, match="changed since it was loaded"):
            certify(before, [capture], reports, None, model)


def test_a_ledger_of_other_weights_is_not_certified(copy: Path, tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "folder")
    (folder / "conversion.json").write_text(json.dumps(ledger(copy) | {"sha256": "0" * 64}))
    with pytest.raises(CaptureError, match="was changed after it was written"):
        read_weights(folder)


def test_a_setting_that_nothing_reads_is_not_certified(copy: Path, tmp_path: Path) -> None:
    """Detection parameters, and of a single file the preprocessing: only a folder's is used."""
    folder = small_folder(tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    assert read_weights(folder).setup.settings["preprocessing"]["shorter_side"] == 96
    (folder / "config.json").write_text(json.dumps(config | {"detection": {"nms_threshold": 0.9}}))
    with pytest.raises(CaptureError, match=r"detection\.nms_threshold: the configuration states 0\.9, which nothing"):
        read_weights(folder)
    save_file(load_file(copy), copy, {"config": json.dumps(config)})
    with pytest.raises(CaptureError, match=r"longer_side: .* states 160, which nothing reads; 1333 is used\. Take"):
        read_weights(copy)


def test_a_certificate_that_would_not_be_one_is_not_written(copy: Path, tmp_path: Path) -> None:
    certificate_path(copy).unlink()
    (tmp_path / "capture").mkdir()
    model = subject(GLIP.from_pretrained(copy))
    with small_capture(tmp_path / "capture") as capture, pytest.raises(CaptureError, match="not compared in float64"):
        certify(read_weights(copy), [capture], [parity(model, capture)], None, model)
    assert not certificate_path(copy).exists()


def test_what_was_compared_with_what_is_written_down(certified: Path) -> None:
    content = json.loads(certificate_path(certified).read_text())
    assert (content["table"], content["unknown_table"]) == (None, True)  # these weights have no ledger
    (capture,) = content["captures"]
    assert (capture["name"], capture["table"]["name"]) == ("small", "glip-official")
    assert {len(part["sha256"]) for part in (content["weights"], capture, capture["table"])} == {64}
    assert [run["dtype"] for run in content["runs"]] == ["float64"]
    assert content["mutations"]["made"] == 20
    assert set(content["weights"]["tensors"]) == set(load_file(certified))


def test_without_a_ledger_the_weights_name_their_table(tmp_path: Path) -> None:
    """A custom one, which a folder's files keep although its conversion.json is gone."""
    folder = small_folder(tmp_path / "folder")
    tables = {"table": {"name": "mine", "sha256": "5e" * 32}}
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt", "tables": json.dumps(tables)})
    (tmp_path / "capture").mkdir()
    with small_capture(tmp_path / "capture") as capture:
        model = subject(GLIP.from_pretrained(folder).double())
        path = certify(read_weights(folder), [capture], [parity(model, capture)], None, model)
    content = json.loads(path.read_text())
    assert (content["table"], "unknown_table" in content) == (tables["table"], False)
    with pytest.raises(CaptureError, match="rests on custom table 'mine'"):
        verify(folder, loading(folder))
    content["table"] = None
    path.write_text(json.dumps(content))
    with pytest.raises(CaptureError, match="rests on custom table 'mine'"):
        verify(folder, loading(folder))


def test_a_folder_has_its_certificate_inside(certified: Path, tmp_path: Path) -> None:
    assert certificate_path(tmp_path) == tmp_path / "parity.json"
    assert certificate_path(certified) == certified.parent / "small.parity.json"


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no fingerprint": lambda c: c.pop("fingerprint"),
    "a fingerprint that is not base64": lambda c: c.update(fingerprint="*"),
    "a fingerprint of something else": lambda c: c.update(fingerprint="AAAA"),
    "no weights": lambda c: c.update(weights={}),
    "no tensors": lambda c: c["weights"].update(tensors={}),
    "a hash that is none": lambda c: c["weights"]["tensors"].update({"head.bias": "x"}),
    "another hash of all": lambda c: c["weights"].update(sha256="0" * 64),
    "no runs": lambda c: c.update(runs=[]),
    "a run that failed": lambda c: c["runs"][0].update(passed=False),
    "no capture": lambda c: c.update(captures=[]),
    "another format": lambda c: c.update(format=3),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_certificate_is_refused(damage: str, copy: Path) -> None:
    from converter.errors import ConverterError

    path = certificate_path(copy)
    content = json.loads(path.read_text())
    DAMAGE[damage](content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConverterError):
        verify(copy, loading(copy))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, "\x00"])
def test_what_is_no_certificate_is_refused(text: str, copy: Path) -> None:
    certificate_path(copy).write_text(text)
    with pytest.raises(CaptureError):
        verify(copy, loading(copy))


def test_weights_without_a_certificate_are_refused(tmp_path: Path) -> None:
    weights = saved_glip(tmp_path)
    with pytest.raises(CaptureError, match="there is no certificate"):
        verify(weights, loading(weights))
