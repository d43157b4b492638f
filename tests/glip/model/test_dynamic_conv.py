"""The dynamic head's block, against loops over places, taps and corners."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from converter.glip.model.dynamic_conv import DeformableConv, DynamicConv, NormedDeformableConv, Offsets, sampling
from tests.support.small_glip import small_config, small_glip

CHANNELS = 32


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """Value of (C, H, W) at a point, zero outside."""
    height, width = image.shape[-2:]
    total = torch.zeros(len(image), dtype=image.dtype)
    for i, j in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        if 0 <= i < height and 0 <= j < width:
            total += image[:, i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def deformable(conv: DeformableConv, x: Tensor, shift: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Modulated deformable convolution, straight from its definition."""
    batch, _, height, width = weight.shape
    out = torch.zeros(batch, len(conv.weight), height, width, dtype=x.dtype)
    for b, i, j in itertools.product(range(batch), range(height), range(width)):
        out[b, :, i, j] = conv.bias
        for tap, (row, column) in enumerate(itertools.product(range(3), range(3))):
            y = i * stride - 1 + row + float(shift[b, 2 * tap, i, j])
            z = j * stride - 1 + column + float(shift[b, 2 * tap + 1, i, j])
            sample = bilinear(x[b], y, z) * weight[b, tap, i, j]
            out[b, :, i, j] += conv.weight[:, :, row, column] @ sample
    return out


def conv_and_input(height: int, width: int) -> tuple[DeformableConv, Tensor]:
    conv = DeformableConv(CHANNELS).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
        conv.bias.copy_(torch.randn(conv.bias.shape, generator=generator))
    return conv, torch.randn(2, CHANNELS, height, width, dtype=torch.float64, generator=generator)


def offsets_of(height: int, width: int, reach: float) -> Offsets:
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn(2, 18, height, width, dtype=torch.float64, generator=generator) * reach
    return Offsets(shift, torch.rand(2, 9, height, width, dtype=torch.float64, generator=generator))


@pytest.mark.parametrize("reach", [0.0, 0.4, 3.0, 40.0])
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_a_deformable_convolution_samples_where_it_is_told(stride: int, reach: float) -> None:
    conv, x = conv_and_input(5, 7)
    offsets = offsets_of(-(-5 // stride), -(-7 // stride), reach)
    torch.testing.assert_close(conv([x], [offsets], stride)[0], deformable(conv, x, *offsets, stride))


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_without_shifts_it_is_an_ordinary_convolution(stride: int) -> None:
    conv, x = conv_and_input(6, 5)
    size = (-(-6 // stride), -(-5 // stride))
    offsets = Offsets(torch.zeros(2, 18, *size).double(), torch.ones(2, 9, *size).double())
    expected = F.conv2d(x, conv.weight, conv.bias, stride=stride, padding=1)
    torch.testing.assert_close(conv([x], [offsets], stride)[0], expected)


@pytest.mark.parametrize("shift", [-1.0, -0.999, 2.999, 3.0, 1e9, -1e30, math.inf])
def test_a_sample_counts_while_one_of_its_cells_is_in_the_map(shift: float) -> None:
    # one cell whose middle tap, number 4, moves along y; the map has three rows
    offsets = Offsets(torch.zeros(1, 18, 1, 1).double(), torch.ones(1, 9, 1, 1).double())
    offsets.shift[0, 8] = shift
    cells, shares = sampling(offsets, 1, (3, 1))
    assert ((cells >= 0) & (cells < 3)).all()
    assert shares.isfinite().all()
    inside = -1 < shift < 3
    assert (float(shares[4].sum()) > 0) == inside


def test_large_maps_do_not_blur_float32_shares() -> None:
    offsets = Offsets(torch.full((1, 18, 1, 3000), 1e-4), torch.ones(1, 9, 1, 3000))
    _, shares = sampling(offsets, 1, (1, 3000))
    last = shares.view(3000, 9, 4)[2990, 4]
    assert float(last.sort().values[-2]) == pytest.approx(1e-4, rel=1e-3)


def test_foreign_offsets_are_read_flat() -> None:
    shift = torch.arange(2 * 18 * 5 * 7.0).view(2, 18, 5, 7)
    weight = torch.arange(2 * 9 * 5 * 7.0).view(2, 9, 5, 7)
    flat = Offsets(shift, weight).flat(3, 4)
    for image, channel, i, j in itertools.product(range(2), range(18), range(3), range(4)):
        assert flat.shift[image, channel, i, j] == image * 18 * 35 + (channel * 3 + i) * 4 + j
    for image, channel, i, j in itertools.product(range(2), range(9), range(3), range(4)):
        assert flat.weight[image, channel, i, j] == image * 9 * 35 + (channel * 3 + i) * 4 + j


def dynamic_conv_by_levels(module: DynamicConv, levels: list[Tensor]) -> list[Tensor]:
    """The block as its paper and the official code describe it, from the loops above."""

    def normed(part: NormedDeformableConv, x: Tensor, shift: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
        return part.norm(deformable(part.conv, x, shift, weight, stride))

    results = []
    for index, level in enumerate(levels):
        batch, _, height, width = level.shape
        prediction = F.conv2d(level, module.offset.weight, module.offset.bias, padding=1)
        shift, weight = prediction[:, :18].contiguous(), prediction[:, 18:].sigmoid().contiguous()
        parts = [normed(module.same, level, shift, weight)]
        if index > 0:
            parts.append(normed(module.finer, levels[index - 1], shift, weight, stride=2))
        if index < len(levels) - 1:
            coarser = levels[index + 1]
            size = coarser.shape[-2:]
            first = size[0] * size[1]
            shift = torch.stack([image.flatten()[: 18 * first].view(18, *size) for image in shift])
            weight = torch.stack([image.flatten()[: 9 * first].view(9, *size) for image in weight])
            reduced = normed(module.coarser, coarser, shift, weight)
            parts.append(F.interpolate(reduced, (height, width), mode="bilinear", align_corners=True))
        attention = [
            ((module.level_attention(part.mean((2, 3), keepdim=True)).relu() + 3) / 6).clamp(0, 1) for part in parts
        ]
        x = torch.stack([part * share for part, share in zip(parts, attention, strict=True)]).mean(0)
        theta = module.dyrelu.fc2(module.dyrelu.fc1(x.mean((2, 3))).relu())
        theta = ((theta + 3) / 6).clamp(0, 1).view(batch, 4, -1, 1, 1) - 0.5
        results.append(torch.maximum(x * (2 * theta[:, 0] + 1) + theta[:, 1], x * 2 * theta[:, 2] + theta[:, 3]))
    return results


@pytest.mark.parametrize("sizes", [[(8, 6), (4, 3), (2, 2), (1, 1), (1, 1)], [(7, 5), (4, 3), (2, 2)], [(3, 3)]])
@torch.no_grad()
def test_a_block_mixes_each_level_with_its_neighbours(sizes: list[tuple[int, int]]) -> None:
    module = small_glip().head.blocks[0].dynamic_conv
    generator = torch.Generator().manual_seed(2)
    levels = [torch.randn(2, CHANNELS, *size, dtype=torch.float64, generator=generator) for size in sizes]
    for found, expected in zip(module(tuple(levels)), dynamic_conv_by_levels(module, levels), strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_memory_layout_does_not_matter() -> None:
    module = DynamicConv(small_config()).double()
    levels = [torch.randn(2, CHANNELS, *size, dtype=torch.float64) for size in ((4, 4), (2, 2))]
    turned = [level.to(memory_format=torch.channels_last) for level in levels]
    for found, expected in zip(module(tuple(turned)), module(tuple(levels)), strict=True):
        torch.testing.assert_close(found, expected)
