"""A capture is whole and says what it is, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.errors import CaptureError, CheckpointError
from converter.glip.family import FAMILY
from converter.parity.capture import load_capture, write_capture
from tests.support.small_capture import FACTS, activations, small_capture, write
from tests.support.small_glip import small_glip


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CaptureError, match="is not a capture"):
        load_capture(path)


def test_a_capture_of_nothing_is_refused(tmp_path: Path) -> None:
    tensors = {
        name: value for name, value in activations(small_glip()).items() if name.startswith(("input.", "detections."))
    }
    write_capture(tmp_path / "nothing.safetensors", tensors, FACTS, compact=False)
    with pytest.raises(CaptureError, match="nothing to compare"):
        load_capture(tmp_path / "nothing.safetensors")


def test_a_capture_cut_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "small.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError):
        load_capture(path)


@pytest.mark.parametrize("change", [
    {"name": ""}, {"model": 3}, {"dtype": None}, {"image_sizes_hw": []}, {"image_sizes_hw": [[0, 1], [1, 1]]},
    {"positive_map_label_to_token": {}}, {"positive_map_label_to_token": {"x": [1]}},
    {"errors": {"float32": {"backbone.0": "small"}}}, {"errors": {"float99": {}}},
    {"compact": {"no.such": {"shape": [1], "norm": 1}}},
    {"compact": {"backbone.0": {"shape": [1000, 1000], "norm": 1}}}, {"errors": {"float32": {"backbone.0": -1}}},
    {"image_sizes_hw": [[75, 101]]}, {"table": "/tmp/other.json"}, {"table": "../glip.json"}, {"dtype": ""},
    {"dtype": "."}, {"errors": {"float32": {"backbone.0": 10**400}}},
    {"compact": {"backbone.0": {"shape": [1], "norm": 10**400}}},
])  # fmt: skip
def test_facts_that_are_not_as_described_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path / "small.safetensors")
    facts = {**FACTS, **change}
    save_file(load_file(path), path, {"capture": json.dumps(facts)})
    with pytest.raises(CaptureError), load_capture(path) as capture:
        FAMILY.inputs(capture)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"name": NaN}'])
def test_facts_that_are_no_json_are_refused(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "small.safetensors")
    save_file(load_file(path), path, {"capture": text})
    with pytest.raises(CaptureError):
        load_capture(path)


@pytest.mark.parametrize("factor", [0.0, 0.1, 10.0, 1e200])
def test_a_compact_capture_that_lies_about_norms_is_refused(factor: float, tmp_path: Path) -> None:
    path = write(tmp_path / "small.safetensors", compact=True)
    with load_capture(path) as capture:
        facts = json.loads(json.dumps(capture.facts))
    facts["compact"]["backbone.body.layers.1.blocks.0"]["norm"] *= factor
    save_file(load_file(path), path, {"capture": json.dumps(facts)})
    with pytest.raises(CaptureError, match="not a probe of its shape and norm"):
        load_capture(path)


def test_capturing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for compact in (False, True):
        first, second = (write(tmp_path / name, compact=compact).read_bytes() for name in ("a", "b"))
        assert first == second


def test_a_compact_capture_keeps_no_more_of_an_activation_than_its_probes(tmp_path: Path) -> None:
    whole = activations(small_glip())
    with small_capture(tmp_path, compact=True) as compact:
        assert max(compact.read(name).numel() for name in compact.activations) == 320
        assert compact.activations["backbone.0"].shape == whole["backbone.0"].shape
        assert compact.activations["backbone.0"].norm == float(whole["backbone.0"].norm())
        assert torch.equal(compact.inputs["images"], whole["input.images"])
