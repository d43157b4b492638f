"""Making a capture of the in-house model, from inputs of another capture or from built-in ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converter.errors import CaptureError
from converter.glip.model.glip import GLIP
from converter.mapping.entries import Tap
from converter.mapping.load import load_table
from converter.parity.capture import INPUTS, Capture
from converter.parity.device import DTYPES, deterministic, settings
from converter.parity.run import ANCHORS
from converter.parity.taps import collect, observe

TABLE = "glip-official"


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a model is captured with: images (B, 3, H, W), ids and mask (B, T), and what detection needs."""

    images: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    image_sizes: Sequence[Sequence[int]]
    positive_map: Mapping[int, Sequence[int]]
    captions: Sequence[str]

    @classmethod
    def of(cls, capture: Capture) -> Inputs:
        """Those of a capture."""
        captions = capture.facts.get("captions", [])
        return cls(*capture.inputs, capture.image_sizes, capture.positive_map, captions)


def synthetic_inputs(vocab_size: int) -> Inputs:
    """Two images of 75x101 and 60x90 pixels and two captions of 13 and 10 tokens: the same on every machine.

    Numbers are raw output of PCG64, which is fixed; as pixels, uniform with mean 0 and variance 1. Odd sizes, since
    padding is where implementations part; padding in one caption, since masks are.
    """
    pixels = np.random.PCG64(0).random_raw(2 * 3 * 75 * 101) >> np.uint64(40)
    images = torch.from_numpy(((2.0 * (pixels * 2.0**-24) - 1.0) * math.sqrt(3.0)).astype("float32")).view(
        2, 3, 75, 101
    )
    images[1, :, 60:] = 0
    images[1, :, :, 90:] = 0
    ids = np.random.PCG64(1).random_raw(2 * 13) % np.uint64(vocab_size - 1) + np.uint64(1)
    mask = torch.ones(2, 13, dtype=torch.int64)
    mask[1, 10:] = 0
    return Inputs(
        images, torch.from_numpy(ids.astype("int64")).view(2, 13) * mask, mask, [[75, 101], [60, 90]],
        {1: [1], 2: [3], 3: [5, 6, 7]}, ["", ""],
    )  # fmt: skip


def variant_of(model: GLIP) -> str:
    """Name of the variant that the model's sizes are those of, `other` if there is none."""
    config = asdict(model.config)
    spec = load_table(TABLE).spec
    decided = {option.field for option in spec.options}  # by the checkpoint, whatever the variant
    for variant in spec.variants:
        if all(config[field] == value for field, value in variant.config.items() if field not in decided):
            return variant.name
    return "other"


def record(
    model: GLIP, inputs: Inputs, name: str, errors: Sequence[str] = ("float32",)
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a capture, as `write_capture` takes them; the model runs in its own dtype.

    `errors`: dtypes in which a copy of the model runs, to record how far it is from this run.
    """
    parameter = next(model.parameters())
    exact = _activations(model, inputs)
    own, of_blocks = {}, {}
    for dtype in errors:
        other = _copy(model, DTYPES[dtype])
        found = _activations(other, inputs)
        own[dtype] = {key: _error(found[key], exact[key]) for key in exact if not key.startswith("detections.")}
        of_blocks[dtype] = _block_errors(other, inputs, exact)
    for dtype, errors_of_dtype in own.items():
        if unsound := next((key for key, error in errors_of_dtype.items() if not math.isfinite(error)), None):
            raise CaptureError(
                f"{unsound!r} is not finite in {dtype}, so its own error cannot be recorded; leave {dtype} "
                "out of --errors"
            )
    facts = {
        "name": name,
        "model": variant_of(model),
        "table": TABLE,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        "weights": "as converted, run by the in-house model",
        "tools": {key: str(value) for key, value in settings(parameter).items()},
        "captions": list(inputs.captions),
        "image_sizes_hw": [list(size) for size in inputs.image_sizes],
        "positive_map_label_to_token": {str(label): list(tokens) for label, tokens in inputs.positive_map.items()},
        "errors": own,
        "injected_errors": of_blocks,
    }
    given = dict(zip(INPUTS, (inputs.images, inputs.input_ids, inputs.attention_mask), strict=True))
    return exact | given, facts


def _activations(model: GLIP, inputs: Inputs) -> dict[str, Tensor]:
    """Everything that is tapped, anchors and detections, on the CPU, each in memory of its own."""
    device = next(model.parameters()).device
    outputs = []

    def run() -> None:
        outputs.append(model(*(x.to(device) for x in (inputs.images, inputs.input_ids, inputs.attention_mask))))

    with torch.inference_mode(), deterministic():
        found = collect(model, load_table(TABLE).bind(asdict(model.config)).taps, run)
        (out,) = outputs
        found |= {f"{ANCHORS}{level}": anchors for level, anchors in enumerate(model.anchors(out))}
        for image, detections in enumerate(model.detect(out, inputs.image_sizes, inputs.positive_map)):
            found |= {f"detections.{image}.{field}": value for field, value in detections._asdict().items()}
        return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in found.items()}


def _block_errors(model: GLIP, inputs: Inputs, exact: Mapping[str, Tensor]) -> dict[str, float]:
    """The error of each tapped activation when everything before it is exact."""
    errors: dict[str, float] = {}

    def inject(tap: Tap, value: Tensor) -> Tensor | None:
        errors[tap.source] = _error(value.cpu(), exact[tap.source])
        return exact[tap.source].to(value) if tap.target else None

    device = next(model.parameters()).device
    taps = load_table(TABLE).bind(asdict(model.config)).taps
    with torch.inference_mode(), deterministic(), observe(model, taps, inject):
        model(*(x.to(device) for x in (inputs.images, inputs.input_ids, inputs.attention_mask)))
    return errors


def _error(found: Tensor, exact: Tensor) -> float:
    """Relative, in Frobenius norm."""
    return float((found.double() - exact.double()).norm()) / (float(exact.double().norm()) or 1.0)


def _copy(model: GLIP, dtype: torch.dtype) -> GLIP:
    """The same weights in another dtype; the model itself is left as it is."""
    parameter = next(model.parameters())
    with torch.device("meta"):
        other = GLIP(model.config)
    other.to_empty(device=parameter.device)
    other.load_state_dict(model.state_dict())
    return other.to(dtype).eval()
