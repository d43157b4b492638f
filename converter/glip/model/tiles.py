"""How many rows of a matrix are computed at a time."""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 8 * 2**20  # bytes of the widest intermediate result


def tiles(rows: int, width: int, like: Tensor) -> list[int]:
    """How many of `rows` each tile has; `width`: numbers of an intermediate result per row, in the dtype of `like`.

    On the CPU an intermediate result of 8 MiB stays near the cores, and its memory is used again by the next tile.
    One of 100 MiB is asked of the system anew each time, page by page, which can take longer than to compute it. A GPU
    has neither limit, and a compiler chooses its own: there all rows are one tile.
    """
    if like.device.type != "cpu" or torch.compiler.is_compiling():
        return [rows]
    step = max(1, TILE // (width * like.element_size()))
    return [min(step, rows - begin) for begin in range(0, rows, step)]
