"""Where part of either side has no counterpart: what else is doubtful then.

A checkpoint that lacks one part may lack another, whose place was then taken by what only looks like it. So a match of
unlike names is in doubt if such a module is left over, or much of the target is, and any match whose surroundings went
elsewhere. So is one of a family of which others are left over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from converter.mapping.draft.match import Match, Matching
from converter.mapping.draft.names import Named, Numbers, Unit, take_apart

_ALIKE = 0.75  # similarity of names that needs no other evidence
_UNLIKE = 0.3  # and that with which anything missing is too much
_MUCH = 0.01  # of the target's tensors
_BESIDE = 1 / 3  # of what stands beside a module, how much must have gone where it goes
_LEVELS = 3  # of modules that are looked at

_PART_OF_MANY = "others of its family have no counterpart"
_ONE_OF_MANY = "others of its family became something else, and part of the target has no counterpart"
_Module: TypeAlias = frozenset[tuple[str, tuple[int, ...], str]]


def less_sure(result: Matching, total: int) -> Matching:
    """The same, with more doubts where tensors are left over; `total`: how many the target has."""
    pairs = [
        [
            _Pair(one.members[i][p].name, tensor.name, number)
            for one in found.sources
            for i, p, tensor in _members(found)
        ]
        for number, found in enumerate(result.matches)
    ]
    missing = _Missing(result.left_targets, total, (pair for of in pairs for pair in of))
    became: dict[str, set[str]] = {}  # template of a source -> those of targets
    numbers: dict[tuple[str, int], set[int]] = {}  # template and slot -> numbers that are fixed there
    for found in result.matches:
        for one in found.sources:
            became.setdefault(one.template, set()).update(other.template for other in found.targets)
            for slot, number in one.fixed:
                numbers.setdefault((one.template, slot), set()).add(number)

    def is_one_of_many(unit: Unit) -> bool:
        """Whether it is counted, as `layer.1` is, and others of its family became something else."""
        counted = (slot for slot, piece in enumerate(unit.template.split("#")) if piece.endswith("."))
        return len(became[unit.template]) > 1 and any(len(numbers.get((unit.template, s), ())) > 1 for s in counted)

    left = {take_apart(tensor.name)[0] for tensor in result.left_sources}

    def doubt(found: Match, first: _Pair) -> str | None:
        if any(one.template in left for one in found.sources):
            return _PART_OF_MANY
        if not result.left_targets:
            return None
        if any(map(is_one_of_many, found.sources)):
            return _ONE_OF_MANY
        return missing.doubt([t for _, _, t in _members(found)], first, found.alike)

    return replace(
        result,
        matches=tuple(
            replace(found, doubt=found.doubt or doubt(found, of[0]))
            for found, of in zip(result.matches, pairs, strict=True)
        ),
    )


def _members(found: Match) -> Iterator[tuple[Numbers, str, Named]]:
    """Every target tensor of a match, by its indices and parameter."""
    for unit in found.targets:
        for index, params in unit.members.items():
            for parameter, tensor in params.items():
                yield index, parameter, tensor


@dataclass(frozen=True, slots=True)
class _Pair:
    """A source tensor, a target that is made of it, and which match says so."""

    source: str
    target: str
    match: int


class _Missing:
    """What is left of the target, and where everything else went."""

    def __init__(self, left: Sequence[Named], total: int, pairs: Iterable[_Pair]) -> None:
        self._modules = _modules(left)
        self._is_much = len(left) > _MUCH * total
        self._pairs = list(pairs)
        self._below: tuple[defaultdict[str, set[int]], ...] = (defaultdict(set), defaultdict(set))
        for number, pair in enumerate(self._pairs):
            for name, below in zip((pair.source, pair.target), self._below, strict=True):
                for module in _parents(name):
                    below[module].add(number)

    def doubt(self, targets: Sequence[Named], first: _Pair, alike: float) -> str | None:
        """Why a sure match is in doubt after all, if it is. `first`: one of its pairs; `alike`: how alike these are."""
        if self._went_elsewhere(first):
            return "what stands beside it became part of another module, and part of the target has no counterpart"
        if alike >= _ALIKE:
            return None
        if rival := next((self._modules[m] for m in _modules(targets) if m in self._modules), None):
            return (
                f"no other candidate comes near, but the names differ, and {rival!r} of this shape has no counterpart"
            )
        if self._is_much or alike < _UNLIKE:
            return (
                "no other candidate comes near, but the names differ, and part of the target has no counterpart at all"
            )
        return None

    def _went_elsewhere(self, pair: _Pair) -> bool:
        """Whether what is in the same module as the source, or in the next ones around it, became part of others."""
        levels = zip(_parents(pair.source)[1:], _parents(pair.target)[1:], strict=False)
        for one, other in list(levels)[:_LEVELS]:
            beside, there = (
                {number for number in below[module] if self._pairs[number].match != pair.match}
                for module, below in zip((one, other), self._below, strict=True)
            )
            if beside and there:
                return len(beside & there) <= _BESIDE * min(len(beside), len(there))
        return False


def _modules(tensors: Iterable[Named]) -> Mapping[_Module, str]:
    """The shapes of each module's tensors -> the name of one such module."""
    found: dict[str, set[tuple[str, tuple[int, ...], str]]] = {}
    for tensor in tensors:
        parameter = take_apart(tensor.name)[2]
        found.setdefault(tensor.name.removesuffix(parameter), set()).add((parameter, tensor.shape, tensor.kind))
    return {frozenset(shapes): name.rstrip("._") for name, shapes in reversed(found.items())}


def _parents(name: str) -> list[str]:
    """The module of a tensor, and those that it is in, nearest first; "" is the model."""
    parameter = take_apart(name)[2]
    parts = (name.removesuffix(parameter).rstrip("._") if parameter else name).split(".")
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]
