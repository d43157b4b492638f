"""Running a model beside a capture: as it is, and block by block with the captured inputs of each.

Propagated: errors add up from the inputs to the outputs, as they do for a user. Injected: every tapped activation is
replaced by the captured one as soon as it was compared. Each block then starts from captured values, so that an error
at its output is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converter.errors import CaptureError
from converter.mapping.entries import Tap
from converter.mapping.load import load_table
from converter.parity.capture import Capture, Mode
from converter.parity.compare import Comparison, TapResult, cut_axes
from converter.parity.detections import DetectionResult, compare_detections
from converter.parity.device import deterministic
from converter.parity.family import Derived
from converter.parity.gates import Gate, find_gate
from converter.parity.subject import Subject


@dataclass(frozen=True, slots=True)
class Weights:
    """What is known of the weights under test.

    Args:
        path: the file or folder that they are from, None if that is not known.
        converted: whether they were converted on the way, so that no file holds them as they were compared.
        same: whether they are those that the capture was made of; None where nothing tells.
    """

    path: Path | None = None
    converted: bool = False
    same: bool | None = None


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
        reference: the file of the capture.
        weights: what is known of the weights.
        parameters: names of those of the first block that differs.
        suspects: tensors of the file that are not what its own record says, where that was looked at.
        record: what that record says, in a sentence.
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
    reference: Path | None = None
    weights: Weights = Weights()
    parameters: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    record: str = ""

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
        """The first activation beyond its limit, propagated."""
        return next((r for r in self.modes.get("propagated", ()) if r.passed is False), None)

    @property
    def block(self) -> str | None:
        """The module to look at first: the first that is off by itself, or else the one of the first difference."""
        return next(iter(self.culprits), self.first.module if self.first else None)

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
        taps = [(mode, result) for mode, results in self.modes.items() for result in results]
        lines = [f"{mode}: {r.name}: {r.why(self.dtype)}" for mode, r in taps if not r.passed]
        return lines + [f"image {i}: {d.why(self.dtype)}" for i, d in enumerate(self.detections) if d.passed is False]


def parity(
    subject: Subject,
    capture: Capture,
    *,
    modes: Sequence[Mode] = ("propagated", "injected"),
    gate: str | None = None,
    pictures: bool = False,
    twice: bool = False,
    weights: Weights = Weights(),
) -> Report:
    """Compare a model, in its own dtype and on its device, with `capture`.

    `gate` overrides the tolerance (`1e-8`, `6x`), `pictures` keeps histograms and heat maps, `twice` measures the
    noise of a second run; `weights` is what the report says of them. Raises CaptureError if the two do not belong
    together or nothing could be compared.
    """
    found_gate = find_gate(subject.device, subject.dtype, gate)
    if capture.dtype != "float64" and gate is None:
        raise CaptureError(
            f"capture {capture.name!r} was made in {capture.dtype}, so its own error is not known and no usual gate "
            "applies. Capture in float64, or say with --gate what may differ."
        )
    run = Run.of(subject, capture, found_gate, pictures=pictures)
    results: dict[Mode, tuple[TapResult, ...]] = {}
    skipped: dict[Mode, str] = {}
    detections: tuple[DetectionResult, ...] = ()
    noise = None
    with torch.inference_mode(), deterministic():
        for mode in modes:
            if mode == "injected" and capture.compact:
                skipped[mode] = "a compact capture keeps no activation whole, so none can be injected"
                continue
            if mode == "injected" and subject.is_whole:
                skipped[mode] = "an exported graph runs as a whole, so nothing can be injected"
                continue
            out, results[mode] = run.compared(mode)
            if mode == "propagated":
                detections = run.detections(out)
                noise = _noise(out, run.again()) if twice else None
    if not results:
        raise CaptureError(f"capture {capture.name!r}: nothing was compared: {'; '.join(skipped.values())}")
    made, used = capture.facts, subject.settings
    report = Report(
        capture.name, made, subject.device, subject.dtype, found_gate, used, results, detections, noise, skipped,
        capture.path, weights,
    )  # fmt: skip
    return replace(report, parameters=_parameters(subject, report.block))


def _parameters(subject: Subject, block: str | None) -> tuple[str, ...]:
    """Of one module; all of them would tell nothing."""
    return tuple(name for name, path in subject.paths.items() if block and path.startswith(f"{block}."))


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A model and a capture that fit together: `taps` and `derived` are what was captured, as far as it can be seen."""

    subject: Subject
    inputs: Mapping[str, Tensor]
    taps: tuple[Tap, ...]
    derived: Mapping[str, Derived]
    comparison: Comparison

    @classmethod
    def of(cls, subject: Subject, capture: Capture, gate: Gate, *, pictures: bool = False) -> Run:
        """Raises CaptureError unless the model computes exactly what was captured."""
        table = capture.table or subject.family.table
        taps = load_table(table).bind(subject.config).taps
        derived = subject.family.derived(subject.model)
        _check_names(capture, table, {*(tap.source for tap in taps), *derived})
        taps = tuple(tap for tap in taps if subject.computes(tap))
        inputs = subject.family.inputs(capture)
        comparison = Comparison(capture, gate, subject.dtype, cut_axes(capture.inputs, inputs), pictures)
        return cls(subject, inputs, taps, derived, comparison)

    def again(self) -> Any:
        """The model's output for the captured inputs."""
        return self.subject.run(self.inputs)

    def compared(self, mode: Mode) -> tuple[Any, tuple[TapResult, ...]]:
        """The model's output, and every activation beside the captured one, in the order of computing."""
        measured: list[TapResult] = []

        def judge(tap: Tap, value: Tensor) -> Tensor | None:
            measured.append(self.comparison.measure(tap.source, tap.target, value, mode))
            if mode == "propagated" or not tap.target:
                return None
            return self.comparison.expected(tap.source, value).to(value)

        out = self.subject.observed(self.inputs, self.taps, judge)
        for name, derived in self.derived.items():
            measured.append(self.comparison.measure(name, derived.method, derived.compute(out), mode))
        if silent := {tap.source for tap in self.taps} - {result.name for result in measured}:
            raise CaptureError(f"the model never computed {min(silent)!r} ({len(silent)} taps in all)")
        return out, tuple(measured)

    def detections(self, out: Any) -> tuple[DetectionResult, ...]:
        """What is detected beside what was captured, image by image. Raises CaptureError for other images."""
        capture = self.comparison.capture
        found = self.subject.family.detect(self.subject.model, out, capture.facts)
        if len(found) != len(capture.detections):
            raise CaptureError(
                f"capture {capture.name!r}: holds the detections of {len(capture.detections)} images, the model gives "
                f"those of {len(found)}. Capture again."
            )
        pairs = zip(capture.detections, found, strict=True)
        return tuple(compare_detections(expected, here, self.subject.dtype) for expected, here in pairs)


def _check_names(capture: Capture, table: str, ours: set[str]) -> None:
    captured = set(capture.activations)
    if unknown := sorted(captured - ours):
        raise CaptureError(
            f"capture {capture.name!r}: {table} pairs {len(unknown)} of its activations with nothing in this "
            f"model, the first is {unknown[0]!r}. It was made with {capture.model}."
        )
    if missing := sorted(ours - captured):
        raise CaptureError(
            f"capture {capture.name!r}: lacks {len(missing)} activations that {table} pairs, the first is "
            f"{missing[0]!r}. What is not captured cannot be compared; capture again."
        )


def _noise(first: Any, second: Any) -> float:
    """Largest relative difference between the outputs of two runs."""
    pairs = zip(tensors_of(first), tensors_of(second), strict=True)
    return max((float((x.double() - y.double()).norm() / (x.double().norm() or 1)) for x, y in pairs), default=0.0)


def tensors_of(output: Any) -> Iterator[Tensor]:
    """All tensors of an output: of tuples, lists and mappings, in their order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from tensors_of(item)
    elif isinstance(output, list | tuple):
        for item in output:
            yield from tensors_of(item)
