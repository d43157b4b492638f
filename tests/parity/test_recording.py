"""Comparing with a recording: silent for the same model, and never silent for another one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from make_recording import record
from safetensors.torch import save_file
from small_glip import small_glip
from small_recording import small_capture, small_recording, write_recording
from torch import Tensor
from torch.nn import functional as F

from converter.errors import ModelError
from converter.model import GLIP
from converter.parity.recording import Recording, compare, load_recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return small_recording(tmp_path_factory.mktemp("recording"))


def test_the_same_model_has_no_problems(recording: Recording) -> None:
    comparison = compare(small_glip(), recording)
    assert comparison.problems == []
    assert comparison.worst.error < 1e-13
    assert {stage.limit for stage in comparison.stages} == {1e-10}
    assert len(comparison.stages) == len(recording.stages)
    assert all(d.expected == d.found > 0 and d.labels_agree and d.boxes == 0 for d in comparison.detections)


def test_a_model_without_fusion_has_no_problems(tmp_path: Path) -> None:
    assert compare(small_glip(fusion=False), small_recording(tmp_path, fusion=False)).problems == []


def test_float32_is_held_to_four_times_the_recorded_error(recording: Recording) -> None:
    comparison = compare(small_glip(torch.float32), recording)
    assert comparison.problems == []
    large = next(stage for stage in comparison.stages if stage.name == "rpn.head.dot_product_logits.0")
    assert large.limit == pytest.approx(4 * large.float32_error)
    assert large.error == pytest.approx(large.float32_error, rel=0.5)


def test_a_few_numbers_are_held_to_the_error_of_all_levels(recording: Recording) -> None:
    comparison = compare(small_glip(torch.float32), recording)
    levels = [stage for stage in comparison.stages if stage.name.startswith("rpn.head.centerness.")]
    mean = math.sqrt(sum(stage.float32_error**2 for stage in levels) / 5)
    assert levels[4].limit == pytest.approx(4 * max(mean, levels[4].float32_error))
    assert levels[0].limit == pytest.approx(4 * levels[0].float32_error)


def test_formats_without_a_tolerance_are_measured_only(recording: Recording) -> None:
    comparison = compare(small_glip().to(torch.bfloat16), recording)
    assert comparison.problems == []
    assert comparison.worst.error > 1e-3


def scale_one_weight(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.head.blocks[1].dynamic_conv.finer.conv.weight[3, 2, 1, 0] *= 1 + 1e-6


def swap_two_biases(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    layer = model.text_encoder.layers[1].mlp.fc2
    layer.bias[[0, 1]] = layer.bias[[1, 0]]


def transpose_a_projection(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    projection = model.backbone.stages[1].blocks[0].attention.projection
    projection.weight.copy_(projection.weight.T.clone())


def swap_query_and_key(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    qkv = model.head.blocks[0].text_layer.attention.qkv
    q, k, v = qkv.weight.chunk(3)
    qkv.weight.copy_(torch.cat([k, q, v]))


def flip_a_sign(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.head.box_scale[4] *= -1


def change_an_epsilon(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.backbone.stages[0].blocks[0].norm1.eps = 1e-6


def change_berts_epsilon(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.text_encoder.layers[0].mlp.norm.eps = 1e-5


def change_a_group_norms_epsilon(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.head.blocks[0].dynamic_conv.same.norm.eps = 1e-6


def approximate_gelu(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    gelu = F.gelu
    patch.setattr(F, "gelu", lambda x: gelu(x, approximate="tanh"))


def drop_the_relu_of_p7(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("converter.model.fpn.F", SimpleNamespace(interpolate=F.interpolate, relu=lambda x: x))


def resize_by_cell_areas(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    resize = F.interpolate

    def other(x: Tensor, align_corners: bool | None = None, **arguments: object) -> Tensor:
        return resize(x, align_corners=align_corners and False, **arguments)

    patch.setattr(F, "interpolate", other)


def leave_a_weight_unloaded(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.head.log_scale.fill_(math.nan)


MUTATIONS: list[Callable[[GLIP, pytest.MonkeyPatch], None]] = [
    scale_one_weight,
    swap_two_biases,
    transpose_a_projection,
    swap_query_and_key,
    flip_a_sign,
    change_an_epsilon,
    change_berts_epsilon,
    change_a_group_norms_epsilon,
    approximate_gelu,
    drop_the_relu_of_p7,
    resize_by_cell_areas,
    leave_a_weight_unloaded,
]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_every_mutation_is_seen(
    recording: Recording, mutate: Callable[[GLIP, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_glip()
    with torch.no_grad():
        mutate(model, monkeypatch)
    assert compare(model, recording).problems


def test_the_first_stage_that_is_off_is_named(recording: Recording) -> None:
    model = small_glip()
    model.backbone.stages[2].blocks[1].norm2.eps = 1e-6
    off = {stage.name for stage in compare(model, recording).stages if stage.error > 1e-10}
    assert "backbone.body.layers.2.blocks.1" in off
    assert not off & {"backbone.body.layers.2.blocks.0", "backbone.body.1", "language_backbone.hidden"}


def test_other_detections_are_a_problem(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.model.detection.NMS_THRESHOLD", 0.3)
    problems = compare(small_glip(), recording).problems
    assert problems
    assert all("detections, recorded were" in problem for problem in problems)


def test_a_model_that_lacks_a_stage_is_refused(recording: Recording) -> None:
    with pytest.raises(ModelError, match=r"pairs 19 of its stages with nothing.*'rpn\.head\.dyhead_tower\.0\.lang'"):
        compare(small_glip(fusion=False), recording)


def test_a_stage_of_another_shape_is_refused(recording: Recording) -> None:
    with pytest.raises(
        ModelError, match=r"'backbone\.body\.0' is \(2, 16, 19, 26\) in this model, recorded was \(2, 8, 19, 26\)"
    ):
        compare(small_glip(embed_dim=16), recording)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="no 'recording'"):
        load_recording(path)


def test_a_recording_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "small.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match="cut off"):
        load_recording(path)


def test_recording_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_recording(tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_recording_keeps_no_more_of_a_stage_than_its_probes() -> None:
    capture = small_capture(small_glip())
    facts = {"name": "", "model": "", "official_config": "", "dtype": "", "torch": "", "transformers": ""}
    facts |= {"captions": [], "image_sizes_hw": [], "positive_map_label_to_token": {}}
    tensors, metadata = record(capture, facts, dict.fromkeys(capture, 0.0))
    kept = {name for name in tensors if name.startswith(("input.", "detections."))}
    assert all(torch.equal(tensors[name], capture[name]) for name in kept)
    assert max(tensors[name].numel() for name in tensors.keys() - kept) == 320
    stage = json.loads(metadata["recording"])["stages"]["backbone.0"]
    assert stage["shape"] == list(capture["backbone.0"].shape)
    assert stage["norm"] == float(capture["backbone.0"].norm())
