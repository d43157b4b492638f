"""The stand-in for mmcv's extension computes what the kernel's definition says, number by number."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tests.peers import mmcv_standin

STRIDES = [1, 2]


def run(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """3x3, padding 1."""
    size = [(length - 1) // stride + 1 for length in x.shape[-2:]]
    output = x.new_full((len(x), len(weight), *size), torch.nan)
    empty = x.new_empty(0)
    mmcv_standin.modulated_deform_conv_forward(
        x, weight, bias, empty, offset, mask, output, empty,
        kernel_h=3, kernel_w=3, stride_h=stride, stride_w=stride, pad_h=1, pad_w=1, dilation_h=1, dilation_w=1,
        group=1, deformable_group=1, with_bias=True,
    )  # fmt: skip
    return output


def by_definition(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """The same, one output cell, tap and neighbour at a time, offsets and masks read as flat memory."""
    height, width = x.shape[-2:]
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    output = bias[None, :, None, None].repeat(len(x), 1, rows, columns)
    for image in range(len(x)):
        shifts, factors = offset[image].flatten().tolist(), mask[image].flatten().tolist()
        for place in range(rows * columns):
            row, column = divmod(place, columns)
            for tap in range(9):
                y = row * stride - 1 + tap // 3 + shifts[2 * tap * rows * columns + place]
                z = column * stride - 1 + tap % 3 + shifts[(2 * tap + 1) * rows * columns + place]
                for i in (math.floor(y), math.floor(y) + 1):
                    for j in (math.floor(z), math.floor(z) + 1):
                        if 0 <= i < height and 0 <= j < width:
                            share = (1 - abs(y - i)) * (1 - abs(z - j)) * factors[tap * rows * columns + place]
                            kernel = weight[:, :, tap // 3, tap % 3]
                            output[image, :, row, column] += share * (kernel @ x[image, :, i, j])
    return output


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("larger", [0, 2], ids=["own offsets", "offsets of a larger map"])
def test_it_is_the_definition(stride: int, larger: int) -> None:
    x, weight, bias = random(2, 4, 6, 5), random(3, 4, 3, 3), random(3)
    size = [(length - 1) // stride + 1 + larger for length in (6, 5)]
    offset, mask = 2 * random(2, 18, *size), random(2, 9, *size).sigmoid()
    torch.testing.assert_close(
        run(x, offset, mask, weight, bias, stride),
        by_definition(x, offset, mask, weight, bias, stride),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_offsets_it_is_a_convolution(stride: int, dtype: torch.dtype) -> None:
    x, weight, bias = (tensor.to(dtype) for tensor in (random(2, 4, 6, 5), random(3, 4, 3, 3), random(3)))
    expected = torch.nn.functional.conv2d(x, weight, bias, stride, padding=1)
    size = expected.shape[-2:]
    found = run(x, x.new_zeros(2, 18, *size), x.new_ones(2, 9, *size), weight, bias, stride)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_is_its_definition(offset: int) -> None:
    """One pair at a time. Corners are whole numbers, so that an IoU may be the threshold itself, which keeps a box."""
    generator = torch.Generator().manual_seed(offset)
    corner = torch.randint(0, 12, (300, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(1, 12, (300, 2), generator=generator)], dim=1)
    scores = torch.randint(1, 50, (300,), generator=generator) / 50  # with ties: the first of them is the better
    kept: list[int] = []
    for i in sorted(range(300), key=lambda i: -scores[i]):
        if not any(iou(boxes[i].tolist(), boxes[k].tolist(), offset) > Fraction(1, 2) for k in kept):
            kept.append(i)
    assert len(kept) < 200
    assert mmcv_standin.nms(boxes, scores, iou_threshold=0.5, offset=offset).tolist() == kept


def iou(a: list[float], b: list[float], offset: int) -> Fraction:
    width, height = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset) for i in (0, 1))
    area_a, area_b = ((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b))
    return Fraction(int(width * height), int(area_a + area_b - width * height))


def test_nms_of_nothing_is_nothing() -> None:
    assert len(mmcv_standin.nms(torch.zeros(0, 4), torch.zeros(0), iou_threshold=0.5, offset=0)) == 0


def test_any_other_operator_is_there_and_refuses() -> None:
    with pytest.raises(NotImplementedError, match=r"mmcv\._ext\.softnms is not part of this stand-in"):
        mmcv_standin.softnms(None, None, iou_threshold=0.5, offset=0)
