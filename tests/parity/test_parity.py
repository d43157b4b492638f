"""Comparing with a capture: silent for the same model, and never silent for another one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from converter.errors import CaptureError
from converter.glip.family import ANCHORS, FAMILY
from converter.glip.model.config import Rules
from converter.parity.capture import Capture, load_capture, write_capture
from converter.parity.compare import Comparison
from converter.parity.gates import expected_error, find_gate
from converter.parity.record import inputs_of, record
from converter.parity.run import Report, parity
from tests.support.small_capture import FACTS, activations, small_capture
from tests.support.small_glip import small_glip, subject


def test_the_same_model_passes_in_both_modes(capture: Capture) -> None:
    report = parity(subject(small_glip()), capture, twice=True)
    assert (report.passed, report.problems, report.noise) == (True, [], 0.0)
    assert {mode: {r.name for r in results} for mode, results in report.modes.items()} == {
        mode: set(capture.activations) for mode in ("propagated", "injected")
    }
    assert {r.limit for results in report.modes.values() for r in results} == {1e-10}
    assert max(r.relative for r in report.modes["propagated"]) < 1e-13
    assert all(d.expected == d.found == d.matched > 0 and d.same_order and d.pixels == 0 for d in report.detections)


def test_a_model_without_fusion_passes(tmp_path: Path) -> None:
    with small_capture(tmp_path, fusion=False) as capture:
        assert parity(subject(small_glip(fusion=False)), capture).passed


def test_a_compact_capture_gives_the_same_verdict_without_injection(compact: Capture) -> None:
    report = parity(subject(small_glip()), compact)
    assert report.passed
    assert set(report.modes) == {"propagated"}
    assert "keeps no activation whole" in report.skipped["injected"]


def test_injection_alone_needs_a_full_capture(compact: Capture) -> None:
    with pytest.raises(CaptureError, match="nothing was compared"):
        parity(subject(small_glip()), compact, modes=["injected"])


def test_float32_is_held_to_four_times_the_captured_error(capture: Capture) -> None:
    report = parity(subject(small_glip(torch.float32)), capture)
    assert (report.passed, report.problems) == (True, [])
    large = next(r for r in report.modes["propagated"] if r.name == "rpn.head.dot_product_logits.0")
    assert large.limit == pytest.approx(4 * large.own)
    assert large.relative == pytest.approx(large.own, rel=0.5)


def test_a_few_numbers_are_held_to_the_error_of_all_levels(capture: Capture) -> None:
    report = parity(subject(small_glip(torch.float32)), capture, modes=["propagated"])
    levels = [r for r in report.modes["propagated"] if r.name.startswith("rpn.head.centerness.")]
    mean = math.sqrt(sum(r.own**2 for r in levels) / 5)
    assert levels[4].limit == pytest.approx(4 * max(mean, levels[4].own))
    assert levels[0].limit == pytest.approx(4 * levels[0].own)


def test_it_is_few_numbers_that_are_compared_not_that_were_captured(tmp_path: Path) -> None:
    """Logits of 64 tokens, of which the model computes 32: the certificate holds them to the limit of 64 numbers."""
    levels = {f"rpn.head.dot_product_logits.{i}": torch.ones(2, size, 64) for i, size in enumerate((1, 8))}
    errors = dict(zip(levels, (1e-7, 3e-7), strict=True))
    path = tmp_path / "long.safetensors"
    write_capture(path, levels, {**FACTS, "errors": {"float32": errors}}, compact=False)
    with load_capture(path) as capture:
        comparison = Comparison(capture, find_gate("cpu", "float32"), "float32", {64: 32})
        name = next(iter(levels))
        result = comparison.measure(name, "head", torch.ones(2, 1, 32), "propagated")
    assert result.shape == (2, 1, 32)
    assert result.limit == 4 * expected_error(name, result.shape, 1e-7, errors.items())
    assert result.limit > 4e-7


def test_a_format_that_was_not_captured_is_not_judged(capture: Capture) -> None:
    report = parity(subject(small_glip().to(torch.float16)), capture, modes=["propagated"])
    assert report.passed is None  # never a pass
    assert all("does not hold its own error in float16" in problem for problem in report.problems)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, capture: Capture) -> Iterator[Capture]:
    """A capture that knows the errors of blocks by themselves, too."""
    path = tmp_path_factory.mktemp("recorded") / "recorded.safetensors"
    tensors, facts = record(subject(small_glip()), inputs_of(capture), "recorded", ("float32", "bfloat16"))
    write_capture(path, tensors, facts, compact=False)
    with load_capture(path) as recorded:
        yield recorded


def test_sixteen_bits_are_judged_block_by_block(recorded: Capture) -> None:
    report = parity(subject(small_glip().to(torch.bfloat16)), recorded)
    assert {r.passed for r in report.modes["injected"]} == {True}
    # errors that add up come to half of an activation late in the head, where nothing can be told from them
    late = [r for r in report.modes["propagated"] if r.passed is None]
    assert late
    assert all(r.name.startswith("rpn.head.") for r in late)
    assert report.passed is None
    assert all("too much to judge by" in problem for problem in report.problems)


def test_a_mistake_is_seen_in_sixteen_bits(recorded: Capture) -> None:
    model = small_glip().to(torch.bfloat16)
    model.head.blocks[0].dynamic_conv.same.norm.eps = 0.3
    assert parity(subject(model), recorded, modes=["injected"]).culprits == ("head.blocks.0.dynamic_conv",)


def test_a_block_is_held_to_its_own_error_not_to_that_of_all_before_it(recorded: Capture) -> None:
    report = parity(subject(small_glip(torch.float32)), recorded)
    assert report.passed
    limits = {mode: {r.name: r.limit for r in results} for mode, results in report.modes.items()}
    last = "rpn.head.dyhead_tower.5.visual.0"
    assert limits["injected"][last] < limits["propagated"][last] / 3


def test_a_looser_gate_is_known_as_such(capture: Capture) -> None:
    def looser(gate: str) -> bool:
        return parity(subject(small_glip()), capture, modes=["propagated"], gate=gate).gate.looser

    assert (looser("1e-9"), looser("1e-11"), looser("5x")) == (True, False, True)


@pytest.mark.parametrize("gate", ["", "x", "nan", "-1", "0", "inf", "1e-9y"])
def test_a_gate_that_is_no_number_is_refused(gate: str, capture: Capture) -> None:
    with pytest.raises(CaptureError, match="a gate is a number"):
        parity(subject(small_glip()), capture, gate=gate)


def failed_in(report: Report, mode: str) -> set[str]:
    return {r.name for r in report.modes[mode] if r.passed is False}


def test_propagated_shows_where_models_part_and_injected_which_block_it_was(capture: Capture) -> None:
    model = small_glip()
    model.backbone.stages[2].blocks[0].norm2.eps = 1e-6
    report = parity(subject(model), capture)
    assert report.first is not None
    assert report.first.name == "backbone.body.layers.2.blocks.0"
    assert len(failed_in(report, "propagated")) > 20
    assert failed_in(report, "injected") == {"backbone.body.layers.2.blocks.0"}
    assert report.culprits == ("backbone.stages.2.blocks.0",)
    assert report.glue == ()


def test_a_fault_between_blocks_that_agree_is_called_that(capture: Capture) -> None:
    model = small_glip()
    model.backbone.norms[1].eps = 1e-3
    report = parity(subject(model), capture)
    assert report.culprits == report.glue == ("backbone",)


def test_two_faults_are_both_found_by_injection(capture: Capture) -> None:
    model = small_glip()
    model.text_encoder.layers[0].mlp.norm.eps = 1e-5
    model.head.blocks[1].dynamic_conv.same.norm.eps = 1e-3
    assert parity(subject(model), capture).culprits == ("text_encoder.layers.0", "head.blocks.1.dynamic_conv")


def test_nan_on_one_side_is_a_failure_whatever_the_gate(capture: Capture) -> None:
    model = small_glip()
    with torch.no_grad():
        model.head.centerness.bias.fill_(math.nan)
    report = parity(subject(model), capture, gate="1e10")
    assert report.passed is False
    assert any("NaN" in problem for problem in report.problems)


def test_other_detections_are_a_problem(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.glip.model.glip.RULES", Rules(nms_threshold=0.3))
    report = parity(subject(small_glip()), capture)
    assert report.passed is False
    assert all("detections, captured were" in problem for problem in report.problems)
    assert any(d.missed for d in report.detections)


@pytest.mark.parametrize("score", [math.nan, 0.5])
def test_other_scores_are_a_problem(score: float, tmp_path: Path) -> None:
    tensors = activations(small_glip())
    tensors["detections.0.scores"][0] = score
    write_capture(tmp_path / "scores.safetensors", tensors, FACTS, compact=False)
    with load_capture(tmp_path / "scores.safetensors") as capture:
        report = parity(subject(small_glip()), capture)
        assert report.passed is False
        assert any("a score is off" in problem for problem in report.problems)


@pytest.mark.parametrize("change", ["without", "one more"])
def test_anchors_must_be_those_of_the_model(change: str, tmp_path: Path) -> None:
    tensors = activations(small_glip())
    if change == "without":
        tensors = {name: value for name, value in tensors.items() if not name.startswith(ANCHORS)}
    else:
        tensors[f"{ANCHORS}7"] = torch.zeros(3, 4)
    write_capture(tmp_path / "anchors.safetensors", tensors, FACTS, compact=False)
    with load_capture(tmp_path / "anchors.safetensors") as capture, pytest.raises(CaptureError, match="anchor"):
        parity(subject(small_glip()), capture)


@pytest.mark.parametrize("change", [
    {"detections.0.boxes": torch.zeros(2, 0)}, {"detections.0.boxes": torch.zeros(0, 1, 4)},
    {"detections.0.scores": torch.zeros(0)}, {"detections.0.labels": torch.zeros(3)},
    {"input.input_ids": torch.ones(2).long(), "input.attention_mask": torch.ones(2).long()},
    {"input.input_ids": torch.ones(2, 0).long(), "input.attention_mask": torch.ones(2, 0).long()},
    {"input.images": torch.zeros(2, 3)},
], ids=str)  # fmt: skip
def test_inputs_and_detections_of_another_shape_are_refused(change: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    write_capture(path, {**activations(small_glip()), **change}, FACTS, compact=False)
    with pytest.raises(CaptureError, match="Capture again"), load_capture(path) as capture:
        FAMILY.inputs(capture)


def test_settings_of_torch_are_as_before(capture: Capture) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        parity(subject(small_glip()), capture, modes=["propagated"])
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_pictures_count_every_number_and_show_where(capture: Capture) -> None:
    model = small_glip()
    with torch.no_grad():
        model.fpn.lateral[0].bias[0] += 1
    report = parity(subject(model), capture, pictures=True)
    for result in report.modes["injected"]:
        assert sum(map(sum, result.histogram)) == math.prod(result.shape)
        assert max(map(max, result.heat)) == pytest.approx(result.max_abs)
    level = next(r for r in report.modes["injected"] if r.name == "backbone.body.layers.0.blocks.0")
    assert (len(level.heat), len(level.heat[0])) == (19, 26)


def test_a_model_that_lacks_a_stage_is_refused(capture: Capture) -> None:
    with pytest.raises(CaptureError, match=r"pairs 19 of its activations with nothing.*tower\.0\.lang"):
        parity(subject(small_glip(fusion=False)), capture)


def test_a_stage_of_another_shape_is_refused(capture: Capture, compact: Capture) -> None:
    for either in (capture, compact):
        with pytest.raises(
            CaptureError, match=r"'backbone\.body\.patch_embed' is \(2, 16, 19, 26\) in this model, captured was \(2, 8"
        ):
            parity(subject(small_glip(embed_dim=16)), either)


def test_a_capture_that_lacks_an_activation_is_refused(tmp_path: Path) -> None:
    tensors = activations(small_glip())
    del tensors["backbone.body.layers.1.blocks.0"]
    write_capture(tmp_path / "less.safetensors", tensors, FACTS, compact=False)
    with (
        load_capture(tmp_path / "less.safetensors") as capture,
        pytest.raises(CaptureError, match="lacks 1 activations that glip-official pairs"),
    ):
        parity(subject(small_glip()), capture)


def test_a_capture_that_is_not_in_float64_needs_a_gate(tmp_path: Path) -> None:
    single = activations(small_glip(torch.float32))
    write_capture(tmp_path / "single.safetensors", single, {**FACTS, "dtype": "float32"}, compact=False)
    with load_capture(tmp_path / "single.safetensors") as capture:
        with pytest.raises(CaptureError, match="made in float32"):
            parity(subject(small_glip()), capture)
        report = parity(subject(small_glip()), capture, gate="1e-3")
    assert (report.passed, report.gate.looser) == (True, True)


def test_padding_that_the_model_does_not_compute_is_left_out(tmp_path: Path) -> None:
    """Captions padded to 40 tokens, of which the model computes 32: the rest of the capture is cut off."""
    tensors = activations(small_glip())
    long = {}
    for name, value in tensors.items():
        for axis, length in enumerate(value.shape):
            if length == 13 and (
                ".lang" in name or "language" in name or "logits" in name or name.startswith("input.")
            ):
                zeros = list(value.shape)
                zeros[axis] = 40 - 13
                value = torch.cat([value, torch.zeros(zeros, dtype=value.dtype)], dim=axis)
        long[name] = value
    write_capture(tmp_path / "long.safetensors", long, FACTS, compact=False)
    with load_capture(tmp_path / "long.safetensors") as capture:
        report = parity(subject(small_glip()), capture, modes=["propagated"])
    off = failed_in(report, "propagated")
    # captured were zeros for tokens 13 to 31, which the model computes; nothing else may be off
    assert {name for name in off if ".visual" in name or "backbone.body.layers" in name} == set()
    assert "language_backbone.hidden" in off
