"""How many faults a capture would catch: the mutation score of a comparison.

Where the capture can be injected, only the blocks that a mutation touches are run, from captured inputs. Their outputs
are those of a whole injected run, in which every other block computes the same as before. Otherwise the whole model
runs, up to the first activation beyond its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from converter.errors import CaptureError
from converter.mapping.entries import Tap
from converter.parity.capture import Capture, Mode
from converter.parity.compare import TapResult
from converter.parity.device import deterministic
from converter.parity.family import Subject
from converter.parity.gates import find_gate
from converter.parity.mutations import Mutation, choose, mutations
from converter.parity.run import Run
from converter.parity.taps import observe


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutation. `caught`: the activation (or 'detections') that showed it; `reason`: why none did."""

    mutation: Mutation
    caught: str | None
    relative: float
    reason: str | None


@dataclass(frozen=True, slots=True)
class Score:
    """All outcomes. `uncovered`: tensors that share their shape with another, which no mutation exchanged."""

    outcomes: tuple[Outcome, ...]
    possible: int
    uncovered: tuple[str, ...]

    @property
    def caught(self) -> int:
        """How many mutations were noticed."""
        return sum(outcome.caught is not None for outcome in self.outcomes)

    @property
    def survivors(self) -> tuple[Outcome, ...]:
        """Mutations that went unnoticed, each with the reason."""
        return tuple(outcome for outcome in self.outcomes if outcome.caught is None)

    @property
    def equivalent(self) -> int:
        """How many of the survivors no input can show: they compute the same, and say nothing of the comparison."""
        return sum(outcome.mutation.invisible is not None for outcome in self.survivors)

    @property
    def value(self) -> float:
        """The share caught, of those that some input can show."""
        return self.caught / ((len(self.outcomes) - self.equivalent) or 1)


class _Told(Exception):
    """An activation is off: the mutation is noticed, and the run can end."""

    def __init__(self, result: TapResult) -> None:
        self.result = result


class _Suite:
    """The comparison, ready to be run again and again on a model that passes it."""

    def __init__(self, subject: Subject, capture: Capture, gate: str | None) -> None:
        self.capture = capture
        self.run = Run.of(subject, capture, find_gate(subject.device, subject.dtype, gate))
        self.mode: Mode = "propagated" if capture.compact else "injected"
        self.largest = 0.0
        self.modules = dict(subject.model.named_modules())
        self.tapped = list(dict.fromkeys(tap.target for tap in self.run.taps))
        self.inputs: dict[str, tuple[Any, Any]] = {}
        self.judge(None)  # a model that fails already would make every mutation look caught
        if self._detect()[0]:
            raise CaptureError(
                f"capture {capture.name!r}: its detections differ before anything was changed. Mutations say "
                "nothing about a comparison that fails."
            )
        if not capture.compact:
            self._keep_inputs()

    def _keep_inputs(self) -> None:
        def keep(path: str) -> Callable[..., None]:
            return lambda module, arguments, named: self.inputs.__setitem__(path, (arguments, named))

        handles = [
            self.modules[path].register_forward_pre_hook(keep(path), with_kwargs=True) for path in self.tapped if path
        ]
        try:
            self._whole()
        finally:
            for handle in handles:
                handle.remove()

    def _whole(self) -> None:
        with observe(self.run.subject.model, self.run.taps, self._measure):
            self.run.again()

    def _measure(self, tap: Tap, value: Tensor) -> Tensor | None:
        result = self.run.comparison.measure(tap.source, tap.target, value, self.mode)
        if not result.passed:
            raise _Told(result)
        self.largest = max(self.largest, result.relative)
        if self.capture.compact or not tap.target:
            return None
        return self.run.comparison.expected(tap.source, value).to(value)

    def judge(self, mutation: Mutation | None) -> tuple[str | None, float]:
        """Run what a mutation can change: what showed it, if anything, and the largest error.

        Without a mutation everything runs, and what is off is an error.
        """
        self.largest = 0.0
        if mutation is None:
            self._whole()
            return None, self.largest
        try:
            if mutation.detections:
                return self._detect()
            if self.capture.compact:
                self._whole()
            else:
                for path in self._touched(mutation.targets):
                    self._again(path)
        except _Told as told:
            return told.result.name, told.result.relative
        return None, self.largest

    def _again(self, path: str) -> None:
        if not path:
            self._whole()
            return
        arguments, named = self.inputs[path]
        with observe(self.run.subject.model, self.run.taps, self._measure):
            self.modules[path](*arguments, **named)

    def _touched(self, targets: Iterable[str]) -> list[str]:
        """The tapped modules that run a target, each the nearest; all of them, if no target is named."""
        touched = []
        for target in targets:
            path = target
            while path and path not in self.tapped:
                path = path.rpartition(".")[0]
            touched.append(path)
        return list(dict.fromkeys(touched)) or self.tapped

    def _detect(self) -> tuple[str | None, float]:
        results = self.run.detections(self.run.again())
        return ("detections", 0.0) if any(result.passed is False for result in results) else (None, 0.0)


def mutation_score(
    subject: Subject,
    capture: Capture,
    count: int | None = None,
    *,
    gate: str | None = None,
    on_done: Callable[[], object] = lambda: None,
) -> Score:
    """Make `count` mutations of a model (all of them if None), and see which of them the capture tells.

    The model must be in a dtype that the capture can judge, and pass; it is left as it was. CaptureError otherwise.
    """
    with torch.inference_mode(False), torch.no_grad(), deterministic():
        try:
            suite = _Suite(subject, capture, gate)
        except _Told as told:
            raise CaptureError(
                f"capture {capture.name!r}: {told.result.name} is off before anything was changed "
                f"(relative error {told.result.relative:.1e}). Mutations say nothing about a comparison that fails."
            ) from None
        every = mutations(subject, capture.table)
        chosen = every if count is None else choose(every, count)
        outcomes = []
        for mutation in chosen:
            with mutation.make(subject.model):
                caught, relative = suite.judge(mutation)
            outcomes.append(Outcome(mutation, caught, relative, None if caught else _reason(mutation, relative)))
            on_done()
    same_shape = {name for m in every if m.kind == "swap" for name in m.targets}
    covered = {name for m in chosen if m.kind == "swap" for name in m.targets}
    return Score(tuple(outcomes), len(every), tuple(sorted(same_shape - covered)))


def _reason(mutation: Mutation, relative: float) -> str:
    if mutation.invisible:
        return f"no input can show it: {mutation.invisible}"
    if mutation.detections:
        return "with these inputs the same objects are detected"
    return f"with these inputs no activation is off by more than {relative:.1e}"
