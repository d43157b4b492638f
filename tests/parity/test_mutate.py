"""Faults made on purpose: each known mistake is caught and found in the right block, and everything is undone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from converter.errors import CaptureError
from converter.glip.mistakes import MISTAKES, Mistake
from converter.parity import mutate
from converter.parity.capture import Capture, load_capture, write_capture
from converter.parity.coverage import coverage
from converter.parity.mutate import Score, mutation_score
from converter.parity.mutations import Mutation, choose, mutations
from converter.parity.run import Run, parity
from tests.support.small_capture import FACTS, activations, small_capture
from tests.support.small_glip import small_glip, subject

pytestmark = pytest.mark.usefixtures("one_thread")
VISIBLE = [mistake for mistake in MISTAKES if not mistake.invisible]


@pytest.fixture(scope="module")
def score(capture: Capture) -> Score:
    """Of all mutations of the small model."""
    model = subject(small_glip())
    return mutation_score(model, [capture], coverage=lambda: coverage(model, [capture]))


@pytest.mark.parametrize("mistake", [m for m in VISIBLE if not m.detections], ids=lambda mistake: mistake.name)
def test_a_mistake_is_caught_and_found_where_it_is(mistake: Mistake, capture: Capture) -> None:
    model = small_glip()
    with mistake.make(model):
        report = parity(subject(model), capture)
    assert report.passed is False
    assert report.first is not None
    assert report.culprits
    assert [culprit for culprit in report.culprits if not re.fullmatch(mistake.where, culprit)] == []


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.invisible], ids=lambda mistake: mistake.name)
def test_what_no_input_can_show_changes_not_one_bit(mistake: Mistake, capture: Capture) -> None:
    model = small_glip()
    with torch.no_grad():
        before = model(**capture.inputs)
        with mistake.make(model):
            after = model(**capture.inputs)
    assert all(torch.equal(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_undone(mistake: Mistake, capture: Capture) -> None:
    model = small_glip()
    with mistake.make(model):
        pass
    assert parity(subject(model), capture).passed


def test_the_sixteen_measured_mistakes_are_there() -> None:
    assert len(MISTAKES) >= 16
    assert sum(mistake.invisible is not None for mistake in MISTAKES) == 2


def test_nearly_every_mutation_is_noticed(score: Score) -> None:
    assert score.value >= 0.99
    assert len(score.outcomes) == score.possible
    assert all(outcome.reason for outcome in score.survivors)


def test_every_tensor_of_a_shape_that_another_has_is_exchanged(score: Score) -> None:
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, parameter in small_glip().named_parameters():
        shapes.setdefault(tuple(parameter.shape), []).append(name)
    ambiguous = {name for names in shapes.values() if len(names) > 1 for name in names}
    exchanged = {n for o in score.outcomes if o.mutation.kind == "swap" for n in o.mutation.targets}
    assert ambiguous == exchanged
    assert score.uncovered == ()


def test_a_part_says_which_tensors_it_did_not_exchange(capture: Capture) -> None:
    score = mutation_score(subject(small_glip()), [capture], 30)
    assert len(score.outcomes) == 30
    assert score.uncovered


def test_the_model_is_as_it_was(capture: Capture) -> None:
    model, gelu = small_glip(), F.gelu
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mutation_score(subject(model), [capture], 60)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert F.gelu is gelu
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_same_are_chosen_every_time_and_of_every_kind() -> None:
    every = mutations(subject(small_glip()))
    chosen = choose(every, 60)
    assert [m.name for m in chosen] == [m.name for m in choose(every, 60)]
    assert {m.kind for m in chosen} == {m.kind for m in every}


def of_tensor(model: Any, name: str) -> dict[str, torch.Tensor]:
    """By kind and place, what each mutation of one tensor makes of it."""
    made = {}
    for mutation in mutations(subject(model)):
        if mutation.targets == (name,) and mutation.kind != "swap sources":
            with mutation.make(model):
                made[mutation.kind + mutation.name.removeprefix(name)] = model.get_parameter(name).detach().clone()
    return made


def test_a_kernel_is_changed_in_every_way() -> None:
    model = small_glip()
    x = model.fpn.p7.weight.detach().clone()
    made = of_tensor(model, "fpn.p7.weight")
    expected = {"negate": -x, "drop": x * 0}
    for axis in range(4):
        half = x.shape[axis] // 2
        expected[f"roll, axis {axis}"] = torch.cat(
            [x.narrow(axis, x.shape[axis] - 1, 1), x.narrow(axis, 0, x.shape[axis] - 1)], axis
        )
        if x.shape[axis] > 3:
            expected[f"halves, axis {axis}"] = torch.cat([x.narrow(axis, half, half), x.narrow(axis, 0, half)], axis)
    for axis in (2, 3):
        expected[f"flip, axis {axis}"] = torch.stack([x.select(axis, 2), x.select(axis, 1), x.select(axis, 0)], axis)
        for index in range(3):
            kept = torch.ones(3).double()
            kept[index] = 0
            expected[f"zero slice, axis {axis}, {index}"] = x * kept.view(3, *[1] * (3 - axis))
    (element,) = (key for key in made if key.startswith("element"))
    changed = made.pop(element) - x
    assert changed.count_nonzero() == 1
    assert float(changed.sum()) == pytest.approx(float(x.square().mean().sqrt()))
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[key], expected[key]) for key in made)


def test_heads_and_query_key_value_are_exchanged() -> None:
    model = small_glip()
    name = "backbone.stages.1.blocks.0.attention.qkv"
    for field in ("weight", "bias"):
        q, k, v = model.get_parameter(f"{name}.{field}").detach().clone().chunk(3)
        made = of_tensor(model, f"{name}.{field}")
        assert torch.equal(made["q/k/v order: query <-> key"], torch.cat([k, q, v]))
        assert torch.equal(made["q/k/v order: key <-> value"], torch.cat([q, v, k]))
        if field == "weight":
            blocks = torch.cat([q, k, v]).chunk(6)  # two heads of each
            exchanged = made["exchange heads"].chunk(6)
            moved = [i for i in range(6) if not torch.equal(blocks[i], exchanged[i])]
            assert len(moved) == 2
            assert torch.equal(blocks[moved[0]], exchanged[moved[1]])
            assert torch.equal(blocks[moved[1]], exchanged[moved[0]])


def test_every_survivor_is_explained_but_for_mistakes_that_change_no_detection(score: Score) -> None:
    """An independent look at the captures finds why: nothing that they see was changed."""
    assert {outcome.mutation.name for outcome in score.failures} <= {"no threshold of scores"}
    reasons = {o.reason for o in score.survivors if o.mutation.kind not in ("mistake",)}
    assert any("no position reached it" in str(reason) for reason in reasons)


def test_a_survivor_that_coverage_sees_is_a_failure_of_the_capture(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if no activation were beyond its limit, whatever is changed."""
    model = subject(small_glip())
    seen = coverage(model, [capture])
    monkeypatch.setattr(mutate._Suite, "judge", lambda suite, mutation: (None, 0.0))
    score = mutation_score(model, [capture], 60, coverage=lambda: seen)
    assert len(score.failures) > 40
    assert all(
        "though they see some of what it changes" in str(o.reason) for o in score.failures if o.mutation.kind == "drop"
    )


@pytest.mark.parametrize("fusion", [True, False])
def test_rows_that_a_table_joins_are_exchanged(fusion: bool) -> None:
    joined = [m for m in mutations(subject(small_glip(fusion=fusion))) if m.kind == "swap sources"]
    layers = 2 + (2 if fusion else 0)
    assert len(joined) == layers * 2 * 2 + 4  # query-key and key-value, weight and bias; four pairs of five scales


def test_a_compact_capture_notices_as_much(tmp_path: Path) -> None:
    with small_capture(tmp_path, compact=True) as compact:
        model = subject(small_glip())
        score = mutation_score(model, [compact], 60, coverage=lambda: coverage(model, [compact]))
    assert {o.mutation.name for o in score.failures} <= {"no threshold of scores"}


def test_a_capture_that_sees_nothing_of_it_lets_mutations_survive(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score is able to be bad: a comparison of the image branch alone misses what is done to the text."""
    original = Run.of.__func__

    def image_only(cls: type[Run], *arguments: Any, **named: Any) -> Run:
        run = original(cls, *arguments, **named)
        return replace(run, taps=tuple(tap for tap in run.taps if tap.source.startswith("backbone.")))

    monkeypatch.setattr(Run, "of", classmethod(image_only))
    score = mutation_score(subject(small_glip()), [capture], 100)
    assert score.value < 0.7
    assert any("no activation is off" in (outcome.reason or "") for outcome in score.survivors)


def test_a_model_that_fails_already_has_no_score(capture: Capture) -> None:
    model = small_glip()
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(CaptureError, match="is off before anything was changed"):
        mutation_score(subject(model), [capture], 5)


def test_a_capture_of_other_detections_has_no_score(tmp_path: Path) -> None:
    tensors = activations(small_glip())
    tensors["detections.0.labels"] = 3 - tensors["detections.0.labels"]
    write_capture(tmp_path / "labels.safetensors", tensors, FACTS, compact=False)
    with load_capture(tmp_path / "labels.safetensors") as other, pytest.raises(CaptureError, match="its detections"):
        mutation_score(subject(small_glip()), [other], 5)


def test_a_mutation_that_changes_nothing_survives(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Mutation("negate", "nothing", next(m.make for m in MISTAKES if m.invisible))
    monkeypatch.setattr(mutate, "mutations", lambda model, table: [nothing])
    score = mutation_score(subject(small_glip()), [capture])
    assert (score.value, len(score.survivors), score.equivalent) == (0.0, 1, 0)
