"""The best of what is found in a picture, over all captions that it was asked about."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from converter.errors import ModelError


def limits(threshold: object, max_detections: object) -> tuple[float, int]:
    """Both as numbers, of numpy, too. ModelError."""
    if not isinstance(threshold, SupportsFloat) or not 0 <= float(threshold) <= 1:  # refuses NaN, too
        raise ModelError(f"threshold: {threshold!r} is not a score. Give a number from 0 to 1.")
    most = 0 if isinstance(max_detections, bool) or not isinstance(max_detections, SupportsIndex) else max_detections
    if operator.index(most) < 1:
        raise ModelError(f"max_detections: found {max_detections!r}, expected an integer of at least 1.")
    return float(threshold), operator.index(most)


def best(parts: Sequence[Sequence[Tensor]], threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4), scores (N,) and labels (N,) of one picture, in the CPU's memory, the highest score first.

    parts: such boxes, scores and labels for each caption. Of all the best `most` above the threshold, ties kept.
    """
    boxes, scores, labels = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > threshold]
    if len(order) > most:
        order = order[scores[order] >= scores[order[most - 1]]]
    return boxes[order], scores[order], labels[order]
