"""A small GLIP, exported, and a capture of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from click.testing import CliRunner, Result

from converter.cli import main
from converter.glip import GLIP
from converter.glip.family import FAMILY
from converter.mapping.load import load_table
from converter.parity.capture import write_capture
from converter.parity.family import Inputs
from converter.parity.record import record
from tests.support.saved_glip import save
from tests.support.small_glip import random_inputs, small_glip, subject

SMALLER: dict[str, Any] = {"depths": [1, 2, 1, 1], "text_layers": 1, "head_blocks": 1}


def run(*arguments: object) -> Result:
    """The command line."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def capture(model: GLIP, path: Path, height: int, width: int, tokens: int) -> Path:
    """Of a float64 model, on two pictures, of which the second is padded."""
    images, ids, mask = random_inputs(2, height, width, tokens)
    sizes = [[height, width], [height - 9, width - 20]]
    facts = {"captions": ["", ""], "image_sizes_hw": sizes, "positive_map_label_to_token": {"1": [1], "2": [3, 4]}}
    inputs = Inputs({"images": images, "input_ids": ids, "attention_mask": mask}, facts)
    write_capture(path, *record(subject(model), inputs, path.stem), compact=False)
    return path


class Small(NamedTuple):
    """The weights, the model's sizes, the graph that was made of it, a capture, what `export` said, and the names of
    all activations."""

    config: dict[str, Any]
    weights: Path
    graph: Path
    capture: Path
    said: dict[str, Any]
    taps: list[str]


def exported(folder: Path, *options: object) -> Small:
    """A small model, exported with such options."""
    model = small_glip(**SMALLER)
    weights = save(small_glip(torch.float32, **SMALLER), folder / "small.safetensors")
    result = run("export", weights, folder / "small.onnx", *options, "--json", "-q")
    assert result.exit_code == 0, result.output
    taps = load_table(FAMILY.table).bind(asdict(model.config)).taps
    return Small(
        model.config.to_dict(),
        weights,
        folder / "small.onnx",
        capture(model, folder / "capture.safetensors", 96, 160, 13),
        json.loads(result.stdout),
        [tap.source for tap in taps],
    )
