"""Linear layers whose products are ordered here: the same as any other, but faster or rounded less."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from converter.glip.model.precision import FEW, BlockedLinear, Linear


@pytest.mark.parametrize("kind", [Linear, BlockedLinear])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [1, 96, 97, 400])
@pytest.mark.parametrize("rows", [1, FEW // 2, FEW // 2 + 1])
def test_they_are_linear_layers(kind: type[nn.Linear], rows: int, width: int, bias: bool) -> None:
    layer = kind(width, 5, bias=bias)
    x = torch.randn(2, rows, width, requires_grad=True)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).is_contiguous()
    gradient = torch.randn_like(expected)
    found = torch.autograd.grad(layer(x), [x, *layer.parameters()], gradient)
    for a, b in zip(found, torch.autograd.grad(expected, [x, *layer.parameters()], gradient), strict=True):
        torch.testing.assert_close(a, b)


def test_sums_in_blocks_round_less() -> None:
    generator = torch.Generator().manual_seed(9)
    layer = BlockedLinear(3072, 64, bias=False)
    x, weight = torch.randn(200, 3072, generator=generator), torch.randn(64, 3072, generator=generator)
    with torch.no_grad():
        layer.weight.copy_(weight)
        exact = x.double() @ weight.double().T
        # by how much depends on the processor: its kernel may sum in blocks of its own (0.81 of it on an AMD EPYC)
        assert (layer(x) - exact).norm() < 0.9 * (x @ weight.T - exact).norm()
