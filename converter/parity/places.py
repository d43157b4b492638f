"""Where in a tensor some of its elements are, in words: `kernel rows 0, 2`, `rows 5000-30521`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from converter.display import counted

_AXES = {1: ("element",), 2: ("row", "column"), 4: ("output channel", "input channel", "kernel row", "kernel column")}
_RANGES = 6  # listed at most


def places(marked: Tensor) -> Iterator[str]:
    """The marked elements of a bool tensor of any shape: whole slices, the largest first, then what is left.

    A slice is whole if it is marked but for what was named before.
    """
    axes = _AXES.get(marked.dim(), tuple(f"index {axis} of an axis" for axis in range(marked.dim())))
    if marked.numel() and marked.all():
        yield "all of it"
        return
    left = marked
    kept = [torch.arange(length) for length in marked.shape]  # what was not named yet
    while left.numel():
        whole = [_whole(left, axis) for axis in range(left.dim())]
        named = [int(found.sum()) * (left.numel() // len(found)) for found in whole]
        if not any(named):
            break
        axis = named.index(max(named))
        yield _named(axes[axis], kept[axis][whole[axis]].tolist(), marked.shape[axis])
        stay = (~whole[axis]).nonzero().squeeze(1)
        left, kept[axis] = left.index_select(axis, stay), kept[axis][stay]
    if left.any():
        first = [int(kept[axis][index]) for axis, index in enumerate(left.nonzero()[0].tolist())]
        yield f"{counted(int(left.sum()), 'single element')}, the first at {first}"


def _whole(marked: Tensor, axis: int) -> Tensor:
    """(length of the axis,) bool: the slices that are marked as a whole."""
    others = [other for other in range(marked.dim()) if other != axis]
    return marked.all(dim=others) if others else marked


def _named(axis: str, indices: Sequence[int], length: int) -> str:
    """`rows 0, 5-7`; of many ranges the first ones, with the number."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    text = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges[:_RANGES])
    if len(ranges) > _RANGES:
        return f"{len(indices)} of {length} {axis}s: {text}, ..."
    return f"{axis}{'s' if len(indices) > 1 else ''} {text}"
