"""Write a full-size official-format checkpoint of GLIP or Grounding DINO with synthetic weights.

    python scripts/synthetic_checkpoint.py glip-t glip-t.pth            # as the trainer saves it, 3.7 GB
    python scripts/synthetic_checkpoint.py glip-t glip-t.pth --weights-only
    python scripts/synthetic_checkpoint.py groundingdino-swint groundingdino_swint.pth  # as released, 0.7 GB

Names, shapes and dtypes are those of the official state dicts in tests/data/manifests. The values are a
function of name and shape alone, and the recordings in tests/data/captures were made with exactly these: each key
seeds numpy's PCG64 with the first 8 bytes of its SHA-256; the 24 high bits of each draw give a uniform number of zero
mean and unit variance, which a scale per kind of layer keeps activations of a deep network in range with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

MANIFESTS = Path(__file__).resolve().parent.parent / "tests" / "data" / "manifests"
MODELS = ("glip-t-a", "glip-t-b", "glip-t", "glip-l")
GROUNDING_DINO = ("groundingdino-swint", "groundingdino-swinb")

# first match wins: value = offset + scale * unit
_AFFINE = (
    # Grounding DINO's logits are products of these two: without a bias of their own, they are below zero on average
    # and of moderate size by these alone
    (r"^transformer\.decoder\.norm\.bias$", 0.25, 0.1),
    (r"^transformer\.encoder\.text_layers\.5\.norm2\.weight$", 0.1, 0.03),
    (r"^transformer\.encoder\.text_layers\.5\.norm2\.bias$", -0.054, 0.01),
    (r"^transformer\..*_norm\.weight$", 1.0, 0.1),
    (r"^input_proj\.\d\.1\.weight$", 1.0, 0.1),
    (r"^transformer\.level_embed$", 0.0, 0.5),
    (r"^transformer\.tgt_embed\.weight$", 0.0, 1.0),
    (r"\.sampling_offsets\.bias$", 0.0, 2.0),
    (r"\.in_proj_bias$", 0.0, 0.1),
    (r"(^|\.)(norm\d?|bn|LayerNorm|layer_norm_[vl])\.weight$", 1.0, 0.1),
    (r"\.gamma_[vl]$", 0.3, 0.1),
    (r"\.log_scale$", 0.0, 0.1),
    (r"\.bias_lang$", 0.0, 0.5),
    (r"\.bias0$", -2.0, 0.1),
    (r"\.scales\.\d+\.scale$", 1.0, 0.1),
    (r"relative_position_bias_table$", 0.0, 0.5),
    (r"\.word_embeddings\.weight$", 0.0, 1.0),
    (r"\.position_embeddings\.weight$", 0.0, 0.5),
    (r"\.token_type_embeddings\.weight$", 0.0, 0.1),
    (r"\.bias$", 0.0, 0.1),
)
# every other weight: value = gain / sqrt(fan in) * unit
_GAINS = (
    (r"^transformer\.encoder\.fusion_layers\.\d\.attn\.[vl]_proj\.weight$", 1.8),
    (r"^transformer\.encoder\.fusion_layers\.\d\.attn\.out_v_proj\.weight$", 1.5),
    (r"\.ca_text\.in_proj_weight$", 3.0),
    (r"\.in_proj_weight$", 1.2),
    (r"\.out_proj\.weight$", 0.7),
    (r"\.(sampling_offsets|attention_weights)\.weight$", 1.5),
    (r"\.(linear2|output_proj)\.weight$", 0.7),
    (r"^bbox_embed\.\d\.layers\.2\.weight$", 0.4),
    (r"^transformer\.enc_out_bbox_embed\.layers\.2\.weight$", 2.0),
    (r"\.attn\.qkv\.weight$", 1.4),
    (r"\.attn\.proj\.weight$", 0.7),
    (r"\.mlp\.fc2\.weight$", 0.7),
    (r"\.self\.(query|key)\.weight$", 1.4),
    (r"\.self\.value\.weight$", 0.7),
    (r"\.attention\.output\.dense\.weight$", 0.4),
    (r"\.output\.dense\.weight$", 0.5),
    (r"\.b_attn\.attn\.[vl]_proj\.weight$", 1.8),
    (r"\.b_attn\.attn\.out_v_proj\.weight$", 1.5),
    (r"\.AttnConv\.1\.weight$", 4.0),
    (r"\.relu\.fc\.0\.weight$", 4.0),
    (r"\.relu\.fc\.2\.weight$", 2.0),
    (r"\.offset\.weight$", 1.5),
    (r"\.bbox_pred\.weight$", 3.0),
    (r"\.centerness\.weight$", 2.0),
    (r"\.top_blocks\.p7\.weight$", 1.4),
    (r"\.dot_product_projection_text\.weight$", 8.0),
    (r"\.weight$", 1.0),
)


def manifest(model: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(key, shape, dtype) of every tensor of an official state dict, in its order, `module.` first."""
    content = json.loads((MANIFESTS / f"{model}.json").read_text())
    return [(key, tuple(shape), dtype) for key, shape, dtype in content["tensors"]]


def synthetic_tensor(key: str, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    """The value of one tensor; buffers get what the official constructors compute."""
    key = first_name(key.removeprefix("module."))
    if key.endswith("position_ids"):
        return np.arange(shape[-1], dtype=dtype).reshape(shape)
    if key.endswith("relative_position_index"):
        side = math.isqrt(shape[0])
        y, x = np.divmod(np.arange(side * side), side)
        index = (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
        return index.astype(dtype)
    if level := re.search(r"cell_anchors\.(\d+)$", key):
        center, half = ((8 << int(level[1])) - 1) / 2, ((64 << int(level[1])) - 1) / 2
        return np.array([[center - half, center - half, center + half, center + half]], dtype=dtype)
    offset, scale = _scale(key, shape)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    uniform = (np.random.PCG64(seed).random_raw(math.prod(shape)) >> np.uint64(40)) * 2.0**-24
    return (offset + scale * ((2.0 * uniform - 1.0) * math.sqrt(3.0))).astype(dtype).reshape(shape)


def first_name(key: str) -> str:
    """Grounding DINO's decoder has one box head under twelve names: the first of these, for any other key itself."""
    return re.sub(r"^(transformer\.decoder\.)?bbox_embed\.\d\.", "bbox_embed.0.", key)


def _scale(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    for pattern, offset, scale in _AFFINE:
        if re.search(pattern, key):
            return offset, scale
    gain = next(gain for pattern, gain in _GAINS if re.search(pattern, key))
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


def state_dict(model: str) -> OrderedDict[str, torch.Tensor]:
    """The whole official state dict of `model`."""
    made: dict[str, torch.Tensor] = {}  # names of one module share its memory, as in the released files
    for key, shape, dtype in manifest(model):
        if first_name(key.removeprefix("module.")) not in made:
            made[first_name(key.removeprefix("module."))] = torch.from_numpy(synthetic_tensor(key, shape, dtype))
    return OrderedDict((key, made[first_name(key.removeprefix("module."))]) for key, _, _ in manifest(model))


def trainer_checkpoint(weights: OrderedDict[str, torch.Tensor]) -> dict[str, Any]:
    """What the official trainer saves: beside the weights their moving average, AdamW's two moments, a scheduler."""
    moments = {
        number: {"step": 1000, "exp_avg": tensor * 0.01, "exp_avg_sq": tensor * tensor}
        for number, tensor in enumerate(t for t in weights.values() if t.is_floating_point())
    }
    groups = [{"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05, "params": list(moments)}]
    averaged = OrderedDict((k, t * 0.999 if t.is_floating_point() else t.clone()) for k, t in weights.items())
    return {
        "model": weights,
        "optimizer": {"state": moments, "param_groups": groups},
        "scheduler": {"milestones": [0.67, 0.89], "gamma": 0.1, "last_epoch": 1000, "_step_count": 1001},
        "iteration": 1000,
        "model_ema": averaged,
    }


def save_as_if_on_gpu(content: object, path: Path) -> None:
    """`torch.save`, with the location tags that storages of a training GPU carry."""
    torch.serialization.register_package(-1, lambda storage: "cuda:0", lambda storage, location: None)
    try:
        torch.save(content, path)
    finally:
        torch.serialization._package_registry.pop(0)


def write_checkpoint(model: str, path: Path, *, weights_only: bool) -> None:
    """Write the checkpoint of `model`, whole or not at all."""
    weights = state_dict(model)
    partial = path.with_name(f"{path.name}.partial")
    # Grounding DINO is released without what its trainer had beside the weights
    alone = weights_only or model in GROUNDING_DINO
    save_as_if_on_gpu({"model": weights} if alone else trainer_checkpoint(weights), partial)
    partial.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", choices=(*MODELS, *GROUNDING_DINO))
    parser.add_argument("path", type=Path)
    parser.add_argument("--weights-only", action="store_true", help="no optimizer and no moving average")
    arguments = parser.parse_args()
    write_checkpoint(arguments.model, arguments.path, weights_only=arguments.weights_only)


if __name__ == "__main__":
    main()
