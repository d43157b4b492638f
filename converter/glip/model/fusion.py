"""Deep fusion: attention between the image and the caption, in both directions (GLIP, arXiv:2112.03857, 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from converter.glip.model.config import GLIPConfig
from converter.glip.model.precision import accumulation_dtype

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
    so that the large projections only meet matrices with one row per token and head.
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
        self.text_key = nn.Linear(text_dim, dim)
        self.image_value = nn.Linear(image_dim, dim)
        self.text_value = nn.Linear(text_dim, dim)
        self.image_output = nn.Linear(dim, image_dim)
        self.text_output = nn.Linear(dim, text_dim)

    def forward(self, levels: tuple[Tensor, ...], text: Tensor, attended: Tensor) -> Fused:
        image = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, N, C)
        image, text = self.image_norm(image), self.text_norm(text)
        # The clamp matters in extreme cases only. For the text, GLIP then subtracts the maximum and clamps once
        # more. That changes nothing: softmax subtracts it anyway, and exp(-50000) is 0 in every dtype.
        logits = self._logits(image, text).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)  # (B, N, nh*T)
        return Fused(
            levels=_split(image + self.image_layer_scale * self._for_image(logits, text, attended), levels),
            text=text + self.text_layer_scale * self._for_text(logits, image),
        )

    def _logits(self, image: Tensor, text: Tensor) -> Tensor:
        """Scaled q . k for each cell, head and token: (B, N, nh*T) in the accumulation dtype."""
        key = self._heads(self.text_key(text))  # (B, nh, T, hd)
        key = key * key.shape[-1] ** -0.5
        weight = self.image_query.weight.view(self.heads, -1, image.shape[-1])  # (nh, hd, C)
        bias = self.image_query.bias.view(self.heads, -1, 1)  # (nh, hd, 1)
        folded = (key @ weight).flatten(1, 2)  # (B, nh*T, C)
        constant = (key @ bias).flatten(1)  # (B, nh*T)
        logits = torch.baddbmm(constant.unsqueeze(1), image, folded.transpose(1, 2))
        return logits.to(accumulation_dtype(image.dtype))

    def _for_image(self, logits: Tensor, text: Tensor, attended: Tensor) -> Tensor:
        """What each cell gathers from the attended tokens: (B, N, C).

        GLIP adds +1 to the logits of real tokens, which cancels, and -9e15 to the others. These then have weight
        zero, or all the same weight where a caption has no real token. The lowest finite number has both effects
        and exists in every dtype.
        """
        value = self._heads(self.text_value(text))  # (B, nh, T, hd)
        weight = self.image_output.weight.T.view(self.heads, value.shape[-1], -1)  # (nh, hd, C)
        folded = (value @ weight).flatten(1, 2)  # (B, nh*T, C)
        scores = logits.view(*logits.shape[:2], self.heads, -1)  # (B, N, nh, T)
        scores = scores.masked_fill(~attended[:, None, None, :], torch.finfo(scores.dtype).min)
        share = scores.softmax(dim=-1).flatten(2).to(text.dtype)  # (B, N, nh*T)
        return torch.baddbmm(self.image_output.bias, share, folded)

    def _for_text(self, logits: Tensor, image: Tensor) -> Tensor:
        """What each token, padded or not, gathers from all cells: (B, T, text_dim)."""
        share = logits.softmax(dim=1).to(image.dtype)  # (B, N, nh*T), over the cells
        batch, _, dim = image.shape
        gathered = (share.transpose(1, 2) @ image).view(batch, self.heads, -1, dim)  # (B, nh, T, C)
        weight = self.image_value.weight.view(self.heads, -1, dim).transpose(1, 2)  # (nh, C, hd)
        bias = self.image_value.bias.view(self.heads, 1, -1)  # (nh, 1, hd)
        value = gathered @ weight + bias  # (B, nh, T, hd)
        out: Tensor = self.text_output(value.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, nh*hd) -> (B, nh, T, hd)"""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


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
