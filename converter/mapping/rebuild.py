"""Buffers that a checkpoint carries although they follow from the config.

They are left out, but not blindly: a checkpoint whose buffer differs was made by a model that computes something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from converter.mapping.ops import Array


def numbers(count: int) -> Array:
    """(1, count) int64: 0 to count - 1, BERT's `position_ids`."""
    return np.arange(count)[None]


def relative_position_index(window_size: int) -> Array:
    """(w*w, w*w) int64: which row of Swin's bias table a pair of tokens of one window takes (Swin, section 3.2)."""
    y, x = np.divmod(np.arange(window_size * window_size), window_size)
    rows = y[:, None] - y + window_size - 1
    return rows * (2 * window_size - 1) + x[:, None] - x + window_size - 1


def shifted_window_mask(side: int, window_size: int) -> Array:
    """(windows, w*w, w*w) float32: -100 between tokens of a shifted window that are no neighbours in a square map
    of `side` tokens, else 0 (Swin, section 3.2). `side` is rounded up to whole windows."""
    side += -side % window_size
    # the shift rolls the first rows and columns behind the last ones; a window that holds both must not mix them
    rolled = np.arange(side) >= side - window_size // 2
    regions = (2 * rolled[:, None] + rolled).reshape(side // window_size, window_size, -1, window_size)
    windows = regions.swapaxes(1, 2).reshape(-1, window_size * window_size)
    return np.where(windows[:, None] == windows[:, :, None], np.float32(0), np.float32(-100))


def cell_anchor(stride: int, size: int) -> Array:
    """(1, 4) float32: the square anchor of a cell, xyxy in pixels of inclusive corners."""
    center, half = (stride - 1) / 2, (size - 1) / 2
    return np.array([[center - half, center - half, center + half, center + half]], dtype=np.float32)


# name in a table -> function; its arguments are the entry's other fields
REBUILDERS: Mapping[str, Callable[..., Array]] = {
    "numbers": numbers,
    "relative_position_index": relative_position_index,
    "shifted_window_mask": shifted_window_mask,
    "cell_anchor": cell_anchor,
}
