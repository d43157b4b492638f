"""AP of one picture, computed in the plainest way, after the definition of COCO: to compare with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tests.support.predicting import Row

# as COCO's own code has them: equal up to rounding would decide otherwise where a recall is just one of them
THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
POINTS = np.linspace(0, 1, 101).tolist()


def picture_ap(annotations: list[dict[str, Any]], rows: list[Row], partial: Iterable[int] = ()) -> float | None:
    """Mean over thresholds of IoU; None if there is nothing to find. `partial`: classes that are not exhaustive."""
    total = sum(not row["iscrowd"] for row in annotations)
    if not total:
        return None
    ranked = sorted(rows, key=lambda row: (-row[3], row[1]))  # stable
    return sum(_at(threshold, annotations, ranked, set(partial), total) for threshold in THRESHOLDS) / len(THRESHOLDS)


def _at(threshold: float, annotations: list[dict[str, Any]], ranked: list[Row], partial: set[int], total: int) -> float:
    free = [row for row in annotations if not row["iscrowd"]]
    hits: list[bool] = []
    for _, category, box, _ in ranked:
        near = [(iou(box, row["bbox"]), row) for row in free if row["category_id"] == category]
        near = [pair for pair in near if pair[0] >= min(threshold, 1 - 1e-10)]
        if near:
            highest = max(overlap for overlap, _ in near)
            taken = [row for overlap, row in near if overlap == highest][-1]
            free.remove(taken)
            hits.append(True)
        elif category not in partial and not _in_crowd(threshold, annotations, category, box):
            hits.append(False)
    found, curve = 0, []
    for count, hit in enumerate(hits, start=1):
        found += hit
        curve.append((found / total, found / count))
    return sum(max((p for r, p in curve if r >= point), default=0.0) for point in POINTS) / 101


def _in_crowd(threshold: float, annotations: list[dict[str, Any]], category: int, box: list[float]) -> bool:
    """Of a crowd, any part is right, and counts for nothing."""
    crowds = [row["bbox"] for row in annotations if row["iscrowd"] and row["category_id"] == category]
    return any(intersection(box, crowd) / max(box[2] * box[3], 1e-12) >= threshold for crowd in crowds)


def intersection(one: list[float], other: list[float]) -> float:
    """Pixels that two boxes share."""
    sides = [
        min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1)
    ]
    return max(0.0, sides[0]) * max(0.0, sides[1])


def iou(one: list[float], other: list[float]) -> float:
    """Intersection over union."""
    shared = intersection(one, other)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)
