"""Where the labels of boxes go in a picture, so that none covers another: geometry alone, in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Corners = tuple[float, float, float, float]  # x1 y1 x2 y2
_ROWS = 6  # how far from its box a label may go, in its own heights
_COLUMNS = 8  # places that are tried along a side of a box


def place_labels(
    boxes: Sequence[Corners], labels: Sequence[tuple[int, int]], picture: tuple[int, int]
) -> list[tuple[int, int] | None]:
    """The upper left corner of each label, for each box in order; None for one that has no room.

    boxes: corners; labels, picture: (width, height). Each label lies in the picture and overlaps no earlier one. It is
    at its box where that is possible, else near it; the first boxes choose first.
    """
    places: list[tuple[int, int] | None] = []
    taken = np.empty((0, 4))
    for box, label in zip(boxes, labels, strict=True):
        corners = np.array(list(_candidates(box, label, picture)), dtype=float)
        areas = np.hstack([corners, np.add(corners, label)])  # (candidates, 4)
        fits = ((areas[:, :2] >= 0) & (areas[:, 2:] <= picture)).all(axis=1)
        free = areas[fits][~_overlap(areas[fits], taken)]
        places.append((int(free[0, 0]), int(free[0, 1])) if len(free) else None)
        taken = np.vstack([taken, free[:1]])
    return places


def _candidates(box: Corners, label: tuple[int, int], picture: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Places for a label, best first: above its box, within it, below it, beside it; then farther away."""
    (x1, y1, x2, y2), (width, height) = (round(corner) for corner in box), label
    most = picture[0] - width
    left, right = min(max(x1, 0), most), min(max(x2 + 1 - width, 0), most)  # moved sideways into the picture
    above, below = y1 - height, y2 + 1
    yield from ((left, above), (left, y1), (left, below), (right, above), (right, y1), (right, below))
    yield from ((left, y2 + 1 - height), (right, y2 + 1 - height))
    yield from ((x2 + 1, y1), (x1 - width, y1), (x2 + 1, y2 + 1 - height), (x1 - width, y2 + 1 - height))
    step = max(1, (right - left) // _COLUMNS)
    along = range(left, right + 1, step) if right > left else (left,)
    for row in range(_ROWS):
        inside = (y1 + row * height, y2 + 1 - (row + 1) * height) if (row + 1) * height <= y2 + 1 - y1 else ()
        for y in (above - row * height, *inside, below + row * height):
            yield from ((x, y) for x in along)


def _overlap(corners: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(len(corners),): whether it shares area with any of those taken."""
    a, b = corners[:, None], taken[None]
    shared = np.minimum(a[..., 2:], b[..., 2:]) > np.maximum(a[..., :2], b[..., :2])
    return np.asarray(shared.all(axis=-1).any(axis=-1))
