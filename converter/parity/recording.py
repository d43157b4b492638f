"""A recording of the official code, and how far the model is from it: per stage, and in what it detects.

A recording is a safetensors file: `input.*` and `detections.I.*` whole, of every stage its probes (float64) under the
official module path, and in the metadata, as JSON under `recording`: settings, captions, and per stage its shape,
its Frobenius norm and the relative error of the official code's own float32 run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converter.errors import ModelError
from converter.mapping.table import load_table
from converter.model import GLIP, Detections, Output
from converter.model.weights import read_header
from converter.parity.probes import distance, probe
from converter.parity.taps import collect

ANCHORS = "rpn.anchor_generator."  # a method of the model and no module, so no tap
TOLERANCES: Mapping[str, Any] = json.loads(Path(__file__).with_name("tolerances.json").read_text(encoding="utf-8"))
_DTYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8"}


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One recorded activation. `norm` and the relative `float32_error` are of the whole tensor."""

    name: str
    shape: tuple[int, ...]
    norm: float
    float32_error: float
    probes: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Inputs as the model takes them, and what the official code made of them in float64.

    `model`: the variant; `table`: the mapping table whose taps translate the names of the stages.
    """

    name: str
    model: str
    table: str
    captions: tuple[str, ...]
    images: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    image_sizes: tuple[tuple[int, int], ...]
    positive_map: Mapping[int, tuple[int, ...]]
    stages: tuple[Stage, ...]
    detections: tuple[Detections, ...]


@dataclass(frozen=True, slots=True)
class StageError:
    """`error`: Frobenius norm of the difference over that of the recorded stage, as is `float32_error`, that of the
    official code's own float32 run; `limit`: what `error` may be in the model's dtype, None where none is set."""

    name: str
    error: float
    float32_error: float
    limit: float | None


@dataclass(frozen=True, slots=True)
class DetectionError:
    """One image. Numbers of detections; whether the labels agree in order; the largest differences of boxes (pixels)
    and scores between detections of the same rank, NaN where the numbers differ."""

    expected: int
    found: int
    labels_agree: bool
    boxes: float
    scores: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model against a recording; `problems` is empty where every tolerance for its dtype is kept."""

    recording: str
    dtype: str
    stages: tuple[StageError, ...]
    detections: tuple[DetectionError, ...]

    @property
    def worst(self) -> StageError:
        """The stage that is farthest off, NaN before any number."""
        return max(self.stages, key=lambda stage: math.inf if math.isnan(stage.error) else stage.error)

    @property
    def problems(self) -> list[str]:
        """One line for each stage and image outside its tolerance."""
        return [
            *_stage_problems(self.stages),
            *_detection_problems(self.detections, TOLERANCES["boxes"].get(self.dtype)),
        ]


def load_recording(path: str | Path) -> Recording:
    """Read a recording. ModelError if the file is damaged or is none."""
    path = Path(path)
    tensors, metadata = read_header(path)
    if "recording" not in metadata:
        raise ModelError(f"{path}: the header's metadata has no 'recording'. scripts/make_recording.py writes them.")
    facts = json.loads(metadata["recording"])

    def tensor(name: str) -> Tensor:
        stored = tensors[name]
        values = np.fromfile(stored.file, _DTYPES[stored.dtype], math.prod(stored.shape), offset=stored.begin)
        return torch.from_numpy(values).view(stored.shape)

    return Recording(
        name=facts["name"],
        model=facts["model"],
        table=facts["table"],
        captions=tuple(facts["captions"]),
        images=tensor("input.images"),
        input_ids=tensor("input.input_ids"),
        attention_mask=tensor("input.attention_mask"),
        image_sizes=tuple((height, width) for height, width in facts["image_sizes"]),
        positive_map={int(label): tuple(tokens) for label, tokens in facts["positive_map"].items()},
        stages=tuple(
            Stage(name, tuple(s["shape"]), s["norm"], s["float32_error"], tensor(name))
            for name, s in facts["stages"].items()
        ),
        detections=tuple(
            Detections(*(tensor(f"detections.{image}.{field}") for field in Detections._fields))
            for image in range(len(facts["image_sizes"]))
        ),
    )


def compare(model: GLIP, recording: Recording) -> Comparison:
    """Run `model` on the recorded inputs, in its own dtype and on its device.

    Stages are compared over all tokens, padding included, so the recorded captions must be as long as what the model
    computes. ModelError if the model lacks a recorded stage, or has it in another shape.
    """
    parameter = next(model.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    taps = load_table(recording.table).bind(asdict(model.config)).taps
    wanted = {stage.name for stage in recording.stages if not stage.name.startswith(ANCHORS)}
    if missing := sorted(wanted - {tap.source for tap in taps}):
        raise ModelError(
            f"recording {recording.name!r}: {recording.table} pairs {len(missing)} of its stages with nothing in this "
            f"model, the first is {missing[0]!r}. It was made with {recording.model}."
        )
    with torch.inference_mode():
        out: Output | None = None

        def run() -> None:
            nonlocal out
            inputs = (recording.images, recording.input_ids, recording.attention_mask)
            out = model(*(value.to(parameter.device) for value in inputs))

        found = collect(model, [tap for tap in taps if tap.source in wanted], run)
        assert out is not None  # collect has called run
        found |= {f"{ANCHORS}{level}": anchors for level, anchors in enumerate(model.anchors(out))}
        detections = model.detect(out, recording.image_sizes, recording.positive_map)
    return Comparison(
        recording.name,
        dtype,
        tuple(_stage_error(stage, found, recording, dtype) for stage in recording.stages),
        tuple(_detection_error(*pair) for pair in zip(recording.detections, detections, strict=True)),
    )


def _stage_error(stage: Stage, found: Mapping[str, Tensor], recording: Recording, dtype: str) -> StageError:
    shape = tuple(found[stage.name].shape)
    if shape != stage.shape:
        raise ModelError(
            f"recording {recording.name!r}: stage {stage.name!r} is {shape} in this model, recorded was {stage.shape}. "
            f"It was made with {recording.model}."
        )
    error = distance(probe(stage.name, found[stage.name]), stage.probes) / (stage.norm or 1.0)
    limit: float | None = None
    if dtype == "float64":
        limit = TOLERANCES["float64"]
    elif dtype == "float32":
        limit = TOLERANCES["float32"] * _expected_float32_error(stage, recording)
    return StageError(stage.name, error, stage.float32_error, limit)


def _expected_float32_error(stage: Stage, recording: Recording) -> float:
    """The recorded error, or that of all levels of the same output where a stage is a handful of numbers.

    Rounding errors of so few numbers are small by luck now and then, and say nothing of the next run.
    """
    if math.prod(stage.shape) >= TOLERANCES["few"]:
        return stage.float32_error
    output = stage.name.rpartition(".")[0]
    levels = [other.float32_error for other in recording.stages if other.name.rpartition(".")[0] == output]
    return max(stage.float32_error, math.sqrt(sum(error**2 for error in levels) / len(levels)))


def _detection_error(expected: Detections, found: Detections) -> DetectionError:
    found = Detections(*(value.cpu() for value in found))
    counts = len(expected.labels), len(found.labels)
    if counts[0] != counts[1]:
        return DetectionError(*counts, labels_agree=False, boxes=math.nan, scores=math.nan)
    return DetectionError(
        *counts,
        labels_agree=torch.equal(expected.labels, found.labels),
        boxes=_largest(expected.boxes - found.boxes),
        scores=_largest(expected.scores - found.scores),
    )


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


def _stage_problems(stages: tuple[StageError, ...]) -> Iterator[str]:
    for stage in stages:
        if stage.limit is not None and not stage.error <= stage.limit:  # NaN is a problem as well
            yield f"{stage.name}: relative error {stage.error:.1e}, at most {stage.limit:.1e}"


def _detection_problems(detections: tuple[DetectionError, ...], limit: float | None) -> Iterator[str]:
    for image, detection in enumerate(detections):
        if limit is None:
            continue
        if detection.expected != detection.found:
            yield f"image {image}: {detection.found} detections, recorded were {detection.expected}"
        elif not detection.labels_agree:
            yield f"image {image}: other labels than recorded"
        elif not detection.boxes <= limit:
            yield f"image {image}: a box is off by {detection.boxes:.1e} pixels, at most {limit:.0e}"
