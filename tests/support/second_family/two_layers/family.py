"""The least that a family offers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from converter.checkpoint import Checkpoint
from converter.mapping.spec import Config
from converter.parity.family import Family, Inputs
from converter.writing.records import read_record


class TwoLayers(nn.Module):
    """x (B, 3) -> (B, 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x.to(self.first.weight.dtype))))
        return out


class TwoLayersFamily(Family[TwoLayers]):
    table = "two-layers-original"

    def build(self, config: Config) -> TwoLayers:
        return TwoLayers(int(str(config["width"])))

    def load(self, path: Path, checkpoint: Checkpoint) -> TwoLayers:
        model = self.build(read_record(path, checkpoint, "config")["config"])
        model.load_state_dict({name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.tensors})
        return model.eval()

    def config(self, model: TwoLayers) -> Config:
        return {"width": model.width}

    def sample_inputs(self, config: Config) -> Inputs:
        return Inputs({"x": torch.linspace(-1, 1, 6).view(2, 3)})


FAMILY = TwoLayersFamily()
