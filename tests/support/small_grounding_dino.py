"""A small Grounding DINO with random weights, as a folder that `convert` could have written."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GroundingDinoForObjectDetection

from converter.grounding_dino.family import FAMILY
from converter.mapping.load import hub_table
from converter.mapping.spec import load_spec
from converter.writing.ledger import to_json

SPEC = "transformers-grounding-dino"
SIZES: dict[str, Any] = {
    "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4, "mlp_ratio": 2,
    "patch_size": 4,
    "vocab_size": 30522, "text_dim": 16, "text_layers": 1, "text_heads": 2, "text_mlp_dim": 32, "max_positions": 512,
    "type_vocab_size": 2, "channels": 32, "levels": 4, "encoder_layers": 1, "decoder_layers": 2, "heads": 4,
    "points": 2, "ffn_dim": 64, "queries": 30,
}  # fmt: skip
# of pictures: as full size takes seconds
SIDES = {"shortest_edge": 96, "longest_edge": 160}


@cache
def small_model() -> GroundingDinoForObjectDetection:
    """Its scores spread over 0 to 1, as those of random weights do not by themselves."""
    torch.manual_seed(0)
    model: Any = FAMILY.build(SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def small_folder(folder: Path, sides: dict[str, int] | None = None) -> Path:
    """Weights, configuration, and the files of tokenizer and image processor."""
    folder.mkdir(exist_ok=True)
    small_model().save_pretrained(folder)
    # release 5 saves a norm that no output passes through
    unused = re.compile(r"conv_encoder\.model\.(swin\.)?layernorm")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not unused.search(name)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = hub_table(load_spec(SPEC)).config_document(SIZES, {"float32"})
    record = {"model": SPEC, "variant": "small", "config": SIZES}
    (folder / "config.json").write_bytes(to_json({**(config or {}), **record}))
    for name, content in FAMILY.companions(folder, SIZES, None).files.items():
        (folder / name).write_bytes(content)
    processor = folder / "preprocessor_config.json"
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"size": sides or SIDES}))
    return folder
