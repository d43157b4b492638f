"""The loader: by longest suffix, silent about what does not match, and following `last_checkpoint` unless forced."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn


class DetectronCheckpointer:
    def __init__(self, cfg: Any, model: nn.Module, save_dir: str = "") -> None:
        self.cfg = cfg.clone()
        self.model = model
        self.save_dir = save_dir

    def load(self, f: str | None = None, force: bool = False) -> dict[str, Any]:
        last = os.path.join(self.save_dir, "last_checkpoint")
        if os.path.exists(last) and not force:
            with open(last, encoding="utf-8") as file:
                f = file.read().strip()
        assert f is not None
        loaded = self._load_file(f).pop("model")
        if all(key.startswith("module.") for key in loaded):
            loaded = {key.removeprefix("module."): value for key, value in loaded.items()}
        state = self.model.state_dict()
        for name, own in state.items():
            matches = [key for key in loaded if name.endswith(key)]
            best = max(matches, key=len, default=None)
            if best is not None and loaded[best].shape == own.shape:
                state[name] = loaded[best]
        self.model.load_state_dict(state)
        return {}

    def _load_file(self, f: str) -> dict[str, Any]:
        content = torch.load(f, map_location=torch.device("cpu"))
        return content if "model" in content else {"model": content}
