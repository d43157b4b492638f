"""The BERT text encoder (Devlin et al. 2019, arXiv:1810.04805), without pooler."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converter.glip.model.config import GLIPConfig
from converter.glip.model.precision import Linear, accumulation_dtype

NORM_EPSILON = 1e-12  # of every LayerNorm in BERT


class TextFeatures(NamedTuple):
    """hidden: the last layer, (B, T, C); embedded: the same with padded tokens zeroed."""

    hidden: Tensor
    embedded: Tensor


class Embeddings(nn.Module):
    """Word + token type 0 + position, layer-normalised: ids (B, T) int64 -> (B, T, C)."""

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.text_dim)
        self.position = nn.Embedding(config.max_positions, config.text_dim)
        self.token_type = nn.Embedding(config.type_vocab_size, config.text_dim)
        self.norm = nn.LayerNorm(config.text_dim, eps=NORM_EPSILON)

    def forward(self, input_ids: Tensor) -> Tensor:
        words: Tensor = self.word(input_ids)
        # a caption is one segment, so every token is of type 0
        x = words + self.token_type.weight[0] + self.position.weight[: input_ids.shape[1]]
        out: Tensor = self.norm(x)
        return out


class TextAttention(nn.Module):
    """Self-attention with its residual and norm: x (B, T, C), attended (B, T) bool -> (B, T, C).

    `limit`: the logits are clamped to +-limit before the softmax; None for no clamp.
    """

    def __init__(self, config: GLIPConfig, limit: float | None) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.limit = limit
        self.qkv = Linear(config.text_dim, 3 * config.text_dim)
        self.projection = Linear(config.text_dim, config.text_dim)
        self.norm = nn.LayerNorm(config.text_dim, eps=NORM_EPSILON)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv: Tensor = self.qkv(x)
        q, k, v = qkv.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, nh, T, hd) each
        # The lowest finite number, not -inf: a caption of nothing but padding stays finite.
        if self.limit is None:
            bias = torch.zeros_like(attended, dtype=x.dtype).masked_fill(~attended, torch.finfo(x.dtype).min)
            bias = bias[:, None, None, :].expand(-1, -1, tokens, -1)  # (B, 1, T, T)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, nh, T, hd)
        else:
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, nh, T, T)
            logits = logits.to(accumulation_dtype(x.dtype)).clamp(-self.limit, self.limit)
            logits = logits.masked_fill(~attended[:, None, None, :], torch.finfo(logits.dtype).min)
            y = logits.softmax(dim=-1).to(x.dtype) @ v  # (B, nh, T, hd)
        out: Tensor = self.norm(x + self.projection(y.transpose(1, 2).reshape(batch, tokens, dim)))
        return out


class TextMLP(nn.Module):
    """Linear, GELU (erf), Linear, with its residual and norm: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.text_dim, config.text_mlp_dim)
        self.fc2 = Linear(config.text_mlp_dim, config.text_dim)
        self.norm = nn.LayerNorm(config.text_dim, eps=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.fc2(F.gelu(self.fc1(x))))
        return out


class BertLayer(nn.Module):
    """A post-norm transformer layer: x (B, T, C), attended (B, T) bool -> (B, T, C)."""

    def __init__(self, config: GLIPConfig, limit: float | None = None) -> None:
        super().__init__()
        self.attention = TextAttention(config, limit)
        self.mlp = TextMLP(config)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.attention(x, attended))
        return out


class TextEncoder(nn.Module):
    """BERT: ids (B, T) int64, attended (B, T) bool -> TextFeatures of (B, T, C)."""

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.text_layers))

    def forward(self, input_ids: Tensor, attended: Tensor) -> TextFeatures:
        x: Tensor = self.embeddings(input_ids)
        for layer in self.layers:
            x = layer(x, attended)
        return TextFeatures(hidden=x, embedded=x * attended.unsqueeze(-1).to(x.dtype))
