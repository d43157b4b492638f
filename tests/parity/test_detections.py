"""Detections beside captured ones: order counts, but not between detections of one score."""

from __future__ import annotations

import pytest
import torch

from converter.parity.capture import Detections
from converter.parity.detections import compare_detections

BOXES = torch.tensor([[0.0, 0.0, 9.0, 9.0], [20.0, 0.0, 29.0, 9.0], [40.0, 0.0, 49.0, 9.0]])


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ([0.9, 0.5, 0.5], None),
        ([0.9, 0.6, 0.5], "other labels than captured"),
    ],
)
def test_what_ties_may_be_in_any_order(scores: list[float], why: str | None) -> None:
    captured = Detections(BOXES, torch.tensor(scores).double(), torch.tensor([1, 2, 3]))
    order = [0, 2, 1]
    # as far off as another summation is
    found = Detections(BOXES[order], captured.scores - torch.tensor([0, 1e-16, 2e-16]), captured.labels[order])
    result = compare_detections(captured, found, "float64")
    assert (result.passed, result.why("float64") if not result.passed else None) == (why is None, why)


def test_what_ties_has_to_be_the_same() -> None:
    scores = torch.tensor([0.9, 0.5, 0.5]).double()
    captured = Detections(BOXES, scores, torch.tensor([1, 2, 3]))
    moved = Detections(BOXES + torch.tensor([[0.0], [0.0], [0.01]]), scores, captured.labels)
    assert (
        compare_detections(captured, moved, "float64").why("float64")
        == "a box is off by 1.0e-02 pixels, at most 1.0e-03"
    )
    other = Detections(BOXES, scores, torch.tensor([1, 2, 4]))
    assert compare_detections(captured, other, "float64").why("float64") == "other labels than captured"


def test_noise_does_not_pair_what_ties_with_another_box() -> None:
    """Of one label and one score, and with one corner: which is first by their numbers, noise decides."""
    boxes = torch.tensor([[10.0, 0.0, 19.0, 9.0], [10.0, 20.0, 19.0, 29.0]]).double()
    captured = Detections(boxes, torch.tensor([0.5, 0.5]).double(), torch.tensor([1, 1]))
    noise = torch.tensor([[1e-12], [-1e-12]]).double()
    for order in ([0, 1], [1, 0]):
        result = compare_detections(captured, captured._replace(boxes=(boxes + noise)[order]), "float64")
        assert result.passed, result.why("float64")


def test_a_box_that_ties_and_is_nowhere_is_told() -> None:
    captured = Detections(BOXES, torch.tensor([0.9, 0.5, 0.5]).double(), torch.tensor([1, 2, 2]))
    found = captured._replace(boxes=BOXES[[0, 2, 1]] + torch.tensor([[0.0], [0.0], [100.0]]))
    result = compare_detections(captured, found, "float64")
    assert (result.passed, [box.corners[0] for box in result.missed]) == (False, [20.0])
    assert [box.corners[0] for box in result.extra] == [120.0]
    spoiled = captured._replace(boxes=torch.full_like(BOXES, torch.nan))
    assert compare_detections(captured, spoiled, "float64").passed is False
