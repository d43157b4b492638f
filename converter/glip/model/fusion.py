"""Deep fusion: attention between the image and the caption, in both directions (GLIP, arXiv:2112.03857, 3.2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from converter.glip.model.config import GLIPConfig
from converter.glip.model.precision import Linear, accumulation_dtype
from converter.glip.model.tiles import tiles

LOG2_E = math.log2(math.e)
LOGIT_LIMIT = 50000.0  # where GLIP clamps attention and token logits; inside the range of float16


class Fused(NamedTuple):
    """levels: P3..P7, (B, C, H, W) each; text: (B, T, text_dim)."""

    levels: tuple[Tensor, ...]
    text: Tensor


class Fusion(nn.Module):
    """Bidirectional cross-attention over all levels at once; one matrix of logits serves both directions.

    levels: P3..P7 (B, C, H, W); text (B, T, text_dim); attended (B, T) bool -> Fused.
    The residual is added to the *normalised* inputs. Cells of the padded image area take part like any other.

    With 20 thousand cells and some 30 tokens, projecting every cell to fusion_dim would be nearly all of the
    work. Products are therefore taken in another order, equal in real arithmetic: with q = W_q v + b_q,
        q . k                    =  v . (W_q^T k) + b_q . k
        W_o sum_t p_t value_t    =  sum_t p_t (W_o value_t)
        sum_n p_n (W_v v_n + b)  =  W_v (sum_n p_n v_n) + b        as sum_n p_n = 1
    so that the large projections only meet matrices with one row per token and head. A cell then costs no more
    products than without, however many tokens there are, as long as a head is at least as wide as a cell: it is as
    wide in every GLIP.
    """

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        image_dim, text_dim, dim = config.channels, config.text_dim, config.fusion_dim
        self.heads = config.fusion_heads
        self.image_norm = nn.LayerNorm(image_dim)
        self.text_norm = nn.LayerNorm(text_dim)
        self.image_layer_scale = nn.Parameter(torch.full((image_dim,), 1 / config.head_blocks))
        self.text_layer_scale = nn.Parameter(torch.full((text_dim,), 1 / config.head_blocks))
        self.image_query = nn.Linear(image_dim, dim)
        self.text_key = Linear(text_dim, dim)
        self.image_value = nn.Linear(image_dim, dim)
        self.text_value = Linear(text_dim, dim)
        self.image_output = nn.Linear(dim, image_dim)
        self.text_output = Linear(dim, text_dim)

    def forward(self, levels: tuple[Tensor, ...], text: Tensor, attended: Tensor) -> Fused:
        text = self.text_norm(text)
        image = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, N, C)
        image, gathered = self._attend(image, text, attended)
        return Fused(levels=_split(image, levels), text=text + self.text_layer_scale * self._for_text(gathered))

    def _attend(self, image: Tensor, text: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """The cells with what they gather from the tokens, (B, N, C), and what each head and token, padded or not,
        gathers from the cells, (B, nh*T, C)."""
        key, constant = self._key(text)
        value, bias = self._value(text)
        low, most = self._limits(attended, text.dtype)
        gathered: Gathered | None = None
        fused: list[Tensor] = []
        sizes = tiles(image.shape[1], image[:, 0].numel() + constant.numel(), most)
        for tile in torch.split(image, sizes, dim=1):
            cells = self.image_norm(tile)  # (B, n, C)
            product = torch.baddbmm(constant, cells, key)  # in the dtype of autocast, where that is on
            logits = product.to(most.dtype)
            share = logits.clamp(low, most).view(*logits.shape[:2], self.heads, -1).softmax(dim=-1)  # (B, n, nh, T)
            fused.append(torch.baddbmm(cells + bias, share.flatten(2).to(cells.dtype), value))
            own = Gathered.of(logits, cells.to(product.dtype))
            gathered = gathered.merged(own) if gathered else own
        assert gathered is not None  # there is a cell
        return torch.cat(fused, dim=1), gathered.mean().to(text.dtype)

    def _key(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """What a cell is multiplied with, (B, C, nh*T), and what is added, (B, 1, nh*T), for its scaled q . k."""
        key = self._heads(self.text_key(text))  # (nh, B*T, hd)
        key = key * key.shape[-1] ** -0.5
        weight = self.image_query.weight.view(self.heads, key.shape[-1], -1)  # (nh, hd, C)
        bias = self.image_query.bias.view(self.heads, -1, 1)  # (nh, hd, 1)
        key, constant = (_swapped(torch.bmm(key, x), text.shape[0]) for x in (weight, bias))
        return key.transpose(1, 2), constant.transpose(1, 2)

    def _value(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """What a cell gathers from each token, (B, nh*T, C), and in any case, (C,); both times the layer scale."""
        value = self._heads(self.text_value(text))  # (nh, B*T, hd)
        weight = self.image_output.weight.T.view(self.heads, value.shape[-1], -1)  # (nh, hd, C)
        scale = self.image_layer_scale
        return _swapped(torch.bmm(value, weight) * scale, text.shape[0]), self.image_output.bias * scale

    def _limits(self, attended: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The lowest and the largest logit that a cell may have for each token, where the largest decides: () and
        (B, 1, nh*T).

        GLIP adds +1 for real tokens, which cancels, and -9e15 for the others. These then have weight zero, or all the
        same weight where a caption has no real token. The lowest finite number has both effects.
        """
        dtype = accumulation_dtype(dtype)
        most = torch.full_like(attended, LOGIT_LIMIT, dtype=dtype).masked_fill_(~attended, torch.finfo(dtype).min)
        return most.new_full((), -LOGIT_LIMIT), most.repeat(1, self.heads).unsqueeze(1)

    def _for_text(self, gathered: Tensor) -> Tensor:
        """The mean of the cells by the weights of each head and token, padded or not, (B, nh*T, C), as
        (B, T, text_dim)."""
        batch, _, dim = gathered.shape
        weight = self.image_value.weight.view(self.heads, -1, dim).transpose(1, 2)  # (nh, C, hd)
        bias = self.image_value.bias.view(self.heads, 1, -1)  # (nh, 1, hd)
        value = torch.baddbmm(bias, _swapped(gathered, self.heads), weight)  # (nh, B*T, hd)
        out: Tensor = self.text_output(value.transpose(0, 1).reshape(batch, -1, value.shape[2] * self.heads))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, nh*hd) -> (nh, B*T, hd)"""
        return x.flatten(0, 1).view(-1, self.heads, x.shape[2] // self.heads).transpose(0, 1)


def _swapped(x: Tensor, inner: int) -> Tensor:
    """(a, inner*T, C) -> (inner, a*T, C)"""
    return x.view(x.shape[0], inner, -1, x.shape[2]).transpose(0, 1).flatten(1, 2)


class Gathered(NamedTuple):
    """Sums of cells with the weights of a softmax over them, to be merged with those of other cells.

    As in "Online normalizer calculation for softmax" (Milakov and Gimelshein 2018, arXiv:1805.02867).

    maximum: (B, nh*T, 1), the largest logit, without a gradient; total: (B, nh*T, 1), the sum of exp(logit - maximum);
    sums: (B, nh*T, C), the sum of the cells, each times that; all in the accumulation dtype.
    """

    maximum: Tensor
    total: Tensor
    sums: Tensor

    @classmethod
    def of(cls, logits: Tensor, cells: Tensor) -> Gathered:
        """Of one tile: logits (B, n, nh*T), before they are clamped; cells (B, n, C).

        GLIP subtracts the maximum and then clamps once more. That changes nothing: exp(-50000) is 0 in every dtype.
        `logits` and `share` are kept for gradients, in 16 bits the latter's cast, too; steps in place by what has no
        gradient keep nothing.
        """
        logits = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).transpose(1, 2)  # (B, nh*T, n)
        maximum = logits.detach().amax(dim=2, keepdim=True)
        # exp(x) by a power of 2: the exp of MKL takes up to thirty times as long where x is below -87.
        share = logits.sub_(maximum).mul_(LOG2_E).exp2_()
        total = share.sum(dim=2, keepdim=True)
        if cells.dtype != torch.float16:
            return cls(maximum, total, torch.bmm(share.to(cells.dtype), cells).to(share.dtype))
        # In float16 a sum over 20 thousand cells may be out of range, and a mean is not. The scale cancels.
        scale = total.detach()
        mean = torch.bmm((share / scale).to(cells.dtype), cells)
        return cls(maximum, total, mean.to(share.dtype).mul_(scale))

    def merged(self, other: Gathered) -> Gathered:
        """Of the cells of both."""
        maximum = torch.maximum(self.maximum, other.maximum)
        kept, added = (self.maximum - maximum).exp(), (other.maximum - maximum).exp()
        total = torch.addcmul(self.total * kept, other.total, added)
        return Gathered(maximum, total, torch.addcmul(self.sums * kept, other.sums, added))

    def mean(self) -> Tensor:
        """(B, nh*T, C)"""
        return self.sums / self.total


def _split(image: Tensor, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The sequence (B, N, C) cut back into maps (B, C, H, W) of the sizes of `like`; views, no copies."""
    parts: list[Tensor] = []
    begin = 0
    for level in like:
        batch, _, height, width = level.shape
        part = image[:, begin : begin + height * width]
        parts.append(part.view(batch, height, width, -1).permute(0, 3, 1, 2))
        begin += height * width
    return tuple(parts)
