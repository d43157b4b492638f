"""Detections beside captured ones: by rank where they must be the same, otherwise matched by overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from converter.display import beside, counted
from converter.parity.capture import Detections
from converter.parity.gates import gates


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
    if same_number:
        expected, found = (_settled(detections, expected.scores) for detections in (expected, found))
    return DetectionResult(
        expected=len(expected.labels),
        found=len(found.labels),
        same_order=same_number and torch.equal(expected.labels, found.labels),
        pixels=_largest(expected.boxes - found.boxes) if same_number else math.nan,
        scores=_largest(expected.scores - found.scores) if same_number else math.nan,
        matched=len(pairs),
        missed=_boxes(expected, {first for first, _ in pairs}),
        extra=_boxes(found, {second for _, second in pairs}),
        limit=limit,
        score_limit=gates()["detections"]["scores"],
    )


def _settled(detections: Detections, scores: Tensor) -> Detections:
    """What ties in the captured `scores`, as phrases of nothing but padding do, by label and corners: no rule says
    which comes first."""
    ranks = torch.unique_consecutive(scores, return_inverse=True)[1].tolist()
    keys = list(zip(ranks, detections.labels.tolist(), detections.boxes.tolist(), strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Detections(*(value[order] for value in detections))


def _match(first: Detections, second: Detections) -> list[tuple[int, int]]:
    """Pairs of equal label, best overlap first, each detection in one pair at most."""
    iou = _overlap(first.boxes, second.boxes) * (first.labels[:, None] == second.labels[None])
    pairs: list[tuple[int, int]] = []
    while iou.numel() and iou.max() >= gates()["detections"]["iou"]:
        row, column = divmod(int(iou.argmax()), iou.shape[1])
        pairs.append((row, column))
        iou[row], iou[:, column] = 0, 0
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
