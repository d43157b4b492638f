"""Running a model beside a capture: as it is, and block by block with the captured inputs of each.

Propagated, errors add up from the image to the boxes, as they do for a user. Injected, every tapped activation is
replaced by the captured one as soon as it was compared: each block then starts from what the captured model had, so
that a block which is off is off by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from converter.errors import CaptureError
from converter.glip.model.glip import GLIP
from converter.glip.model.head import Output
from converter.mapping.entries import Tap
from converter.mapping.load import load_table
from converter.parity.capture import Capture, Mode
from converter.parity.compare import Gate, TapResult, find_gate, fitted, measure
from converter.parity.detections import DetectionResult, compare_detections
from converter.parity.device import deterministic, settings
from converter.parity.taps import observe

ANCHORS = "rpn.anchor_generator."  # a method of the model and no module, so no tap


@dataclass(frozen=True, slots=True)
class Report:
    """A model beside a capture.

    Args:
        capture, made: name of the capture, and what its metadata says of its making.
        device, dtype, gate, settings: of this run.
        modes: results by mode, in the order in which they were computed.
        detections: one for each image; empty if only blocks were run.
        noise: largest relative difference between the outputs of two runs; None if there was one only.
        skipped: a mode that was asked for and cannot be had, and why.
    """

    capture: str
    made: Mapping[str, Any] = field(repr=False)
    device: str
    dtype: str
    gate: Gate
    settings: Mapping[str, Any]
    modes: Mapping[Mode, tuple[TapResult, ...]] = field(repr=False)
    detections: tuple[DetectionResult, ...] = field(repr=False)
    noise: float | None
    skipped: Mapping[Mode, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """Everything that was compared is within its limit; None if anything could not be judged."""
        verdicts = [result.passed for results in self.modes.values() for result in results]
        # where a dtype has no limit for detections, the raw outputs that they are made of have been judged
        verdicts += [detection.passed for detection in self.detections if detection.limit is not None]
        if False in verdicts:
            return False
        return None if None in verdicts or not verdicts else True

    @property
    def first(self) -> TapResult | None:
        """Where the models part: the first activation beyond its limit, propagated."""
        return next((r for r in self.modes.get("propagated", ()) if r.passed is False), None)

    @property
    def culprits(self) -> tuple[str, ...]:
        """Modules of the model under test that are off by themselves, given captured inputs."""
        return tuple(dict.fromkeys(r.module for r in self.modes.get("injected", ()) if r.passed is False))

    @property
    def glue(self) -> tuple[str, ...]:
        """Culprits with tapped parts that all agree: the fault is in the code between the parts."""
        modules = {r.module for r in self.modes.get("injected", ())}

        def parts(module: str) -> set[str]:
            return {m for m in modules if m != module and (not module or m.startswith(f"{module}."))}

        return tuple(c for c in self.culprits if (inner := parts(c)) and not inner & set(self.culprits))

    @property
    def problems(self) -> list[str]:
        """One line for each activation and image beyond its limit, and for what could not be judged."""
        lines = []
        for mode, results in self.modes.items():
            for r in results:
                if r.unsound:
                    lines.append(f"{mode}: {r.name}: {r.unsound} numbers are NaN or infinite on one side only")
                elif r.passed is False:
                    lines.append(f"{mode}: {r.name}: relative error {r.relative:.1e}, at most {r.limit:.1e}")
                elif r.passed is None:
                    lines.append(f"{mode}: {r.name}: relative error {r.relative:.1e}; {r.unjudged(self.dtype)}")
        for image, d in enumerate(self.detections):
            if d.passed is not False:
                continue
            if d.expected != d.found:
                lines.append(f"image {image}: {d.found} detections, captured were {d.expected}")
            elif not d.same_order:
                lines.append(f"image {image}: other labels than captured")
            elif d.limit is not None and not d.pixels <= d.limit:
                lines.append(f"image {image}: a box is off by {d.pixels:.1e} pixels, at most {d.limit:.0e}")
            else:
                lines.append(f"image {image}: a score is off by {d.scores:.1e}, at most {d.score_limit:.0e}")
        return lines


def parity(
    model: GLIP,
    capture: Capture,
    *,
    modes: Sequence[Mode] = ("propagated", "injected"),
    gate: str | None = None,
    pictures: bool = False,
    twice: bool = False,
) -> Report:
    """Compare `model`, in its own dtype and on its device, with `capture`.

    `gate` overrides the tolerance (`1e-8`, `6x`), `pictures` keeps histograms and heat maps, `twice` measures the
    noise of a second run. Raises CaptureError if the two do not belong together or nothing could be compared.
    """
    parameter = next(model.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    device = parameter.device.type
    found_gate = find_gate(device, dtype, gate)
    if capture.dtype != "float64" and gate is None:
        raise CaptureError(
            f"capture {capture.name!r} was made in {capture.dtype}, so its own error is not known and no usual gate "
            "applies. Capture in float64, or say with --gate what may differ."
        )
    taps = matching_taps(model, capture)
    compared = partial(measure, capture, gate=found_gate, dtype=dtype, pictures=pictures)
    results: dict[Mode, tuple[TapResult, ...]] = {}
    skipped: dict[Mode, str] = {}
    detections: tuple[DetectionResult, ...] = ()
    noise = None
    with torch.inference_mode(), deterministic():
        for mode in modes:
            if mode == "injected" and capture.compact:
                skipped[mode] = "a compact capture keeps no activation whole, so none can be injected"
                continue
            measured: list[TapResult] = []

            def judge(tap: Tap, value: Tensor, mode: Mode = mode, into: list[TapResult] = measured) -> Tensor | None:
                result = compared(tap.source, tap.target, value, mode=mode)
                into.append(result)
                if mode == "propagated" or not tap.target:
                    return None
                return fitted(capture, capture.activations[tap.source], value).to(value)

            with observe(model, taps, judge):
                out = run_model(model, capture)
            for level, anchors in enumerate(model.anchors(out)):
                measured.append(compared(f"{ANCHORS}{level}", "anchors", anchors, mode=mode))
            if silent := {tap.source for tap in taps} - {result.name for result in measured}:
                raise CaptureError(f"the model never computed {min(silent)!r} ({len(silent)} taps in all)")
            results[mode] = tuple(measured)
            if mode == "propagated":
                detections = tuple(
                    compare_detections(expected, found, dtype)
                    for expected, found in zip(
                        capture.detections, model.detect(out, capture.image_sizes, capture.positive_map), strict=True
                    )
                )
                noise = _noise(out, run_model(model, capture)) if twice else None
    if not results:
        raise CaptureError(f"capture {capture.name!r}: nothing was compared: {'; '.join(skipped.values())}")
    return Report(
        capture.name, capture.facts, device, dtype, found_gate, settings(parameter), results, detections, noise, skipped
    )


def matching_taps(model: GLIP, capture: Capture) -> list[Tap]:
    """The taps of the model; CaptureError unless they are exactly what was captured."""
    taps = list(load_table(capture.table).bind(asdict(model.config)).taps)
    captured = set(capture.activations)
    ours = {tap.source for tap in taps} | {f"{ANCHORS}{level}" for level in range(len(model.config.anchor_strides))}
    if unknown := sorted(captured - ours):
        raise CaptureError(
            f"capture {capture.name!r}: {capture.table} pairs {len(unknown)} of its activations with nothing in this "
            f"model, the first is {unknown[0]!r}. It was made with {capture.model}."
        )
    if missing := sorted(ours - captured):
        raise CaptureError(
            f"capture {capture.name!r}: lacks {len(missing)} activations that {capture.table} pairs, the first is "
            f"{missing[0]!r}. What is not captured cannot be compared; capture again."
        )
    return taps


def run_model(model: GLIP, capture: Capture) -> Output:
    """The model's output for the captured inputs, without tokens at the end that it would not compute."""
    device = next(model.parameters()).device
    tokens = capture.tokens
    out: Output = model(
        capture.images.to(device),
        capture.input_ids[:, :tokens].to(device),
        capture.attention_mask[:, :tokens].to(device),
    )
    return out


def _noise(first: Output, second: Output) -> float:
    """Largest relative difference between two runs."""
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            worst = max(worst, float((x.double() - y.double()).norm() / (x.double().norm() or 1)))
    return worst
