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


def cell_anchor(stride: int, size: int) -> Array:
    """(1, 4) float32: the square anchor of a cell, xyxy in pixels of inclusive corners."""
    center, half = (stride - 1) / 2, (size - 1) / 2
    return np.array([[center - half, center - half, center + half, center + half]], dtype=np.float32)


# name in a table -> function; its arguments are the entry's other fields
REBUILDERS: Mapping[str, Callable[..., Array]] = {
    "numbers": numbers,
    "relative_position_index": relative_position_index,
    "cell_anchor": cell_anchor,
}
