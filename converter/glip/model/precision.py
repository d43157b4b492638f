"""The dtype in which sums, norms, softmax and coordinates are computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCK = 96  # terms of a float32 sum that are added at a time
FEW = 32  # rows; up to here MKL is faster with the weight on the left, by a quarter to a half, and above it is not


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the 16-bit formats, otherwise `dtype` itself.

    bfloat16 has 8 significant bits: a coordinate of 167 is known to within half a cell, and a sum of a few
    hundred terms stops growing. So such values are computed in float32 and rounded once at the end.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class Linear(nn.Linear):
    """nn.Linear, for a few rows in float32 on the CPU with the weight on the left: (..., in) -> (..., out)."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if not is_plain_float32(x) or len(rows) > FEW:
            return super().forward(x)
        out = (self.weight @ rows.T).T.contiguous()
        if self.bias is not None:
            out.add_(self.bias)
        return out.view(*x.shape[:-1], -1)


class BlockedLinear(nn.Linear):
    """nn.Linear that adds float32 products in blocks of 96 on the CPU: (..., in) -> (..., out).

    The rounding error of a sum grows with its length, and MKL adds some 400 products in a row. In the backbone these
    sums cause half of the float32 error, which the head's sampling positions then amplify a hundredfold. Shorter
    sums reduce the error at the pyramid by a quarter and cost a twentieth of the backbone's time.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not is_plain_float32(x):
            return super().forward(x)
        blocks = zip(torch.split(x.flatten(0, -2), BLOCK, dim=1), torch.split(self.weight.T, BLOCK), strict=True)
        out = torch.mm(*next(blocks)) if self.bias is None else torch.addmm(self.bias, *next(blocks))
        for rows, columns in blocks:
            out.addmm_(rows, columns)
        return out.view(*x.shape[:-1], -1)


def is_plain_float32(x: Tensor) -> bool:
    """Whether `x` is float32 on the CPU, outside of a compiled graph: where the order of a product is chosen here."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling()
