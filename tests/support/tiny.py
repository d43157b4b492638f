"""A target of a few numbers, and a table that uses every op on the way to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

SPEC = {
    "kind": "spec",
    "name": "tiny",
    "title": "A target for tests",
    "config": {"layers": "number of layers", "width": "width of each"},
    "variants": {
        "tiny-2": {"title": "two layers", "config": {"layers": 2, "width": 4}},
        "tiny-3": {"title": "three layers", "config": {"layers": 3, "width": 4}},
    },
    "tensors": [
        {"name": "layers.{i}.qkv", "each": {"i": "layers"}, "weight": ["3*width", "width"], "bias": ["3*width"]},
        {"name": "layers.{i}.gate.weight", "each": {"i": "layers"}, "shape": ["width", 2]},
        {"name": "layers.{i}.up.weight", "each": {"i": "layers"}, "shape": ["width", 2]},
        {"name": "merge.weight", "shape": ["width", "4*width"]},
        {"name": "embed.weight", "shape": [6, "width"]},
        {"name": "kernel.weight", "shape": ["width", 3, 2, 2]},
        {"name": "order.weight", "shape": [3]},
        {"name": "half.weight", "shape": [5]},
        {"name": "scalar", "shape": []},
    ],
}
TABLE = {
    "kind": "table",
    "name": "tiny-table",
    "title": "A table for tests",
    "target": "tiny",
    "prefixes": ["module."],
    "words": {"param": ["weight", "bias"]},
    "rules": [
        {
            "source": ["blocks.{i + 1}.q.{param}", "blocks.{i + 1}.k.{param}", "blocks.{i + 1}.v.{param}"],
            "target": "layers.{i}.qkv.{param}",
            "ops": [{"op": "concat", "axis": 0, "sizes": ["width", "width", "width"]}],
        },
        {
            "source": "blocks.{i + 1}.gate_up.weight",
            "target": ["layers.{i}.gate.weight", "layers.{i}.up.weight"],
            "ops": [{"op": "split", "axis": 1, "sizes": [2, 2]}],
        },
        {
            "source": "merge.weight",
            "target": "merge.weight",
            "ops": [{"op": "permute_blocks", "axis": 1, "blocks": [4, "width"], "order": [1, 0]}],
        },
        {"source": "embed.weight", "target": "embed.weight", "ops": [{"op": "transpose", "axes": [1, 0]}]},
        {
            "source": "kernel.weight",
            "target": "kernel.weight",
            "ops": [{"op": "reshape", "from": ["width", 12], "to": ["width", 3, 2, 2]}],
        },
        {
            "source": "order.weight",
            "target": "order.weight",
            "ops": [{"op": "reorder", "axis": 0, "index": [2, 0, 1]}],
        },
        {
            "source": "half.weight",
            "target": "half.weight",
            "ops": [{"op": "cast", "from": "float16", "to": "float32"}],
        },
        {"source": "scalar", "target": "scalar"},
    ],
    "ignore": [
        {
            "source": "position_ids",
            "reason": "numbers",
            "rebuild": {"as": "numbers", "count": 7},
            "optional": "not every file has it",
        },
        {"source": "training.{param}", "reason": "training only", "rebuild": None, "optional": "seldom there"},
    ],
}


def write_table(folder: Path) -> Path:
    """The table and its spec as files; the path of the table."""
    (folder / "tiny.json").write_text(json.dumps(SPEC))
    path = folder / "tiny-table.json"
    path.write_text(json.dumps(TABLE))
    return path


def tiny_weights(layers: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict that the table fits, among it a transposed view, a shared storage and awkward values."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    weights: dict[str, torch.Tensor] = {}
    for i in range(1, layers + 1):
        shared = normal(2, 4)
        for number, part in enumerate("qkv"):
            weights[f"blocks.{i}.{part}.weight"] = normal(4, 4).t() if part == "k" else normal(4, 4)
            weights[f"blocks.{i}.{part}.bias"] = shared[number % 2]
        weights[f"blocks.{i}.gate_up.weight"] = normal(4, 4)
    weights["merge.weight"] = normal(4, 16)
    weights["embed.weight"] = normal(4, 6)
    weights["kernel.weight"] = normal(4, 12)
    weights["order.weight"] = torch.tensor([float("nan"), float("inf"), -0.0])
    weights["half.weight"] = torch.tensor([1.0, -0.0, 65504.0, 6e-8, float("nan")], dtype=torch.float16)
    weights["scalar"] = torch.tensor(0.1)
    weights["position_ids"] = torch.arange(7)[None]
    weights["training.weight"] = normal(3)
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def expected_target(weights: dict[str, torch.Tensor], layers: int = 2) -> dict[str, np.ndarray]:
    """What the table makes of `weights`, written out by hand."""
    source = {name.removeprefix("module."): tensor.numpy() for name, tensor in weights.items()}
    target = {}
    for i in range(layers):
        for param in ("weight", "bias"):
            parts = [source[f"blocks.{i + 1}.{part}.{param}"] for part in "qkv"]
            target[f"layers.{i}.qkv.{param}"] = np.concatenate(parts)
        target[f"layers.{i}.gate.weight"] = source[f"blocks.{i + 1}.gate_up.weight"][:, :2]
        target[f"layers.{i}.up.weight"] = source[f"blocks.{i + 1}.gate_up.weight"][:, 2:]
    target["merge.weight"] = source["merge.weight"].reshape(4, 4, 4).swapaxes(1, 2).reshape(4, 16)
    target["embed.weight"] = source["embed.weight"].T
    target["kernel.weight"] = source["kernel.weight"].reshape(4, 3, 2, 2)
    target["order.weight"] = source["order.weight"][[2, 0, 1]]
    target["half.weight"] = source["half.weight"].astype(np.float32)
    target["scalar"] = source["scalar"]
    return target
