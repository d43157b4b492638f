"""What mmcv's compiled extension `mmcv._ext` does of the little that MMDetection's GLIP runs, in PyTorch.

mmcv-lite comes without the extension, and building it takes half an hour. The forward pass of the modulated
deformable convolution (Zhu et al. 2019, arXiv:1811.11168) is here, and greedy NMS. Every other operator is there by
name, for mmcv looks for all of them when it is imported, and refuses to run.

This is written for being checked, not for speed, and on purpose in another way than the model under test: it makes
the columns of the convolution one kernel tap after another, and shares no code with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"mmcv._ext.{name} is not part of this stand-in")

    return refuse


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Writes (B, out, h, w) to `output`; input (B, C, H, W), weight (out, C, kernel_h, kernel_w).

    `offset` and `mask` are memory, not maps: per image the kernel reads 2 * taps * h * w and taps * h * w numbers from
    the start, with the output's h and w as strides, whatever shape the tensors have. GLIP hands over larger ones.
    """
    if group != 1 or deformable_group != 1:
        raise NotImplementedError("this stand-in knows one group")
    height, width = output.shape[-2:]
    taps = kernel_h * kernel_w
    rows = torch.arange(height, dtype=input.dtype).mul(stride_h).sub(pad_h)[:, None]  # (h, 1)
    cols = torch.arange(width, dtype=input.dtype).mul(stride_w).sub(pad_w)[None, :]  # (1, w)
    for image, shifts, factors, result in zip(input, offset, mask, output, strict=True):
        shift = shifts.contiguous().view(-1)[: 2 * taps * height * width].view(taps, 2, height, width)
        factor = factors.contiguous().view(-1)[: taps * height * width].view(taps, height, width)
        sampled = []
        for tap in range(taps):
            y = rows + tap // kernel_w * dilation_h + shift[tap, 0]
            x = cols + tap % kernel_w * dilation_w + shift[tap, 1]
            sampled.append(bilinear(image, y, x) * factor[tap])
        column = torch.stack(sampled, dim=1).flatten(0, 1).flatten(1)  # (C * taps, h * w)
        product = weight.flatten(1) @ column
        if with_bias:
            product = product + bias[:, None]
        result.copy_(product.view_as(result))


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Which boxes (N, 4), corners, are kept, highest score first: each drops what overlaps it by more.

    `offset` is added to each side. In the dtype of the boxes, float32 as a rule, IoU as a quotient.
    """
    area = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
    left, kept = scores.argsort(descending=True, stable=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        sides = torch.minimum(boxes[best, 2:], boxes[left, 2:]) - torch.maximum(boxes[best, :2], boxes[left, :2])
        width, height = (sides + offset).clamp(min=0).unbind(dim=1)
        shared = width * height
        left = left[~(shared / (area[best] + area[left] - shared) > iou_threshold)]
    return torch.stack(kept) if kept else left


def bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The image (C, H, W) at the points (y, x), (h, w) each: (C, h, w). Zero at and beyond one cell outside."""
    height, width = image.shape[-2:]
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    # From here on in cells of the padded image, where every neighbour of a point that counts exists.
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x = torch.where(inside, y + 1, 0), torch.where(inside, x + 1, 0)
    top, left = y.floor().clamp(max=height), x.floor().clamp(max=width)
    down, right = y - top, x - left
    top, left = top.long(), left.long()
    above = padded[:, top, left] * (1 - right) + padded[:, top, left + 1] * right
    below = padded[:, top + 1, left] * (1 - right) + padded[:, top + 1, left + 1] * right
    value: Tensor = above * (1 - down) + below * down
    return value * inside
