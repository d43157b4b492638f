"""The dtype in which sums, norms, softmax and coordinates are computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCK = 96  # terms of a float32 sum that are added at a time


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the 16-bit formats, otherwise `dtype` itself.

    bfloat16 has 8 significant bits: a coordinate of 167 is known to within half a cell, and a sum of a few
    hundred terms stops growing. So such values are computed in float32 and rounded once at the end.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class Linear(nn.Linear):
    """nn.Linear that adds float32 products in blocks of 96 on the CPU: (..., in) -> (..., out).

    The rounding error of a sum grows with its length, and MKL adds some 400 products in a row. In the backbone these
    sums cause half of the float32 error, which the head's sampling positions then amplify a hundredfold. Shorter
    sums reduce the error at the pyramid by a quarter and cost a tenth of the model's time.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        rows, columns = x.flatten(0, -2), self.weight.T
        first, rest = columns[:BLOCK], range(BLOCK, self.in_features, BLOCK)
        out = rows[:, :BLOCK] @ first if self.bias is None else torch.addmm(self.bias, rows[:, :BLOCK], first)
        for begin in rest:
            out.addmm_(rows[:, begin : begin + BLOCK], columns[begin : begin + BLOCK])
        return out.view(*x.shape[:-1], -1)
