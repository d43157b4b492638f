"""The small model as a converted file, as the command line takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from converter.checkpoint import open_checkpoint
from converter.checkpoint.hashes import tensor_hashes
from converter.glip import GLIP
from converter.mapping.load import load_table
from converter.writing.ledger import digest_of_checkpoint
from tests.support.small_glip import small_glip


def save(model: GLIP, path: Path) -> Path:
    """Write the weights with the config that makes the file describe itself."""
    config = json.dumps({"model": "glip", "variant": "small", "config": model.config.to_dict()})
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path, {"config": config})
    return path


def saved_glip(folder: Path) -> Path:
    return save(small_glip(), folder / "small.safetensors")


def ledger(weights: Path, **target: Any) -> dict[str, Any]:
    """What `convert` would have written down of these weights."""
    with open_checkpoint(weights) as checkpoint:
        hashes = tensor_hashes(checkpoint)
        digest = digest_of_checkpoint(checkpoint, hashes)
    return {
        "converter": "0.1.0",
        "table": {"name": "glip-official", "sha256": load_table("glip-official").sha256},
        "target": {"name": "glip", "variant": "glip-t", "also": ["glip-t-b", "glip-t-c"]} | target,
        "lossless": True,
        "source": {"layout": "torch-zip", "root": "model", "sha256": "b" * 64},
        "left_out": [{"name": "x", "shape": [1], "reason": "training only"}],
        "left_aside": [],
        "tensors": hashes,
        "sha256": digest,
    }
