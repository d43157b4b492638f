"""Captures of the small model itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converter.glip import GLIP
from converter.glip.family import ANCHORS
from converter.mapping.load import load_table
from converter.parity.capture import Capture, load_capture, write_capture
from converter.parity.taps import collect
from tests.support.small_glip import random_inputs, small_glip

SIZES = [[75, 101], [60, 90]]
POSITIVE_MAP = {1: [1], 2: [3, 4, 5]}
FACTS: dict[str, Any] = {
    "name": "small",
    "model": "small",
    "dtype": "float64",
    "captions": ["", ""],
    "image_sizes_hw": SIZES,
    "positive_map_label_to_token": {str(label): tokens for label, tokens in POSITIVE_MAP.items()},
}


def activations(model: GLIP) -> dict[str, Tensor]:
    """All inputs, activations and detections, under the official names."""
    images, ids, mask = random_inputs()
    outputs = []
    taps = load_table("glip-official").bind(asdict(model.config)).taps
    with torch.no_grad():
        found = collect(model, taps, lambda: outputs.append(model(images, ids, mask)))
        out = outputs[0]
        detections = model.detect(out, SIZES, POSITIVE_MAP)
    found |= {f"{ANCHORS}{level}": anchors for level, anchors in enumerate(model.anchors(out))}
    for image, of_image in enumerate(detections):
        found |= {f"detections.{image}.{field}": value for field, value in of_image._asdict().items()}
    inputs = {"input.images": images, "input.input_ids": ids, "input.attention_mask": mask}
    # a storage of its own for each, as safetensors want it
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in (found | inputs).items()}


def own_errors(exact: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """The relative error of each activation."""
    return {
        name: float((other[name].double() - exact[name]).norm() / exact[name].norm())
        for name in exact
        if not name.startswith(("input.", "detections."))
    }


def write(path: Path, *, fusion: bool = True, compact: bool = False) -> Path:
    """The capture of `small_glip` in float64, with its errors in float32 and bfloat16."""
    exact = activations(small_glip(fusion=fusion))
    errors = {
        str(dtype).removeprefix("torch."): own_errors(exact, activations(small_glip(dtype, fusion=fusion)))
        for dtype in (torch.float32, torch.bfloat16)
    }
    write_capture(path, exact, {**FACTS, "errors": errors}, compact=compact)
    return path


def small_capture(folder: Path, *, fusion: bool = True, compact: bool = False) -> Capture:
    return load_capture(write(folder / "small.safetensors", fusion=fusion, compact=compact))
