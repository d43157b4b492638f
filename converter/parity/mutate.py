"""How many faults some captures would catch: the mutation score of a comparison.

First only the blocks that a mutation touches are run, from the captured inputs, or from those that the sound model
gives them where the capture is compact. Their outputs are those of a whole run in which every other block computes the
same as before. What these do not show is run as a whole, up to the first activation beyond its limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from converter.errors import CaptureError
from converter.mapping.entries import Tap
from converter.parity.capture import Capture, Mode
from converter.parity.compare import TapResult
from converter.parity.coverage import Coverage, Reason
from converter.parity.device import deterministic
from converter.parity.gates import find_gate
from converter.parity.mutations import Mutation, choose, mutations
from converter.parity.run import Run
from converter.parity.subject import Subject
from converter.parity.taps import observe


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutation.

    Args:
        caught: the activation (or 'detections') that showed it, None if none did.
        relative: the largest error.
        reason: why none did.
        equivalent: no input can show it.
        explained: it is known why these captures do not; if not, they fail where they should not.
    """

    mutation: Mutation
    caught: str | None
    relative: float
    reason: str | None = None
    equivalent: bool = False
    explained: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """Of one kind of mutation: how many were made, how many of them noticed, and how many no input can show."""

    made: int
    caught: int
    equivalent: int


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
        return sum(outcome.equivalent for outcome in self.survivors)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Survivors that nothing explains."""
        return tuple(outcome for outcome in self.survivors if not outcome.explained)

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """By kind, in the order in which they were made."""
        by_kind: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            by_kind.setdefault(outcome.mutation.kind, []).append(outcome)
        return {
            kind: Kind(len(those), sum(o.caught is not None for o in those), sum(o.equivalent for o in those))
            for kind, those in by_kind.items()
        }

    @property
    def value(self) -> float:
        """The share caught, of those that some input can show."""
        return self.caught / ((len(self.outcomes) - self.equivalent) or 1)


class _Told(Exception):
    """An activation is off: the mutation is noticed, and the run can end."""

    def __init__(self, result: TapResult) -> None:
        self.result = result


class _Suite:
    """A comparison with one capture, ready to be run again and again on a model that passes it."""

    def __init__(self, subject: Subject, capture: Capture, gate: str | None) -> None:
        self.capture = capture
        self.run = Run.of(subject, capture, find_gate(subject.device, subject.dtype, gate))
        self.mode: Mode = "propagated"
        self.largest = 0.0
        self.modules = dict(subject.model.named_modules())
        self.paths = subject.paths
        self.tapped = list(dict.fromkeys(tap.target for tap in self.run.taps))
        self.inputs: dict[str, tuple[Any, Any]] = {}
        self._begin()
        if self._detect()[0]:
            raise CaptureError(
                f"capture {capture.name!r}: its detections differ before anything was changed. Mutations say "
                "nothing about a comparison that fails."
            )

    def _begin(self) -> None:
        """The sound model as a whole, with the inputs of all blocks kept: one that fails would make every mutation look
        caught."""

        def keep(path: str) -> Callable[..., None]:
            return lambda module, arguments, named: self.inputs.__setitem__(path, (arguments, named))

        handles = [
            self.modules[path].register_forward_pre_hook(keep(path), with_kwargs=True) for path in self.tapped if path
        ]
        try:
            self._whole("propagated" if self.capture.compact else "injected")
        except _Told as told:
            raise CaptureError(
                f"capture {self.capture.name!r}: {told.result.name} is off before anything was changed "
                f"(relative error {told.result.relative:.1e}). Mutations say nothing about a comparison that fails."
            ) from None
        finally:
            for handle in handles:
                handle.remove()

    def _whole(self, mode: Mode) -> None:
        self.mode = mode
        with observe(self.run.subject.model, self.run.taps, self._measure):
            out = self.run.again()
        for name, derived in self.run.derived.items():
            self._judged(name, derived.method, derived.compute(out))

    def _judged(self, name: str, module: str, value: Tensor) -> None:
        result = self.run.comparison.measure(name, module, value, self.mode)
        if not result.passed:
            raise _Told(result)
        self.largest = max(self.largest, result.relative)

    def _measure(self, tap: Tap, value: Tensor) -> Tensor | None:
        self._judged(tap.source, tap.target, value)
        if self.mode == "propagated" or not tap.target:
            return None
        return self.run.comparison.expected(tap.source, value).to(value)

    def judge(self, mutation: Mutation) -> tuple[str | None, float]:
        """Run what a mutation can change: what showed it, if anything, and the largest error."""
        self.largest = 0.0
        try:
            if mutation.detections:
                return self._detect()
            for path in self._touched(mutation.targets):
                self._again(path)
            self._whole("propagated")
        except _Told as told:
            return told.result.name, told.result.relative
        return None, self.largest

    def _again(self, path: str) -> None:
        if not path:
            return  # the whole model is run anyway
        self.mode = "propagated" if self.capture.compact else "injected"
        arguments, named = self.inputs[path]
        subject = self.run.subject
        with subject.family.comparing(subject.model), observe(subject.model, self.run.taps, self._measure):
            self.modules[path](*arguments, **named)

    def _touched(self, targets: Iterable[str]) -> list[str]:
        """The tapped modules that run a target, each the nearest; all of them, if no target is named."""
        touched = []
        for target in targets:
            path = self.paths.get(target, target)
            while path and path not in self.tapped:
                path = path.rpartition(".")[0]
            touched.append(path)
        return list(dict.fromkeys(touched)) or self.tapped

    def _detect(self) -> tuple[str | None, float]:
        results = self.run.detections(self.run.again())
        return ("detections", 0.0) if any(result.passed is False for result in results) else (None, 0.0)


def mutation_score(
    subject: Subject,
    captures: Sequence[Capture],
    count: int | None = None,
    *,
    gate: str | None = None,
    coverage: Callable[[], Coverage] | None = None,
    on_done: Callable[[], object] = lambda: None,
) -> Score:
    """Make `count` mutations of a model (all of them if None), and see which of them any of the captures tells.

    The model must be in a dtype that the captures can judge, and pass; it is left as it was. CaptureError otherwise.
    `coverage` gives what the captures see; it is asked once, if a mutation of tensors went unnoticed.
    """
    with torch.inference_mode(False), torch.no_grad(), deterministic():
        suites = [_Suite(subject, capture, gate) for capture in sorted(captures, key=_size)]  # the fastest first
        every = mutations(subject, captures[0].table)
        chosen = every if count is None else choose(every, count)
        outcomes = []
        for mutation in chosen:
            with mutation.make(subject.model):
                outcomes.append(_outcome(mutation, suites))
            on_done()
    del suites  # with the inputs of all blocks, before memory is needed for coverage
    outcomes = list(_explained(subject, outcomes, coverage))
    same_shape = {name for m in every if m.kind == "swap" for name in m.targets}
    covered = {name for m in chosen if m.kind == "swap" for name in m.targets}
    return Score(tuple(outcomes), len(every), tuple(sorted(same_shape - covered)))


def _size(capture: Capture) -> int:
    return sum(math.prod(activation.shape) for activation in capture.activations.values())


def _outcome(mutation: Mutation, suites: Sequence[_Suite]) -> Outcome:
    largest = 0.0
    for suite in suites:
        caught, relative = suite.judge(mutation)
        if caught is not None:
            return Outcome(mutation, caught, relative)
        largest = max(largest, relative)
    return Outcome(mutation, None, largest)


def _explained(
    subject: Subject, outcomes: Sequence[Outcome], coverage: Callable[[], Coverage] | None
) -> Iterable[Outcome]:
    """The same outcomes, each survivor with its reason."""
    found: Coverage | None = None
    for outcome in outcomes:
        mutation = outcome.mutation
        if outcome.caught is not None:
            yield outcome
            continue
        changed = _changed(subject, mutation)
        seen = f"with these inputs no activation is off by more than {outcome.relative:.1e}"
        if mutation.invisible:
            yield _survivor(outcome, f"no input can show it: {mutation.invisible}", equivalent=True)
        elif mutation.detections:
            yield _survivor(outcome, "with these inputs the same objects are detected", explained=False)
        elif not changed:
            yield _survivor(outcome, seen, explained=False)
        elif not any(bool(elements.any()) for elements in changed.values()):
            yield _survivor(outcome, "it changes nothing: the numbers are the same", equivalent=True)
        elif coverage is None:
            yield _survivor(outcome, f"{seen}; what they see of it was not looked at", explained=False)
        else:
            found = found or coverage()
            reasons = found.explanation(changed)
            if reasons is None:
                yield _survivor(outcome, f"{seen}, though they see some of what it changes", explained=False)
            else:
                yield _survivor(outcome, f"not seen: {reasons}", equivalent=reasons == Reason.NO_INPUT.value)


def _survivor(outcome: Outcome, reason: str, *, explained: bool = True, equivalent: bool = False) -> Outcome:
    return Outcome(outcome.mutation, None, outcome.relative, reason, equivalent, explained)


def _changed(subject: Subject, mutation: Mutation) -> dict[str, Tensor]:
    """Which elements of which parameters a mutation changes; none, if it is one of code."""
    every = subject.parameters
    parameters = {name: every[name] for name in mutation.targets if name in every}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with mutation.make(subject.model):
        return {name: (parameter.detach() != before[name]).cpu() for name, parameter in parameters.items()}
