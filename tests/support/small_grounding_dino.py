"""A small Grounding DINO with random weights, as a folder that `convert` could have written."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from converter.grounding_dino.family import FAMILY
from converter.mapping.load import hub_table
from converter.mapping.spec import load_spec
from converter.writing.ledger import to_json

SPEC = "transformers-grounding-dino"
SIZES: dict[str, Any] = {
    "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4, "mlp_ratio": 2,
    "patch_size": 4, "vocab_size": 30522, "text_dim": 16, "text_layers": 1, "text_heads": 2, "text_mlp_dim": 32,
    "max_positions": 512, "type_vocab_size": 2, "channels": 32, "levels": 4, "encoder_layers": 1, "decoder_layers": 2,
    "heads": 4, "points": 2, "ffn_dim": 64, "queries": 30,
}  # fmt: skip
# of pictures: as full size takes seconds
SIDES = {"shortest_edge": 96, "longest_edge": 160}


# MM-Grounding-DINO, of which transformers has a class of its own
MM = "transformers-mm-grounding-dino"
OF: dict[str, dict[str, Any]] = {SPEC: SIZES, MM: {**SIZES, "maps": (2, 3, 4)}}


@cache
def small_model(spec: str = SPEC) -> Any:
    """Its scores spread over 0 to 1, as those of random weights do not by themselves."""
    torch.manual_seed(0)
    model: Any = FAMILY.build(OF[spec])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def small_folder(folder: Path, sides: dict[str, int] | None = None, spec: str = SPEC) -> Path:
    """Weights, configuration, and the files of tokenizer and image processor."""
    folder.mkdir(exist_ok=True)
    small_model(spec).save_pretrained(folder)
    config = hub_table(load_spec(spec)).config_document(OF[spec], {"float32"})
    record = {"model": spec, "variant": "small", "config": OF[spec]}
    (folder / "config.json").write_bytes(to_json({**(config or {}), **record}))
    for name, content in FAMILY.companions(folder, OF[spec], None).files.items():
        (folder / name).write_bytes(content)
    processor = folder / "preprocessor_config.json"
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"size": sides or SIDES}))
    return folder
