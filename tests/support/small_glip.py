"""A GLIP of a few thousand parameters with every part of the real one, random weights and random inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converter.glip import GLIP, GLIPConfig
from converter.glip.family import FAMILY
from converter.parity.subject import Subject

CONFIG: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 2, 2, 1],
    "num_heads": [1, 2, 4, 8],
    "window_size": 3,
    "mlp_ratio": 2,
    "patch_size": 4,
    "channels": 32,
    "vocab_size": 50,
    "text_dim": 24,
    "text_layers": 2,
    "text_heads": 3,
    "text_mlp_dim": 40,
    "max_positions": 256,
    "type_vocab_size": 2,
    "head_blocks": 2,
    "fusion": True,
    "fusion_dim": 48,
    "fusion_heads": 4,
    "prompt_length": 0,
    "anchor_strides": [8, 16, 32, 64, 128],
    "anchor_sizes": [64, 128, 256, 512, 1024],
}


def small_config(**changes: Any) -> GLIPConfig:
    return GLIPConfig.from_dict({**CONFIG, **changes})


def small_glip(dtype: torch.dtype = torch.float64, **changes: Any) -> GLIP:
    """Weights that keep activations near 1, drawn from a fixed seed."""
    model = GLIP(small_config(**changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            if name.endswith("norm.weight") or (".norm" in name and name.endswith("weight")):
                parameter.copy_(1 + 0.1 * noise)
            elif "embeddings" in name or "bias_table" in name or "prompt" in name:
                parameter.copy_(noise)
            elif name == "head.box_scale":
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise * (0.1 if parameter.dim() == 1 else fan_in**-0.5))
    return model.to(dtype)


def subject(model: GLIP) -> Subject:
    """The model as parity takes it."""
    return Subject(FAMILY, model)


def loading(path: Path) -> Callable[[], Subject]:
    """Loads converted weights in float64, as `verify` takes it."""
    return lambda: subject(GLIP.from_pretrained(path).double())


def random_inputs(
    batch: int = 2, height: int = 75, width: int = 101, tokens: int = 13, padding: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """images float32, ids int64, mask int64; the last `padding` tokens of every second caption are padding."""
    generator = torch.Generator().manual_seed(batch * 1000 + tokens)
    images = torch.randn(batch, 3, height, width, generator=generator)
    ids = torch.randint(1, 50, (batch, tokens), generator=generator)
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    if padding:
        mask[1::2, -padding:] = 0
    return images, ids, mask
