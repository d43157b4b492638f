"""Which elements of a model's weights the captures see, and why they do not see the others.

An element is seen if a change of it by STEP of its tensor's RMS moves some compared activation beyond its limit; of
several captures one has to see it. What is not seen has a reason, by how it comes about: see `Reason`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from converter.errors import CaptureError
from converter.parity.capture import Capture
from converter.parity.gates import find_gate
from converter.parity.places import places
from converter.parity.run import Run
from converter.parity.sensitivity import CANCELS, NOTHING, PASSES, SEEN, WITHIN, sensitivity
from converter.parity.subject import Subject


class Reason(Enum):
    """Why an element is not seen. Of a gap another input may show it; a row of an embedding is proved by the plan."""

    NO_INPUT = "no input can show it"  # what it does cancels, or no output depends on its tensor
    ROW = "row not used by these inputs"  # of an embedding
    UNREACHED = "no position reached it"  # zero gradient: padding, a dead unit, an output that is not compared
    WITHIN = "not shown to pass the limit"  # it has an effect, too small to be certain that one tap shows it

    @property
    def gap(self) -> bool:
        """The captures could be better."""
        return self in (Reason.UNREACHED, Reason.WITHIN)


@dataclass(frozen=True, slots=True)
class Unseen:
    """Elements of one tensor that are not seen, for one reason; `places` says in words where they are."""

    reason: Reason
    elements: int
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorCoverage:
    """One parameter. `effect`: what a change by STEP of its RMS does, in units of the limits; the median over its
    elements, and 0 where the forward does not use it."""

    name: str
    shape: tuple[int, ...]
    effect: float
    unseen: tuple[Unseen, ...]

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def seen(self) -> int:
        """How many of them are seen."""
        return self.elements - sum(part.elements for part in self.unseen)

    @property
    def gaps(self) -> int:
        """How many better captures could show."""
        return sum(part.elements for part in self.unseen if part.reason.gap)


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """All parameters beside some captures. `reasons`: for each parameter with unseen elements, uint8 in its shape, 0
    where it is seen, else the reason's place in `Reason`, from 1 on."""

    captures: tuple[str, ...]
    gate: str
    tensors: tuple[TensorCoverage, ...]
    reasons: Mapping[str, Tensor] = field(repr=False)

    @property
    def elements(self) -> int:
        """Of all parameters."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def seen(self) -> int:
        """How many elements are seen."""
        return sum(tensor.seen for tensor in self.tensors)

    @property
    def gaps(self) -> int:
        """How many elements other captures could show."""
        return sum(tensor.gaps for tensor in self.tensors)

    def unseen(self, reason: Reason) -> int:
        """How many elements are not seen for this reason."""
        return sum(part.elements for tensor in self.tensors for part in tensor.unseen if part.reason is reason)

    def explanation(self, changed: Mapping[str, Tensor]) -> str | None:
        """Why no change of these elements (by parameter, bool in its shape) is noticed; None if one should be."""
        found: set[int] = set()
        for name, elements in changed.items():
            if name not in self.reasons:
                return None
            found |= set(torch.bincount(self.reasons[name][elements]).nonzero().flatten().tolist())
        # what is not shown to pass a limit in small steps may well do so in large ones
        unexplained = {0, 1 + _REASONS.index(Reason.WITHIN)}
        return None if found & unexplained else "; ".join(_REASONS[code - 1].value for code in sorted(found))


_REASONS = tuple(Reason)


def coverage(
    subject: Subject,
    captures: Sequence[Capture],
    *,
    gate: str | None = None,
    on_done: Callable[[int], object] = lambda count: None,
) -> Coverage:
    """Of a float64 model that passes these captures; it is left as it was.

    `gate` as in `parity`. `on_done` is told of `work` units in all. CaptureError if the model is in another dtype, or
    does not belong to a capture.
    """
    if subject.dtype != "float64":
        raise CaptureError(f"coverage needs float64, not {subject.dtype}; leave out --dtype")
    found_gate = find_gate(subject.device, subject.dtype, gate)
    parameters = {name: value for name, value in subject.parameters.items() if value.is_floating_point()}
    paths = subject.paths
    states: dict[str, Tensor] = {}
    effects: dict[str, float] = {}
    for capture in captures:
        run = Run.of(subject, capture, found_gate)
        open_ = [name for name in parameters if name not in states or bool((states[name] != SEEN).any())]
        on_done(PASSES * (len(parameters) - len(open_)))
        for name, found in sensitivity(run, open_, on_done).items() if open_ else ():
            states[name] = torch.maximum(states[name], found.states) if name in states else found.states
            effects[name] = max(effects.get(name, 0.0), found.effect)
    reasons = {}
    for name, value in parameters.items():
        module = subject.model.get_submodule(paths[name].rpartition(".")[0])
        reasons[name] = _reasons(value, states.pop(name, None), module)
    tensors = tuple(
        TensorCoverage(name, tuple(value.shape), effects.get(name, 0.0), tuple(_unseen(reasons[name])))
        for name, value in parameters.items()
    )
    kept = {tensor.name: reasons[tensor.name] for tensor in tensors if tensor.unseen}
    return Coverage(tuple(capture.name for capture in captures), str(found_gate), tensors, kept)


def work(subject: Subject, captures: Sequence[Capture]) -> int:
    """How many units `coverage` tells of."""
    return PASSES * len(captures) * sum(value.is_floating_point() for value in subject.parameters.values())


def _reasons(parameter: Tensor, states: Tensor | None, module: nn.Module) -> Tensor:
    """The codes of `Coverage.reasons`. `module` is the one whose parameter it is."""
    if states is None:  # not in the graph of any run
        return torch.full(parameter.shape, 1 + _REASONS.index(Reason.NO_INPUT), dtype=torch.uint8)
    codes = torch.zeros_like(states)
    for state, reason in ((NOTHING, Reason.UNREACHED), (WITHIN, Reason.WITHIN), (CANCELS, Reason.NO_INPUT)):
        codes[states == state] = 1 + _REASONS.index(reason)
    if isinstance(module, nn.Embedding):
        unread = (states == NOTHING).all(dim=1)  # a row that is read has some effect: it is added, not multiplied
        codes[unread] = 1 + _REASONS.index(Reason.ROW)
    return codes


def _unseen(codes: Tensor) -> Iterator[Unseen]:
    counts = torch.bincount(codes.flatten(), minlength=len(_REASONS) + 1).tolist()
    for code, reason in enumerate(_REASONS, 1):
        if counts[code]:
            yield Unseen(reason, counts[code], tuple(places(codes == code)))
