"""Buffers that a checkpoint carries although they follow from the config.

They are left out, but not blindly: a checkpoint whose buffer differs was made by a model that computes something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from converter.checkpoint.arrays import np
from converter.errors import TableError
from converter.mapping.ops import Array

LARGEST_BUFFER = 1 << 24  # elements; Swin-L's mask for pictures of 384 pixels has 1.3 million


def numbers(count: int) -> Array:
    """(1, count) int64: 0 to count - 1, BERT's `position_ids`."""
    return np.arange(count)[None]


def relative_position_index(window_size: int) -> Array:
    """(w*w, w*w) int64: which row of Swin's bias table a pair of tokens of one window takes (Swin, section 3.2)."""
    y, x = np.divmod(np.arange(window_size * window_size), window_size)
    rows = y[:, None] - y + window_size - 1
    return rows * (2 * window_size - 1) + x[:, None] - x + window_size - 1


def shifted_window_mask(side: int, window_size: int) -> Array:
    """(windows, w*w, w*w) float32: -100 between tokens of a shifted window that are not neighbours in a square map
    of `side` tokens, else 0 (Swin, section 3.2). `side` is rounded up to whole windows."""
    windows = -(-side // window_size)
    return _mask(windows, windows, window_size)


def is_shifted_window_mask(values: Array, window_size: int) -> bool:
    """Whether `values` is such a mask of any map, square or not."""
    four = _mask(2, 2, window_size)  # of a window amid a map, at its right side, at its bottom and in its corner
    if values.ndim != 3 or values.shape[1:] != four.shape[1:] or not len(values):
        return False
    equal = np.stack([(values == mask).all((1, 2)) for mask in four])  # (4, windows)
    found = np.where(equal.any(0), equal.argmax(0), len(four))
    columns = int(np.argmax(found % 2 == 1)) + 1  # up to the first window at the right side
    row, column = np.divmod(np.arange(len(found)), columns)
    expected = 2 * (row == row[-1]) + (column == columns - 1)
    return len(found) % columns == 0 and np.array_equal(found, expected)


def _mask(rows: int, columns: int, window_size: int) -> Array:
    """The mask of a map of so many windows."""
    # the shift rolls the first rows and columns behind the last ones; a window that holds both must not mix them
    down, right = (np.arange(n * window_size) >= n * window_size - window_size // 2 for n in (rows, columns))
    regions = (2 * down[:, None] + right).reshape(rows, window_size, columns, window_size)
    windows = regions.swapaxes(1, 2).reshape(-1, window_size * window_size)
    return np.where(windows[:, None] == windows[:, :, None], np.float32(0), np.float32(-100))


def cell_anchor(stride: int, size: int) -> Array:
    """(1, 4) float32: the square anchor of a cell, xyxy in pixels of inclusive corners."""
    center, half = (stride - 1) / 2, (size - 1) / 2
    return np.array([[center - half, center - half, center + half, center + half]], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Rebuilder:
    """How to make a buffer and how to count its elements, from the other fields of an entry's `rebuild`.

    `accepts`, after these values: whether a checkpoint may hold them, where that is not only what `make` gives.
    """

    make: Callable[..., Array]
    elements: Callable[..., int]
    accepts: Callable[..., bool] | None = None

    def checked(self, **arguments: int) -> int:
        """The number of elements. Raises TableError for an argument below 1, or more than LARGEST_BUFFER elements."""
        for name, value in arguments.items():
            if value < 1:
                raise TableError(f"{name} is {value}, expected 1 or more")
        if (count := self.elements(**arguments)) > LARGEST_BUFFER:
            said = ", ".join(f"{name} {value}" for name, value in arguments.items())
            raise TableError(f"{said} makes a buffer of {count} elements, expected at most {LARGEST_BUFFER}")
        return count

    def __call__(self, **arguments: int) -> Array:
        self.checked(**arguments)
        return self.make(**arguments)


def _mask_elements(side: int, window_size: int) -> int:
    return (side + -side % window_size) ** 2 * window_size**2


# name in a table
REBUILDERS: Mapping[str, Rebuilder] = {
    "numbers": Rebuilder(numbers, lambda count: count),
    "relative_position_index": Rebuilder(relative_position_index, lambda window_size: window_size**4),
    "shifted_window_mask": Rebuilder(
        shifted_window_mask,
        _mask_elements,
        lambda values, side, window_size: is_shifted_window_mask(values, window_size),  # of an image of any size
    ),
    "cell_anchor": Rebuilder(cell_anchor, lambda stride, size: 4),
}
