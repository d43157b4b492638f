"""The dynamic head's block (Dai et al. 2021, arXiv:2106.08322): deformable convolution across levels, DYReLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converter.glip.model.config import DYRELU_REDUCTION, GROUPS, GLIPConfig
from converter.glip.model.precision import accumulation_dtype
from converter.glip.model.tiles import tiles

TAPS = 9  # of a 3x3 kernel
REACH = 1e6  # cells; no map is that large


class Offsets(NamedTuple):
    """Where a deformable convolution samples, in float32 or float64.

    shift: (B, 18, h, w), cells, (y, x) pairs per tap; weight: (B, 9, h, w) in (0, 1).
    """

    shift: Tensor
    weight: Tensor

    def flat(self, height: int, width: int) -> Offsets:
        """The first 18*height*width shifts and 9*height*width weights of each image, in memory order, seen as
        maps of that size.

        Not a crop: the kernel GLIP was trained with reads these buffers with the strides of the *output*. Where
        the output is smaller than the level that the offsets belong to, numbers land at other taps and cells. The
        trained weights depend on this.
        """
        batch, _, own_height, own_width = self.shift.shape
        if (own_height, own_width) == (height, width):
            return self
        cells = height * width
        return Offsets(
            self.shift.flatten(1)[:, : 2 * TAPS * cells].reshape(batch, 2 * TAPS, height, width),
            self.weight.flatten(1)[:, : TAPS * cells].reshape(batch, TAPS, height, width),
        )


class DeformableConv(nn.Module):
    """Modulated deformable 3x3 convolution, padding 1 (Zhu et al. 2019, arXiv:1811.11168, DCNv2).

    maps (B, C, H, W) each, offsets for the output size of each -> (B, out, h, w) each, h = ceil(H / stride).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor], offsets: Sequence[Offsets], stride: int) -> list[Tensor]:
        kernel = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (9*C, out)
        return [self._convolved(x, own, stride, kernel) for x, own in zip(maps, offsets, strict=True)]

    def _convolved(self, x: Tensor, offsets: Offsets, stride: int, kernel: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        out_size = offsets.shift.shape[-2:]
        corners, shares = sampling(offsets, stride, (height, width))  # (B*h*w*9, 4) each
        shares = shares.to(x.dtype)
        rows = x.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
        out = []
        cells = corners.shape[0] // TAPS
        # All at once where gradients are wanted: that of each tile would be as large as the map.
        sizes = [cells] if rows.requires_grad else tiles(cells, TAPS * channels, x)
        bags = [TAPS * size for size in sizes]
        for corner, share in zip(torch.split(corners, bags), torch.split(shares, bags), strict=True):
            # Each sample is the weighted sum of four rows, which is what an embedding bag computes. It reads whole
            # rows of memory and never stores the four corners separately.
            samples = F.embedding_bag(corner, rows, mode="sum", per_sample_weights=share)
            out.append(torch.addmm(self.bias, samples.view(-1, TAPS * channels), kernel))  # (n, out)
        return torch.cat(out).view(batch, *out_size, -1).permute(0, 3, 1, 2)


def sampling(offsets: Offsets, stride: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four cells around each sampling point of a 3x3 kernel with padding 1, and their bilinear weights.

    offsets (B, 18 or 9, h, w), size (H, W) of the sampled maps -> cells (B*h*w*9, 4) int64, numbered through
    all maps of the batch in reading order, and weights of the same shape; a cell outside its map has weight 0.

    Whole cells are added as integers: base + shift in float32 would round away digits of the share, more of them
    on a larger map.
    """
    batch, _, height, width = offsets.shift.shape
    device = offsets.shift.device
    tap = torch.arange(TAPS, device=device)
    row = torch.arange(height, device=device)[:, None, None] * stride - 1 + tap // 3  # (h, 1, 9)
    column = torch.arange(width, device=device)[:, None] * stride - 1 + tap % 3  # (w, 9)
    # A shift of REACH is outside every map; the clamp keeps the integers in range.
    shift = offsets.shift.view(batch, TAPS, 2, height, width).permute(2, 0, 3, 4, 1)  # (2, B, h, w, 9)
    shift = shift.clamp(-REACH, REACH)
    whole = shift.floor()
    after = shift - whole
    share = torch.stack([1 - after, after])  # (2, 2, B, h, w, 9): of the cell before and after, along y and x
    whole = whole.long()
    y, y_share = _neighbours(row + whole[0], share[:, 0], size[0])  # (2, B, h, w, 9) each
    x, x_share = _neighbours(column + whole[1], share[:, 1], size[1])
    y = y * size[1] + torch.arange(batch, device=device).view(-1, 1, 1, 1) * (size[0] * size[1])
    y_share = y_share * offsets.weight.permute(0, 2, 3, 1)
    cells = torch.stack([i + j for i in y for j in x], dim=-1)
    shares = torch.stack([i * j for i in y_share for j in x_share], dim=-1)
    return cells.view(-1, 4), shares.view(-1, 4)


def _neighbours(first: Tensor, share: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Along one axis, the cells `first` and the next: index, clamped into the map, and share, 0 outside of it.

    first (...), share (2, ...) -> (2, ...) each
    """
    index = torch.stack([first, first + 1])
    clamped = index.clamp(0, length - 1)
    return clamped, share * (index == clamped)


class NormedDeformableConv(nn.Module):
    """Deformable convolution and GroupNorm, of each map: (B, C, H, W) -> (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = DeformableConv(channels)
        self.norm = nn.GroupNorm(GROUPS, channels)

    def forward(self, maps: Sequence[Tensor], offsets: Sequence[Offsets], stride: int = 1) -> list[Tensor]:
        return [self.norm(x) for x in self.conv(maps, offsets, stride)]


class DYReLU(nn.Module):
    """Dynamic ReLU (Chen et al. 2020, arXiv:2003.10027): the maximum of two lines per channel, whose slopes and
    heights are computed from the pooled input (B, C): slope, height, slope, height, (B, 1, C) each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // DYRELU_REDUCTION)
        self.fc2 = nn.Linear(channels // DYRELU_REDUCTION, 4 * channels)

    def forward(self, pool: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        coefficients = hard_sigmoid(self.fc2(F.relu(self.fc1(pool)))) - 0.5  # (B, 4C), in [-0.5, 0.5]
        slope1, height1, slope2, height2 = coefficients.unsqueeze(1).chunk(4, dim=2)
        # slopes 2 a + 1 and 2 a: where all coefficients are 0, this is max(x, 0), the ordinary ReLU
        return 2 * slope1 + 1, height1, 2 * slope2, height2


class DynamicConv(nn.Module):
    """Each level from itself and its neighbours: P3..P7 (B, C, H, W) -> the same shapes.

    One set of offsets per level serves all three convolutions: on the level itself, on the finer level with
    stride 2, and on the coarser level, whose result is upsampled. The results are averaged, each multiplied
    by a scalar computed from its own mean.
    """

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        channels = config.channels
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)
        self.coarser = NormedDeformableConv(channels)
        self.same = NormedDeformableConv(channels)
        self.finer = NormedDeformableConv(channels)
        self.level_attention = nn.Conv2d(channels, 1, 1)
        self.dyrelu = DYReLU(channels)

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        offsets = [self._offsets(level) for level in levels]
        foreign = [own.flat(x.shape[-2], x.shape[-1]) for own, x in zip(offsets[:-1], levels[1:], strict=True)]
        neighbours: list[list[Tensor]] = [[x] for x in self.same(levels, offsets)]
        for mixed, x in zip(neighbours[1:], self.finer(levels[:-1], offsets[1:], stride=2), strict=True):
            mixed.append(x)
        for mixed, x in zip(neighbours[:-1], self.coarser(levels[1:], foreign), strict=True):
            mixed.append(F.interpolate(x, size=mixed[0].shape[-2:], mode="bilinear", align_corners=True))
        return tuple(self._activated_mean(mixed) for mixed in neighbours)

    def _offsets(self, level: Tensor) -> Offsets:
        # Products first, then nine shifted sums: the maps stay channels-last, without oneDNN's float32 kernels for
        # these. Their rounding error is four times as large, and an error in the offsets shifts every sample.
        height, width = level.shape[-2:]
        taps = self.offset.weight.permute(2, 3, 0, 1).flatten(0, 2)  # (9*27, C)
        products = F.linear(level.permute(0, 2, 3, 1), taps)  # (B, H, W, 9*27)
        products = F.pad(products, (0, 0, 1, 1, 1, 1)).view(-1, height + 2, width + 2, 3, 3, 3 * TAPS)
        predicted = self.offset.get_parameter("bias").to(accumulation_dtype(level.dtype))
        for row in range(3):
            for column in range(3):
                predicted = predicted + products[:, row : row + height, column : column + width, row, column]
        predicted = predicted.permute(0, 3, 1, 2).contiguous()
        return Offsets(shift=predicted[:, : 2 * TAPS], weight=predicted[:, 2 * TAPS :].sigmoid())

    def _activated_mean(self, neighbours: list[Tensor]) -> Tensor:
        """The dynamic ReLU of the mean over the neighbours (B, C, H, W), each weighted by its own scalar per image."""
        pools = [pooled(x) for x in neighbours]  # (B, C) each
        weights = self._weights(pools)  # (B, 1) each
        pool = torch.stack([x * weight for x, weight in zip(pools, weights, strict=True)]).sum(dim=0)  # of the mean
        slope1, height1, slope2, height2 = self.dyrelu(pool)
        cells = [x.flatten(2).transpose(1, 2) for x in neighbours]  # (B, H*W, C) each
        sizes = tiles(cells[0].shape[1], pool.numel(), pool)
        out = []
        for first, *others in zip(*(torch.split(x, sizes, dim=1) for x in cells), strict=True):
            mean = first * weights[0].unsqueeze(2)  # (B, n, C)
            for x, weight in zip(others, weights[1:], strict=True):
                mean = torch.addcmul(mean, x, weight.unsqueeze(2))
            out.append(torch.maximum(torch.addcmul(height1, mean, slope1), torch.addcmul(height2, mean, slope2)))
        return torch.cat(out, dim=1).transpose(1, 2).view(neighbours[0].shape)

    def _weights(self, pools: list[Tensor]) -> list[Tensor]:
        """Of each neighbour's pooled map (B, C), its weight in the mean, (B, 1)."""
        weight, bias = self.level_attention.weight.flatten(1), self.level_attention.bias
        return [hard_sigmoid(F.relu(F.linear(pool, weight, bias))) / len(pools) for pool in pools]


def pooled(x: Tensor) -> Tensor:
    """Mean over the map, summed in the accumulation dtype: (B, C, H, W) -> (B, C)."""
    return x.mean(dim=(-2, -1), dtype=accumulation_dtype(x.dtype)).to(x.dtype)


def hard_sigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6"""
    return F.relu6(x + 3) / 6
