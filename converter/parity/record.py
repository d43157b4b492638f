"""Making a capture of a model that was converted, from inputs of another capture or from built-in ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from converter.errors import CaptureError
from converter.mapping.entries import Tap
from converter.mapping.load import load_table
from converter.parity.capture import DETECTIONS, INPUT, Capture
from converter.parity.device import DTYPES, deterministic, settings
from converter.parity.family import Inputs
from converter.parity.subject import Subject
from converter.parity.taps import collect, observe

# what a capture says of its inputs, and no run decides
_OF_INPUTS = ("captions", "image_sizes_hw", "positive_map_label_to_token")


def inputs_of(capture: Capture) -> Inputs:
    """Those that a capture was made with."""
    return Inputs(capture.inputs, {key: capture.facts[key] for key in _OF_INPUTS if key in capture.facts})


def variant_of(subject: Subject) -> str:
    """Name of the variant that the model's sizes are those of, `other` if there is none."""
    spec = load_table(subject.family.table).spec
    decided = {option.field for option in spec.options}  # by the checkpoint, whatever the variant
    for variant in spec.variants:
        if all(subject.config[field] == value for field, value in variant.config.items() if field not in decided):
            return variant.name
    return "other"


def record(
    subject: Subject, inputs: Inputs, name: str, errors: Sequence[str] = ("float32",)
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a capture, as `write_capture` takes them; the model runs in its own dtype.

    `errors`: dtypes in which a copy of the model runs, to record how far it is from this run.
    """
    exact = _activations(subject, inputs)
    own, of_blocks = {}, {}
    for dtype in errors:
        other = _copy(subject, DTYPES[dtype])
        found = _activations(other, inputs)
        own[dtype] = {key: _error(found[key], exact[key]) for key in exact if not key.startswith(DETECTIONS)}
        of_blocks[dtype] = _block_errors(other, inputs, exact)
    for dtype, errors_of_dtype in own.items():
        if unsound := next((key for key, error in errors_of_dtype.items() if not math.isfinite(error)), None):
            raise CaptureError(
                f"{unsound!r} is not finite in {dtype}, so its own error cannot be recorded; leave {dtype} "
                "out of --errors"
            )
    facts = {
        "name": name,
        "model": variant_of(subject),
        "table": subject.family.table,
        "dtype": subject.dtype,
        "device": subject.device,
        "weights": "as converted, run by the in-house model",
        "tools": {key: str(value) for key, value in settings(subject.parameter).items()},
        **inputs.facts,
        "errors": own,
        "injected_errors": of_blocks,
    }
    return exact | {f"{INPUT}{key}": value for key, value in inputs.tensors.items()}, facts


def _taps(subject: Subject) -> Sequence[Tap]:
    return load_table(subject.family.table).bind(subject.config).taps


def _activations(subject: Subject, inputs: Inputs) -> dict[str, Tensor]:
    """Everything that is tapped, derived or detected, on the CPU, each in memory of its own."""
    outputs = []
    with torch.inference_mode(), deterministic():
        found = collect(subject.model, _taps(subject), lambda: outputs.append(subject.run(inputs.tensors)))
        (out,) = outputs
        found |= {name: entry.compute(out) for name, entry in subject.family.derived(subject.model).items()}
        for image, detections in enumerate(subject.family.detect(subject.model, out, inputs.facts)):
            found |= {f"{DETECTIONS}{image}.{part}": value for part, value in detections._asdict().items()}
        return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in found.items()}


def _block_errors(subject: Subject, inputs: Inputs, exact: Mapping[str, Tensor]) -> dict[str, float]:
    """The error of each tapped activation when everything before it is exact."""
    errors: dict[str, float] = {}

    def inject(tap: Tap, value: Tensor) -> Tensor | None:
        errors[tap.source] = _error(value.cpu(), exact[tap.source])
        return exact[tap.source].to(value) if tap.target else None

    with torch.inference_mode(), deterministic(), observe(subject.model, _taps(subject), inject):
        subject.run(inputs.tensors)
    return errors


def _error(found: Tensor, exact: Tensor) -> float:
    """Relative, in Frobenius norm."""
    return float((found.double() - exact.double()).norm()) / (float(exact.double().norm()) or 1.0)


def _copy(subject: Subject, dtype: torch.dtype) -> Subject:
    """The same weights in another dtype; the model itself is left as it is."""
    return Subject(subject.family, deepcopy(subject.model).to(dtype).eval())
