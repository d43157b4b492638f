"""The Swin transformer backbone (Liu et al. 2021, arXiv:2103.14030), for any input size.

Tokens are the cells of the map in reading order, (B, H*W, C). There are no buffers: the index of relative positions
and the mask of shifted windows are made in each forward. They are cheap beside the attention, the mask depends on the
input size, and a buffer could be wrong after the model is moved, cast or built on the meta device.

On the CPU a block computes a strip of the map at a time, a few rows of windows with all that follows them: what lies
between its products then stays in cache, and is never as large as the map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converter.errors import ModelError
from converter.glip.model.config import STAGES, GLIPConfig
from converter.glip.model.precision import BlockedLinear

CROSS_REGION = -100.0  # added to the logits between tokens of a shifted window that are not neighbours in the image
STRIP = 2048  # tokens that the CPU computes at a time; measured: from 1024 to 4096 it makes no difference


class PatchEmbed(nn.Module):
    """Non-overlapping patches: (B, 3, H, W) -> (B, C, ceil(H/p), ceil(W/p)), layer-normalised over C."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(3, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        images = F.pad(images, (0, missing(width, self.patch_size), 0, missing(height, self.patch_size)))
        x: Tensor = self.projection(images)
        x = self.norm(x.permute(0, 2, 3, 1))  # (B, H, W, C)
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows: windows (B*nW, N, C) -> (B*nW, N, C), N = window_size**2.

    `bias` (B*nW or 1, nh, N, N) is added to the logits.
    """

    def __init__(self, dim: int, window_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = BlockedLinear(dim, 3 * dim)
        self.projection = BlockedLinear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, heads))

    def forward(self, windows: Tensor, bias: Tensor) -> Tensor:
        count, tokens, dim = windows.shape
        qkv: Tensor = self.qkv(windows)
        q, k, v = qkv.view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B*nW, nh, N, hd) each
        # The fused kernels keep the softmax in float32 for 16-bit inputs and in float64 for float64.
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(count, -1, -1, -1))
        out: Tensor = self.projection(x.transpose(1, 2).reshape(count, tokens, dim))
        return out

    def relative_bias(self, relative_index: Tensor) -> Tensor:
        """(1, nh, N, N), from the rows of the table that `relative_index` (N*N,) names."""
        tokens = math.isqrt(len(relative_index))
        bias = F.embedding(relative_index, self.relative_position_bias_table)  # (N*N, nh)
        return bias.view(1, tokens, tokens, self.heads).permute(0, 3, 1, 2)


class MLP(nn.Module):
    """Linear, GELU (the exact, erf form), Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = BlockedLinear(dim, hidden_dim)
        self.fc2 = BlockedLinear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SwinBlock(nn.Module):
    """Pre-norm transformer block on (shifted) windows: tokens (B, H*W, C) -> (B, H*W, C).

    With `shift_small_maps` a shifted block always shifts, even where one window covers the map. Without it, as in Swin
    for classification, it does not shift where a side of the map is one window long; a shorter side is a ModelError.
    """

    def __init__(
        self, dim: int, heads: int, window_size: int, mlp_ratio: int, shift: int, shift_small_maps: bool
    ) -> None:
        super().__init__()
        self.shift_small_maps = shift_small_maps
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, window_size, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, dim * mlp_ratio)

    def forward(self, x: Tensor, size: tuple[int, int], relative_index: Tensor) -> Tensor:
        shift = self._shift(size)
        bias = self.attention.relative_bias(relative_index)
        rows = x.view(x.shape[0], *size, x.shape[2])  # (B, H, W, C)
        count, height = strips(x, size, shift, self.window_size)
        if count == 0:
            return self._strip(rows, (shift, shift), self._masked(bias, rows, (shift, shift))).flatten(1, 2)

        # Rows roll in one strip only, that of the first and the last; between them are whole rows of windows.
        first, *between, last = torch.split(rows, [shift, *[height] * count, size[0] - shift - count * height], dim=1)
        ends = torch.cat((first, last), dim=1)
        ends = self._strip(ends, (shift, shift), self._masked(bias, ends, (shift, shift)))
        bias = self._masked(bias, between[0], (0, shift))
        computed = [self._strip(strip, (0, shift), bias) for strip in between]
        return torch.cat((ends[:, :shift], *computed, ends[:, shift:]), dim=1).flatten(1, 2)

    def _strip(self, x: Tensor, shifts: tuple[int, int], bias: Tensor) -> Tensor:
        """The block on rows of the map, (B, R, W, C) -> (B, R, W, C); `shifts` of its windows down and right."""
        height, width = x.shape[1:3]
        y: Tensor = self.norm1(x)
        # Padding comes after the norm: the added tokens are zero, not the norm's bias, and are attended to.
        y = F.pad(y, (0, 0, 0, missing(width, self.window_size), 0, missing(height, self.window_size)))
        rolled = [(shift, dim) for dim, shift in enumerate(shifts, start=1) if shift]
        for shift, dim in rolled:
            y = y.roll(-shift, dim)
        padded = (y.shape[1], y.shape[2])
        y = from_windows(self.attention(to_windows(y, self.window_size), bias), self.window_size, padded)
        for shift, dim in rolled:
            y = y.roll(shift, dim)
        if torch.compiler.is_compiling():  # then a column is always cut: whether one is would be a guard of the graph
            y = F.pad(y, (0, 0, 0, 1))
        x = x + y[:, :, :width][:, :height]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def _masked(self, bias: Tensor, x: Tensor, shifts: tuple[int, int]) -> Tensor:
        """The bias (1, nh, N, N), where windows of `x` (B, R, W, C) are shifted with their mask: (B*nW, nh, N, N)."""
        if shifts == (0, 0):
            return bias
        mask = shifted_window_mask((x.shape[1], x.shape[2]), shifts, self.window_size, x)
        # Added in the module's own dtype: what rounds away beside -100 has no weight in the softmax.
        return (bias + mask).repeat(x.shape[0], 1, 1, 1)

    def _shift(self, size: tuple[int, int]) -> int:
        if self.shift_small_maps or min(size) > self.window_size:
            return self.shift
        if min(size) < self.window_size:
            raise ModelError(
                f"images: a map of {size[0]} x {size[1]} is smaller than the window of {self.window_size} tokens, "
                "which GLIP pads and MMPretrain by default refuses. Give larger images, or pad_small_map=True."
            )
        return 0


class PatchMerging(nn.Module):
    """Halves the map, doubles the channels: tokens (B, H*W, C) -> (B, ceil(H/2)*ceil(W/2), 2C).

    The four cells are concatenated in the order (0,0), (1,0), (0,1), (1,1) of (row, column).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = BlockedLinear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        batch, _, dim = x.shape
        height, width = size
        x = F.pad(x.view(batch, height, width, dim), (0, 0, 0, missing(width, 2), 0, missing(height, 2)))
        cells = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged = torch.cat(cells, dim=-1).flatten(1, 2)  # (B, ceil(H/2)*ceil(W/2), 4C)
        out: Tensor = self.reduction(self.norm(merged))
        return out


class SwinStage(nn.Module):
    """Blocks at one resolution, every second one shifted; then, except in the last stage, patch merging."""

    def __init__(self, config: GLIPConfig, stage: int, shift_small_maps: bool) -> None:
        super().__init__()
        self.window_size = config.window_size
        dim = config.stage_dims[stage]
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                config.num_heads[stage],
                config.window_size,
                config.mlp_ratio,
                shift=config.window_size // 2 if block % 2 else 0,
                shift_small_maps=shift_small_maps,
            )
            for block in range(config.depths[stage])
        )
        self.downsample = PatchMerging(dim) if stage + 1 < STAGES else None

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens at this stage's resolution, and the tokens for the next stage (the same ones in the last)."""
        relative_index = relative_position_index(self.window_size, x.device)
        for block in self.blocks:
            x = block(x, size, relative_index)
        return x, x if self.downsample is None else self.downsample(x, size)


class SwinTransformer(nn.Module):
    """Images (B, 3, H, W) -> the maps C2, C3, C4, C5 as (B, C, H, W), of stride 4, 8, 16 and 32, rounded up.

    C3 to C5 are layer-normalised; that norm does not feed the next stage. C2 is the bare output of the first
    stage: nothing in GLIP reads it. `shift_small_maps`: see `SwinBlock`.
    """

    def __init__(self, config: GLIPConfig, *, shift_small_maps: bool = True) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.embed_dim, config.patch_size)
        self.stages = nn.ModuleList(SwinStage(config, stage, shift_small_maps) for stage in range(STAGES))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in config.stage_dims[1:])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x: Tensor = self.patch_embed(images)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # (B, H*W, C)
        maps = []
        for index, stage in enumerate(self.stages):
            out, x = stage(x, (height, width))
            if index > 0:
                out = self.norms[index - 1](out)
            maps.append(out.view(out.shape[0], height, width, -1).permute(0, 3, 1, 2))
            height, width = (height + 1) // 2, (width + 1) // 2
        return maps[0], maps[1], maps[2], maps[3]


def strips(x: Tensor, size: tuple[int, int], shift: int, window_size: int) -> tuple[int, int]:
    """(count, height): how many strips of so many rows of windows a map (H, W) is computed in, besides its ends.

    The ends are the first `shift` rows and what the strips leave below. All is one strip, and the count 0, where the
    map is small, on other devices, whose caches are not what bounds them, and in a compiled graph.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return 0, 0
    rows = -(-size[0] // window_size)  # of windows
    wanted = min(rows, -(-x.shape[0] * x.shape[1] // STRIP))
    height = -(-rows // wanted) * window_size
    return max(0, size[0] - shift - 1) // height, height


def missing(length: int, step: int) -> int:
    """What a side lacks of the next multiple of `step`.

    Not as `-length % step`: torch.compile for any size of picture keeps sizes as formulas. Padded by this, one is
    a quotient times `step`, and short; by the remainder it would be a sum that each stage repeats several times.
    """
    return (length + step - 1) // step * step - length


def to_windows(x: Tensor, window_size: int) -> Tensor:
    """(B, H, W, C) -> (B*nW, window_size**2, C), windows in reading order; H and W are multiples of window_size."""
    batch, height, width, dim = x.shape
    x = x.view(batch, height // window_size, window_size, width // window_size, window_size, dim)
    return x.transpose(2, 3).reshape(-1, window_size * window_size, dim)


def from_windows(windows: Tensor, window_size: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `to_windows`: (B*nW, window_size**2, C) -> (B, H, W, C)."""
    height, width = size
    rows, columns, dim = height // window_size, width // window_size, windows.shape[-1]
    x = windows.view(-1, rows, columns, window_size, window_size, dim)
    return x.transpose(2, 3).reshape(-1, height, width, dim)


def relative_position_index(window_size: int, device: torch.device) -> Tensor:
    """(N*N,) int64: the row of the bias table for each pair of tokens, N = window_size**2."""
    position = torch.arange(window_size * window_size, device=device)
    row, column = position // window_size, position % window_size
    span = 2 * window_size - 1
    down = row[:, None] - row[None, :] + window_size - 1
    right = column[:, None] - column[None, :] + window_size - 1
    return (down * span + right).flatten()


def shifted_window_mask(size: tuple[int, int], shifts: tuple[int, int], window_size: int, like: Tensor) -> Tensor:
    """(nW, 1, N, N) in the dtype of `like`: 0 within a region of the rolled map, -100 between regions.

    Rolling brings the first rows and columns behind the last ones; a window that holds both must not mix them.
    """

    def region(length: int, shift: int) -> Tensor:
        padded = length + missing(length, window_size)
        position = torch.arange(padded, device=like.device)
        return (position >= padded - shift).long()

    regions = 2 * region(size[0], shifts[0])[:, None] + region(size[1], shifts[1])[None, :]  # (H, W)
    windows = to_windows(regions[None, :, :, None], window_size).squeeze(-1)  # (nW, N)
    differs = windows[:, None, :, None] != windows[:, None, None, :]  # (nW, 1, N, N)
    return torch.zeros(differs.shape, dtype=like.dtype, device=like.device).masked_fill(differs, CROSS_REGION)
