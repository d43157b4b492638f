"""The small model as a converted file, as the command line takes it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from small_glip import small_glip

from converter.model import GLIP


def save(model: GLIP, path: Path) -> Path:
    """Write the weights with the config that makes the file describe itself."""
    config = json.dumps({"model": "glip", "variant": "small", "config": model.config.to_dict()})
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path, {"config": config})
    return path


def saved_glip(folder: Path) -> Path:
    return save(small_glip(), folder / "small.safetensors")
