"""How many faults a capture would catch: the mutation score of a comparison.

A mutation changes the model as a wrong plan or a wrong re-implementation would, and is undone afterwards. Where the
capture can be injected, only the blocks that a mutation touches are run, from captured inputs: what they give is what
a whole injected run would give, since every other block starts from the same numbers as before. Otherwise the whole
model runs, up to the first activation that is off.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from converter.errors import CaptureError
from converter.glip.mistakes import MISTAKES, patched
from converter.glip.model.glip import GLIP
from converter.glip.model.head import Output
from converter.mapping.entries import Tap
from converter.mapping.load import load_table
from converter.mapping.ops import apply_ops, invert_ops
from converter.parity.capture import Capture, Mode
from converter.parity.compare import Gate, TapResult, find_gate, fitted, measure
from converter.parity.detections import compare_detections
from converter.parity.device import deterministic
from converter.parity.run import matching_taps, run_model
from converter.parity.taps import observe

EPSILONS = (1e-5, 1e-6, 1e-12)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One fault. `targets`: the tensors or module it touches; none, if it is of code that many modules share."""

    kind: str
    name: str
    make: Callable[[GLIP], AbstractContextManager[None]]
    targets: tuple[str, ...] = ()
    detections: bool = False
    invisible: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutation. `caught`: the activation (or 'detections') that told; `reason`: why none did."""

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
        """How many mutations were told."""
        return sum(outcome.caught is not None for outcome in self.outcomes)

    @property
    def survivors(self) -> tuple[Outcome, ...]:
        """Mutations that nothing told, each with the reason."""
        return tuple(outcome for outcome in self.outcomes if outcome.caught is None)

    @property
    def equivalent(self) -> int:
        """How many of the survivors no input can show: they compute the same, and say nothing of the comparison."""
        return sum(outcome.mutation.invisible is not None for outcome in self.survivors)

    @property
    def value(self) -> float:
        """The share caught, of those that some input can show."""
        return self.caught / ((len(self.outcomes) - self.equivalent) or 1)


def mutations(model: GLIP, table: str = "glip-official") -> list[Mutation]:
    """All mutations of a model: every known mistake, every norm's epsilon, and of every tensor what a wrong plan or
    table would do to it."""
    fusion = model.config.fusion
    found = [
        Mutation("mistake", m.name, m.make, detections=m.detections, invisible=m.invisible)
        for m in MISTAKES
        if fusion or not m.needs_fusion
    ]
    for path, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            other = next(epsilon for epsilon in EPSILONS if epsilon != module.eps)
            name = f"{path}: epsilon {other:g}, not {module.eps:g}"
            found.append(Mutation("epsilon", name, partial(_attribute, path, "eps", other), (path,)))
    parameters = dict(model.named_parameters())
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(tuple(parameter.shape), []).append(name)
    for names in groups.values():
        # each is in one pair, an odd one out in a second
        pairs = [*zip(names[::2], names[1::2], strict=False)]
        if len(names) % 2 and len(names) > 1:
            pairs.append((names[-1], names[0]))
        for pair in pairs:
            found.append(Mutation("swap", " <-> ".join(pair), partial(_replaced, pair, _exchange), pair))
    for name, parameter in parameters.items():
        found += _of_tensor(model, name, parameter)
    found += _of_sources(model, table)
    return found


def _of_tensor(model: GLIP, name: str, parameter: Tensor) -> Iterator[Mutation]:
    def one(kind: str, change: Callable[[Tensor], Tensor]) -> Mutation:
        return Mutation(kind, name, partial(_replaced, (name,), lambda values: [change(values[0])]), (name,))

    yield one("negate", torch.neg)
    yield one("drop", torch.zeros_like)
    if len(parameter) > 1:
        yield one("off by one", lambda x: x.roll(1, 0))
    if parameter.dim() == 2 and parameter.shape[0] == parameter.shape[1] > 1:
        yield one("transpose", lambda x: x.T)
    owner, _, field = name.rpartition(".")
    *_, last = owner.split(".")
    heads = _heads(model, owner, last)
    if heads and field == "weight":
        yield one("permute heads", lambda x: x.roll(len(x) // heads, 0))


def _heads(model: GLIP, owner: str, last: str) -> int:
    """Into how many heads the rows of a projection are divided; 0 if they are not."""
    if last in ("image_query", "text_key", "image_value", "text_value"):
        return model.config.fusion_heads
    if last == "qkv":
        attention = model.get_submodule(owner.rpartition(".")[0])
        return 3 * int(getattr(attention, "heads", 0))
    return 0


def _of_sources(model: GLIP, table: str) -> Iterator[Mutation]:
    """Where a rule joins several tensors of one shape: each with its neighbour exchanged."""
    loaded = load_table(table)
    config = asdict(model.config)
    for transfer in loaded.transfers(loaded.bind(config), config)[0]:
        back = invert_ops(transfer.ops)
        for first in range(len(transfer.sources) - 1):
            (name, shape), (other, other_shape) = transfer.sources[first : first + 2]
            if shape != other_shape:
                continue

            def change(
                values: Sequence[Tensor], back: Any = back, ops: Any = transfer.ops, first: int = first
            ) -> list[Tensor]:
                parts = apply_ops(back, [value.double().numpy() for value in values])  # numpy has no bfloat16
                parts[first], parts[first + 1] = parts[first + 1], parts[first]
                return [torch.from_numpy(array) for array in apply_ops(ops, parts)]

            targets = tuple(name for name, _ in transfer.targets)
            yield Mutation("swap sources", f"{name} <-> {other}", partial(_replaced, targets, change), targets)


def _attribute(path: str, name: str, value: object, model: GLIP) -> AbstractContextManager[None]:
    return patched(model.get_submodule(path), name, value)


@contextmanager
def _replaced(names: Sequence[str], change: Callable[[Sequence[Tensor]], list[Tensor]], model: GLIP) -> Iterator[None]:
    """The named parameters hold what `change` makes of their values."""
    parameters = [model.get_parameter(name) for name in names]
    before = [parameter.detach().cpu().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, value in zip(parameters, change(before), strict=True):
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def _exchange(values: Sequence[Tensor]) -> list[Tensor]:
    return [values[1], values[0]]


def choose(all_of_them: Sequence[Mutation], count: int, seed: int = 0) -> list[Mutation]:
    """`count` mutations, the same every time: all mistakes, and of the other kinds equally many."""
    chosen = [m for m in all_of_them if m.kind == "mistake"][:count]
    others: dict[str, list[Mutation]] = {}
    for mutation in all_of_them:
        if mutation.kind != "mistake":
            others.setdefault(mutation.kind, []).append(mutation)
    generator = random.Random(seed)
    for of_kind in others.values():
        generator.shuffle(of_kind)
    while len(chosen) < count and any(others.values()):
        for of_kind in others.values():
            if of_kind and len(chosen) < count:
                chosen.append(of_kind.pop())
    return chosen


class _Told(Exception):
    """An activation is off, which is all that one wants to know of a mutation."""

    def __init__(self, result: TapResult) -> None:
        self.result = result


class _Suite:
    """The comparison, ready to be run again and again on a model that passes it."""

    def __init__(self, model: GLIP, capture: Capture, gate: str | None) -> None:
        self.model = model
        self.capture = capture
        self.taps = matching_taps(model, capture)
        self.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.gate: Gate = find_gate(next(model.parameters()).device.type, self.dtype, gate)
        self.mode: Mode = "propagated" if capture.compact else "injected"
        self.largest = 0.0
        self.modules = dict(model.named_modules())
        self.tapped = list(dict.fromkeys(tap.target for tap in self.taps))
        self.inputs: dict[str, tuple[Any, Any]] = {}
        self.judge(None)  # a model that fails already would make every mutation look caught
        if self._detect()[0]:
            raise CaptureError(
                f"capture {capture.name!r}: its detections are others before anything was changed. Mutations tell "
                "nothing of a comparison that fails."
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
            self.out = self._whole()
        finally:
            for handle in handles:
                handle.remove()

    def _whole(self) -> Output:
        with observe(self.model, self.taps, self._measure):
            return run_model(self.model, self.capture)

    def _measure(self, tap: Tap, value: Tensor) -> Tensor | None:
        result = measure(self.capture, tap.source, tap.target, value, gate=self.gate, dtype=self.dtype, mode=self.mode)
        if not result.passed:
            raise _Told(result)
        self.largest = max(self.largest, result.relative)
        if self.capture.compact or not tap.target:
            return None
        return fitted(self.capture, self.capture.activations[tap.source], value).to(value)

    def judge(self, mutation: Mutation | None) -> tuple[str | None, float]:
        """Run what a mutation can change. What told of it, if anything, and the largest error that was seen.

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
        with observe(self.model, self.taps, self._measure):
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
        out = run_model(self.model, self.capture)
        found = self.model.detect(out, self.capture.image_sizes, self.capture.positive_map)
        results = [
            compare_detections(a, b, self.dtype) for a, b in zip(self.capture.detections, found, strict=True)
        ]  # fmt: skip
        return ("detections", 0.0) if any(result.passed is False for result in results) else (None, 0.0)


def mutation_score(
    model: GLIP,
    capture: Capture,
    count: int | None = None,
    *,
    gate: str | None = None,
    on_done: Callable[[], object] = lambda: None,
) -> Score:
    """Make `count` mutations of `model` (all of them if None), and see which of them the capture tells.

    The model must be in a dtype that the capture can judge, and pass; it is left as it was. CaptureError otherwise.
    """
    with torch.inference_mode(False), torch.no_grad(), deterministic():
        try:
            suite = _Suite(model, capture, gate)
        except _Told as told:
            raise CaptureError(
                f"capture {capture.name!r}: {told.result.name} is off before anything was changed "
                f"(relative error {told.result.relative:.1e}). Mutations tell nothing of a comparison that fails."
            ) from None
        every = mutations(model, capture.table)
        chosen = every if count is None else choose(every, count)
        outcomes = []
        for mutation in chosen:
            with mutation.make(model):
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
