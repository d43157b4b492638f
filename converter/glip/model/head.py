"""GLIP's head: the tower of fusion blocks and the predictions for each cell (arXiv:2112.03857, 3.1 and 3.2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converter.glip.model.bert import BertLayer, TextFeatures
from converter.glip.model.config import LEVELS, GLIPConfig
from converter.glip.model.dynamic_conv import DynamicConv
from converter.glip.model.fusion import LOGIT_LIMIT, Fusion
from converter.glip.model.precision import accumulation_dtype

PRIOR = 0.01  # score of a cell before training, as in RetinaNet


class Output(NamedTuple):
    """Predictions per level P3..P7, in the model's dtype; cells in reading order.

    token_logits: (B, H*W, T) each, alignment of every cell with every token, within +-50000;
    box_deltas: (B, 4, H, W) each, (dx, dy, dw, dh) against the cell's anchor; centerness: (B, 1, H, W) logits.
    """

    token_logits: tuple[Tensor, ...]
    box_deltas: tuple[Tensor, ...]
    centerness: tuple[Tensor, ...]


class HeadBlock(nn.Module):
    """Fusion, a text layer, then a dynamic convolution: (levels, text) -> (levels, text).

    Without fusion (GLIP-T (A)) there need be no text; it passes unchanged.
    """

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        self.fusion = Fusion(config) if config.fusion else None
        self.text_layer = BertLayer(config, limit=LOGIT_LIMIT) if config.fusion else None
        self.dynamic_conv = DynamicConv(config)

    def forward(
        self, levels: tuple[Tensor, ...], text: Tensor | None = None, attended: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        if self.fusion is not None and self.text_layer is not None:
            levels, text = self.fusion(levels, text, attended)
            text = self.text_layer(text, attended)
        return self.dynamic_conv(levels), text


class Head(nn.Module):
    """What `before_text` makes of P3..P7, text features (B, T, text_dim), attended (B, T) bool -> Output."""

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        self.prompt = nn.Embedding(config.prompt_length, config.text_dim) if config.prompt_length else None
        self.blocks = nn.ModuleList(HeadBlock(config) for _ in range(config.head_blocks))
        self.text_projection = nn.Linear(config.text_dim, config.channels)
        self.text_bias = nn.Parameter(torch.zeros(config.text_dim))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - PRIOR) / PRIOR)))
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.box = nn.Conv2d(config.channels, 4, 1)
        self.box_scale = nn.Parameter(torch.ones(LEVELS))
        self.centerness = nn.Conv2d(config.channels, 1, 1)

    @property
    def fuses(self) -> bool:
        """Whether the tower looks at the text: in every GLIP but GLIP-T (A)."""
        return self.blocks[0].fusion is not None

    def before_text(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """P3..P7 (B, C, H, W), and where the tower does not look at the text, what it makes of them."""
        for block in () if self.fuses else self.blocks:
            levels, _ = block(levels)
        return levels

    def forward(self, levels: tuple[Tensor, ...], text: TextFeatures, attended: Tensor) -> Output:
        hidden, embedded = text
        if self.prompt is not None:
            prompt = self.prompt.weight[: hidden.shape[1]]  # (T, text_dim)
            hidden, embedded = hidden + prompt, embedded + prompt
        for block in self.blocks if self.fuses else ():
            levels, hidden = block(levels, hidden, attended)
        # With fusion, cells are aligned with the fused text; without, with BERT's output, padding zeroed.
        projected, bias = self._alignment(hidden if self.fuses else embedded)
        return Output(
            token_logits=tuple(
                torch.baddbmm(bias, level.flatten(2).transpose(1, 2), projected).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
                for level in levels
            ),
            box_deltas=tuple(self.box(level) * scale for level, scale in zip(levels, self.box_scale, strict=True)),
            centerness=tuple(self.centerness(level) for level in levels),
        )

    def _alignment(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Text (B, T, text_dim) -> the matrix that cells are multiplied with (B, C, T), and the bias (B, 1, T).

        Logits are (cell . text) / exp(log_scale) + bias; dividing the text gives the same in fewer divisions.
        """
        dtype = embedding.dtype
        wide = accumulation_dtype(dtype)
        unit = F.normalize(embedding.to(wide), dim=-1)
        bias = unit @ self.text_bias.to(wide) + self.bias.to(wide)  # (B, T); of the embedding before it is halved
        projected: Tensor = self.text_projection((unit / 2).to(dtype))  # (B, T, C)
        projected = projected.to(wide) / self.log_scale.to(wide).exp()
        return projected.transpose(1, 2).to(dtype), bias.unsqueeze(1).to(dtype)
