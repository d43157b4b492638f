"""What parity, publishing and the command line use of Grounding DINO. Torch and transformers are imported inside the
functions that need them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.errors import ModelError
from converter.grounding_dino.detecting import Detecting
from converter.grounding_dino.needs import needed
from converter.mapping.spec import Config
from converter.parity.family import Derived, Inputs, Mistake

if TYPE_CHECKING:
    from torch import Tensor, nn

    from converter.checkpoint import Checkpoint
    from converter.grounding_dino.outputs import Output
    from converter.parity.capture import Capture, Detections

# two captions of three phrases and of two, of ids that any vocabulary of a few words has; the second is padded
CAPTIONS = ((101, 7, 1012, 8, 9, 1012, 10, 11, 12, 1012, 102), (101, 13, 14, 1012, 15, 1012, 102))

COMPARED = ("inverse sigmoid", "text masks")  # the switches of switches.py, which needs torch


class GroundingDinoFamily(Detecting):
    """Grounding DINO, which transformers' own class runs."""

    table = "groundingdino-official"

    def build(self, config: Config) -> nn.Module:
        needed("Grounding DINO")
        from converter.grounding_dino.model import made

        return made(config)

    def load(self, path: Path, checkpoint: Checkpoint) -> nn.Module:
        needed("Grounding DINO")
        from converter.grounding_dino.model import loaded
        from converter.writing.records import read_record

        return loaded(path, checkpoint, read_record(path, checkpoint, "config")["config"])

    def config(self, model: nn.Module) -> Config:
        from converter.grounding_dino.model import sizes_of

        return sizes_of(model)

    def parameters(self, model: nn.Module) -> Mapping[str, nn.Parameter]:
        from converter.grounding_dino.model import named

        return named(model)

    def comparing(self, model: nn.Module) -> AbstractContextManager[None]:
        """Where transformers' class computes otherwise than the official code, it computes as that does."""
        from converter.grounding_dino.switches import as_official

        return as_official(model)

    def settings(self) -> Mapping[str, Any]:
        """And which differences are set aside where a model is compared: a certificate says so."""
        return {**super().settings(), "compared_as_official_in": list(COMPARED)}

    def run(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Output:
        """In less than float64 the queries are made of the proposals that the capture says, where it says it."""
        import torch

        from converter.grounding_dino.outputs import SELECTED, output_of
        from converter.grounding_dino.switches import selecting

        dtype = next(model.parameters()).dtype
        given = {name: value for name, value in inputs.items() if name != SELECTED}
        given["pixel_values"] = given["pixel_values"].to(dtype)
        with selecting(None if dtype == torch.float64 else inputs.get(SELECTED)):
            return output_of(model(**given))

    def sample_inputs(self, config: Config) -> Inputs:
        """Two pictures, the second narrower and less high, and two captions of 11 and 7 tokens.

        The numbers are raw output of PCG64, which is the same in every numpy; pixels are uniform with mean 0 and
        variance 1. The pictures have as many cells as the model has queries, or more.
        """
        import torch

        side = _side(int(str(config["queries"])), int(str(config["patch_size"])), int(str(config["levels"])))
        height, width = side - 3, side + 5
        pixels = np.random.PCG64(0).random_raw(2 * 3 * height * width) >> np.uint64(40)
        values = ((2.0 * (pixels * 2.0**-24) - 1.0) * math.sqrt(3.0)).astype("float32")
        pictures = torch.from_numpy(values).view(2, 3, height, width)
        mask = torch.ones(2, height, width, dtype=torch.int64)
        mask[1, height - 9 :] = 0
        mask[1, :, width - 21 :] = 0
        words = int(str(config["vocab_size"])) - 1
        ids = torch.zeros(2, len(CAPTIONS[0]), dtype=torch.int64)
        for row, caption in zip(ids, CAPTIONS, strict=True):
            row[: len(caption)] = torch.tensor([min(token, words) for token in caption])
        phrases = [[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3], [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]]
        return Inputs(
            {
                "pixel_values": pictures * mask[:, None],
                "pixel_mask": mask,
                "input_ids": ids,
                "attention_mask": (ids != 0).long(),
                "token_type_ids": torch.zeros_like(ids),
            },
            {
                "captions": ["", ""],
                "image_sizes_hw": [[height, width], [height - 9, width - 21]],
                "phrases_of_tokens": phrases,
                "score_threshold": 0.35,
            },
        )

    def inputs(self, capture: Capture) -> Mapping[str, Tensor]:
        from converter.grounding_dino.outputs import inputs_of

        return inputs_of(capture)

    def derived(self, model: nn.Module) -> Mapping[str, Derived]:
        from converter.grounding_dino.outputs import derived_of

        def compute(steps: Sequence[str | int], out: Any) -> Tensor:
            for step in steps:
                out = getattr(out, step) if isinstance(step, str) else out[step]
            found: Tensor = out
            return found

        layers = int(str(self.config(model)["decoder_layers"]))
        return {name: Derived(what, partial(compute, steps)) for name, what, steps in derived_of(layers)}

    def detect(self, model: nn.Module, out: Output, facts: Mapping[str, Any]) -> Sequence[Detections]:
        from converter.grounding_dino.outputs import detections_of

        return detections_of(out, facts)

    def mistakes(self, model: nn.Module) -> Sequence[Mistake]:
        from converter.grounding_dino.mistakes import MISTAKES

        kind = getattr(getattr(model, "config", None), "model_type", "")
        return () if kind.startswith("mm-") else MISTAKES  # whose class has copies of its own of the code

    def heads(self, model: nn.Module) -> Mapping[str, int]:
        config = self.config(model)
        heads, of_stages = int(str(config["heads"])), config["num_heads"]
        if not isinstance(of_stages, list | tuple):
            raise ModelError(f"num_heads: found {of_stages!r}, expected a list")
        found = {}
        for name in self.parameters(model):
            path = name.removesuffix(".weight").split(".")
            if path[-1] in ("query", "key", "value") and "text_backbone" in path:
                found[name] = int(str(config["text_heads"]))
            elif path[-1] in ("query", "key", "value") and "conv_encoder" in path:
                found[name] = int(of_stages[int(path[path.index("layers") + 1])])
            elif "fusion_layer" in path and path[-1].endswith("_proj") and not path[-1].startswith("out"):
                found[name] = heads // 2
            elif path[-1] in ("query", "key", "value"):
                found[name] = heads // 2 if "text_enhancer_layer" in path else heads
            elif path[-1] in ("sampling_offsets", "attention_weights", "value_proj"):
                found[name] = heads
        return {name: count for name, count in found.items() if name.endswith(".weight")}


FAMILY = GroundingDinoFamily()


def _side(queries: int, patch: int, levels: int) -> int:
    """Of a square picture with at least as many cells on all levels as there are queries."""
    side = 16 * patch
    while True:
        sides = [-(-side // patch)]
        for _ in range(levels):
            sides.append(-(-sides[-1] // 2))
        if sum(cells * cells for cells in sides[1:]) > 1.3 * queries:
            return side
        side += 2 * patch
