"""Detections beside captured ones: by rank where they must be the same, otherwise matched by overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from converter.display import beside, counted
from converter.parity.capture import Detections
from converter.parity.gates import gates

_FAR = 1e30  # pixels: more than any two boxes are apart


@dataclass(frozen=True, slots=True)
class Box:
    """One detection: label, score, corners x1 y1 x2 y2 in pixels."""

    label: int
    score: float
    corners: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DetectionResult:
    """One image.

    Args:
        expected, found: how many.
        same_order: equal labels, rank by rank; what ties may be in any order.
        pixels, scores: largest differences between detections of the same rank, NaN where the numbers differ.
        matched: pairs of the same label that overlap; missed, extra: what is in no pair.
        limit, score_limit: what `pixels` and `scores` may be; `limit` is None in dtypes that cannot be judged.
    """

    expected: int
    found: int
    same_order: bool
    pixels: float
    scores: float
    matched: int
    missed: tuple[Box, ...]
    extra: tuple[Box, ...]
    limit: float | None
    score_limit: float

    @property
    def passed(self) -> bool | None:
        """The same detections in the same order, to within the limits; None where there is none."""
        if self.limit is None:
            return None
        return self.same_order and self.pixels <= self.limit and self.scores <= self.score_limit

    def why(self, dtype: str) -> str:
        """Why they have their verdict, for a model in `dtype`."""
        if self.limit is None:
            return f"not judged: {dtype} has no limit for detections; the raw outputs that they are made of are judged"
        if self.expected != self.found:
            return f"{counted(self.found, 'detection')}, captured were {self.expected}"
        if not self.same_order:
            return "other labels than captured"
        if not self.pixels <= self.limit:
            return beside("a box is off by {} pixels, at most {}", self.pixels, self.limit)
        return beside("a score is off by {}, at most {}", self.scores, self.score_limit)


def compare_detections(expected: Detections, found: Detections, dtype: str) -> DetectionResult:
    """`found` by a model in `dtype` beside what was captured."""
    found = Detections(*(value.cpu() for value in found))
    limit = gates()["detections"]["pixels"] if dtype == "float64" else None
    pairs = _match(expected, found)
    same_number = len(expected.labels) == len(found.labels)
    ranked = _ranked(found, expected) if same_number else found
    return DetectionResult(
        expected=len(expected.labels),
        found=len(found.labels),
        same_order=same_number and torch.equal(expected.labels, ranked.labels),
        pixels=_largest(expected.boxes - ranked.boxes) if same_number else math.nan,
        scores=_largest(expected.scores - ranked.scores) if same_number else math.nan,
        matched=len(pairs),
        missed=_boxes(expected, {first for first, _ in pairs}),
        extra=_boxes(found, {second for _, second in pairs}),
        limit=limit,
        score_limit=gates()["detections"]["scores"],
    )


def _ranked(found: Detections, expected: Detections) -> Detections:
    """What ties in the captured scores, as phrases of nothing but padding do, beside the nearest of the same label:
    no rule says which comes first."""
    order: list[int] = []
    for size in torch.unique_consecutive(expected.scores, return_counts=True)[1].tolist():
        tie = slice(len(order), len(order) + size)
        near = (expected.boxes[tie, None].double() - found.boxes[None, tie]).abs().amax(dim=-1)
        other = expected.labels[tie, None] != found.labels[None, tie]
        likeness = -near.nan_to_num(nan=_FAR, posinf=_FAR).clamp(max=_FAR) - 2 * _FAR * other
        order += [tie.start + column for _, column in sorted(_pairs(likeness, -4 * _FAR))]
    return Detections(*(value[order] for value in found))


def _match(first: Detections, second: Detections) -> list[tuple[int, int]]:
    """Pairs of equal label, best overlap first, each detection in one pair at most."""
    iou = _overlap(first.boxes, second.boxes) * (first.labels[:, None] == second.labels[None])
    return _pairs(iou, gates()["detections"]["iou"])


def _pairs(likeness: Tensor, least: float) -> list[tuple[int, int]]:
    """Of a matrix, which is used up: the largest number first, each row and column in one pair at most."""
    pairs: list[tuple[int, int]] = []
    while likeness.numel() and likeness.max() >= least:
        row, column = divmod(int(likeness.argmax()), likeness.shape[1])
        pairs.append((row, column))
        likeness[row], likeness[:, column] = -math.inf, -math.inf
    return pairs


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of corners (N, 4) and (M, 4), the last pixel included: (N, M)."""
    a, b = a.double()[:, None], b.double()[None]
    side = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + 1).clamp(min=0)
    shared = side.prod(dim=-1)
    area = [(boxes[..., 2:] - boxes[..., :2] + 1).prod(dim=-1) for boxes in (a, b)]
    return shared / (area[0] + area[1] - shared)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


def _boxes(detections: Detections, without: set[int]) -> tuple[Box, ...]:
    return tuple(
        Box(int(detections.labels[i]), float(detections.scores[i]), tuple(map(float, detections.boxes[i])))
        for i in range(len(detections.labels))
        if i not in without
    )
