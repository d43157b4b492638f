"""The example of docs/new-model.md: the text encoder of CLIP as OpenAI wrote it, and as the package transformers does.

    python scripts/new_model.py clip    # clip/openai.safetensors and clip/transformers.safetensors, random weights

Runs where torch, safetensors and transformers are installed; `converter` need not be.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, LENGTH, WORDS = 64, 4, 3, 16, 99  # of CLIP ViT-B/32: 512, 8, 12, 77, 49408


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """One residual block. (B, L, WIDTH) in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, 4 * WIDTH))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * WIDTH, WIDTH))
        self.ln_2 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        future = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype).triu(1)
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, need_weights=False, attn_mask=future)[0]
        return x + self.mlp(self.ln_2(x))


class OpenAIText(nn.Module):
    """The text encoder with the names of https://github.com/openai/CLIP/blob/main/clip/model.py, in a small size."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.token_embedding = nn.Embedding(WORDS, WIDTH)
        self.positional_embedding = nn.Parameter(torch.empty(LENGTH, WIDTH))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.empty(WIDTH, WIDTH))

    def forward(self, text: Tensor) -> Tensor:
        """Tokens (B, LENGTH), of which the largest ends the text -> embeddings (B, WIDTH)."""
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(self.transformer.resblocks(x))
        return x[torch.arange(len(x)), text.argmax(dim=-1)] @ self.text_projection


def transformers_text() -> nn.Module:
    """CLIPTextModelWithProjection of the same size."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        bos_token_id=WORDS - 2,
        eos_token_id=WORDS - 1,
        attn_implementation="sdpa",  # the eager one computes the softmax in float32
    )
    return CLIPTextModelWithProjection(config)


def texts() -> Tensor:
    """Four random texts (4, LENGTH), each with its end at another place."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, WORDS - 2, (4, LENGTH), generator=generator)
    for row, end in enumerate((5, 9, 12, LENGTH - 1)):
        tokens[row, end] = WORDS - 1
    return tokens


def write(folder: Path) -> None:
    """Random weights for both models; every tensor differs from every other, norms and biases too."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model, seed in (("openai", OpenAIText(), 0), ("transformers", transformers_text(), 1)):
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for key, tensor in model.state_dict().items():
            scale = 0.05 if tensor.ndim > 1 else 0.2
            # one-dimensional and called weight: a norm, which multiplies
            start = 1.0 if tensor.ndim == 1 and key.endswith("weight") else 0.0
            weights[key] = start + scale * torch.randn(tensor.shape, generator=generator)
        save_file(weights, folder / f"{name}.safetensors")
        print(f"written: {folder / name}.safetensors, {len(weights)} tensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write both models to")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
