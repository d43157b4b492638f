"""The number format in which sums, norms, softmax and coordinates are carried out."""

from __future__ import annotations

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the 16-bit formats, otherwise `dtype` itself.

    bfloat16 has 8 significant bits: a coordinate of 167 is known to within half a cell, and a sum of a few
    hundred terms stops growing. What depends on such values is computed wide and rounded once at the end.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
