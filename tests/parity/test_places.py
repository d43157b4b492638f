"""Where marked elements are, in words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from converter.parity.places import places


def marked(shape: tuple[int, ...], *slices: tuple[slice | int, ...]) -> Tensor:
    found = torch.zeros(shape, dtype=torch.bool)
    for part in slices:
        found[part] = True
    return found


EVERY = slice(None)
CASES = [
    (marked((4, 3)), []),
    (marked((4, 3), (EVERY,)), ["all of it"]),
    (marked((6,), (slice(2, 5),)), ["elements 2-4"]),
    (marked((6, 3), (slice(1, 3),), (5,)), ["rows 1-2, 5"]),
    (marked((6, 3), (EVERY, 1)), ["column 1"]),
    (marked((6, 3), (2, 1)), ["1 single element, the first at [2, 1]"]),
    (marked((6, 3), (0,), (4, 1)), ["row 0", "1 single element, the first at [4, 1]"]),
    (marked((8, 4, 3, 3), (EVERY, EVERY, 0)), ["kernel row 0"]),
    # all but the middle of a kernel, where the map is one cell
    (
        marked((8, 4, 3, 3), (EVERY, EVERY, 0), (EVERY, EVERY, 2), (EVERY, EVERY, EVERY, 0), (EVERY, EVERY, EVERY, 2)),
        ["kernel rows 0, 2", "kernel columns 0, 2"],
    ),
    (marked((8, 4, 3, 3), (EVERY, 3), (5,)), ["input channel 3", "output channel 5"]),
    (marked((40, 2), (slice(0, 40, 2),)), ["20 of 40 rows: 0, 2, 4, 6, 8, 10, ..."]),
    (marked((), (...,)), ["all of it"]),
    (marked((2, 2, 2), (1,)), ["index 0 of an axis 1"]),
    (marked((0, 3)), []),
]


@pytest.mark.parametrize(("elements", "words"), CASES)
def test_whole_slices_are_named_the_largest_first(elements: Tensor, words: list[str]) -> None:
    assert list(places(elements)) == words
