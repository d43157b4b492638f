"""A Grounding DINO of some ten thousand parameters with every part of the real one, and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from converter.grounding_dino.family import FAMILY
from converter.parity.subject import Subject

CONFIG: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 2, 2, 1],
    "num_heads": [1, 2, 4, 8],
    "window_size": 3,
    "mlp_ratio": 2,
    "patch_size": 4,
    "vocab_size": 1031,
    "text_dim": 24,
    "text_layers": 2,
    "text_heads": 3,
    "text_mlp_dim": 40,
    "max_positions": 300,
    "type_vocab_size": 2,
    "channels": 32,
    "levels": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "heads": 4,
    "points": 2,
    "ffn_dim": 48,
    "queries": 40,
}


def small_grounding_dino(dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """Weights that keep activations near 1, drawn from a fixed seed."""
    model = FAMILY.build({**CONFIG, **changes}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in FAMILY.parameters(model).items():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            elif "embeddings" in name or "bias_table" in name or "level_embed" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return model.to(dtype)


def subject(dtype: torch.dtype = torch.float64, **changes: Any) -> Subject:
    return Subject(FAMILY, small_grounding_dino(dtype, **changes))


def save(model: nn.Module, folder: Path) -> Path:
    """The weights of a model in float32 under the names of its spec, in a file without any record."""
    tensors = {name: value.detach().float().contiguous() for name, value in FAMILY.parameters(model).items()}
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"
