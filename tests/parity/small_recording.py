"""A recording of the small model itself, made by the script that records the official code."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from make_recording import record
from safetensors.torch import save_file
from small_glip import random_inputs, small_glip
from torch import Tensor

from converter.mapping.table import load_table
from converter.model import GLIP
from converter.parity.recording import ANCHORS, Recording, load_recording
from converter.parity.taps import collect

SIZES = [[75, 101], [60, 90]]
POSITIVE_MAP = {1: [1], 2: [3, 4, 5]}


def small_capture(model: GLIP) -> dict[str, Tensor]:
    """All inputs, activations and detections, under the official names."""
    images, ids, mask = random_inputs()
    outputs = []
    taps = load_table("glip-official").bind(asdict(model.config)).taps
    with torch.no_grad():
        capture = collect(model, taps, lambda: outputs.append(model(images, ids, mask)))
        out = outputs[0]
        detections = model.detect(out, SIZES, POSITIVE_MAP)
    capture |= {f"{ANCHORS}{level}": anchors for level, anchors in enumerate(model.anchors(out))}
    for image, found in enumerate(detections):
        capture |= {f"detections.{image}.{field}": value for field, value in found._asdict().items()}
    inputs = {"input.images": images, "input.input_ids": ids, "input.attention_mask": mask}
    return {name: value.contiguous() for name, value in (capture | inputs).items()}


def write_recording(path: Path, fusion: bool = True) -> Path:
    exact = small_capture(small_glip(fusion=fusion))
    single = small_capture(small_glip(torch.float32, fusion=fusion))
    errors = {
        name: float((single[name].double() - exact[name]).norm() / exact[name].norm())
        for name in exact
        if not name.startswith(("input.", "detections."))
    }
    settings = {
        "name": "small",
        "model": "small",
        "official_config": "none",
        "dtype": "float64",
        "torch": "any",
        "transformers": "none",
        "captions": ["", ""],
        "image_sizes_hw": SIZES,
        "positive_map_label_to_token": POSITIVE_MAP,
    }
    tensors, metadata = record(exact, settings, errors)
    save_file(tensors, path, metadata)
    return path


def small_recording(folder: Path, fusion: bool = True) -> Recording:
    return load_recording(write_recording(folder / "small.safetensors", fusion))
