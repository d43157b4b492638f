"""What parity, publishing and the command line use of Grounding DINO. Torch is imported where it is needed alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from converter.grounding_dino.detecting import Detecting
from converter.grounding_dino.needs import needed
from converter.mapping.load import hub_table
from converter.mapping.spec import Config, load_spec
from converter.parity.family import Inputs

if TYPE_CHECKING:
    from torch import nn

    from converter.checkpoint import Checkpoint

SPEC = "transformers-grounding-dino"


class GroundingDinoFamily(Detecting):
    """All Grounding DINO models."""

    table = "groundingdino-official"

    def build(self, config: Config) -> nn.Module:
        needed("Grounding DINO")
        from transformers import GroundingDinoForObjectDetection

        model: Any = GroundingDinoForObjectDetection
        return cast("nn.Module", model(self._config(config)).eval())

    def load(self, path: Path, checkpoint: Checkpoint) -> nn.Module:
        needed("Grounding DINO")
        import torch
        from transformers import GroundingDinoForObjectDetection

        from converter.writing.records import read_record

        config = self._config(read_record(path, checkpoint, "config")["config"])
        state = {name: torch.from_numpy(checkpoint.read(name).copy()).float() for name in checkpoint.tensors}
        model: Any = GroundingDinoForObjectDetection
        return cast("nn.Module", model.from_pretrained(None, config=config, state_dict=state).eval())

    def config(self, model: nn.Module) -> Config:
        raise NotImplementedError

    def sample_inputs(self, config: Config) -> Inputs:
        raise NotImplementedError

    def _config(self, config: Config) -> Any:
        from transformers import GroundingDinoConfig

        sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
        return GroundingDinoConfig.from_dict(hub_table(load_spec(SPEC)).config_document(sizes, {"float32"}) or {})


FAMILY = GroundingDinoFamily()
