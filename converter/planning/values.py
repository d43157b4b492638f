"""Doubts that values settle: two checkpoints of the same weights, one in a table's format, one of its target.

A rule is right as it stands if what it makes of the one is what the other holds, in every number. It is to be
transposed if that is so after an exchange of two axes that no shape tells apart. Nothing is told by values that are all
the same (fresh norms, zero biases), that fit both ways, or that fit neither: then the weights may be others. Rules that
make each other's targets are told, too: norms whose numbers count otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from converter.checkpoint import Checkpoint
from converter.checkpoint.arrays import np
from converter.mapping.cast import as_float, is_float
from converter.mapping.doubts import in_doubt, square_axes
from converter.mapping.ops import Array, apply_ops
from converter.mapping.table import Table
from converter.planning.fit import make_plan
from converter.planning.plan import Step

Told: TypeAlias = Literal["keep", "transpose", "exchange", "fits neither way", "fits both ways", "not in both"]
_Places: TypeAlias = Mapping[frozenset[tuple[str, int | str]], Step]


@dataclass(frozen=True, slots=True)
class Answers:
    """`told`: pointer of each rule in doubt -> what the values say of it. `exchanges`: pairs of rules that are to make
    each other's targets, one exchange after the other."""

    told: Mapping[str, Told]
    exchanges: Sequence[tuple[str, str]]


def told_by_values(table: Table, source: Checkpoint, target: Checkpoint) -> Answers:
    """What the values of two checkpoints say of the rules in doubt."""
    plan = make_plan(table, source, refuse=False)
    steps: dict[str, list[Step]] = {pointer: [] for pointer in in_doubt(table.entries) if "rules" in pointer}
    for step in plan.steps:
        if step.pointer in steps:
            steps[step.pointer].append(step)
    told = {pointer: _told(of, source, target) for pointer, of in steps.items()}
    patterns = {rule.pointer: rule.targets for rule in table.bind(plan.config).rules}
    places = {  # of rules with one target: the steps by their captures
        pointer: {frozenset((patterns[pointer][0].match(s.targets[0].name) or {}).items()): s for s in of}
        for pointer, of in steps.items()
        if told[pointer] == "fits neither way" and len(patterns[pointer]) == 1
    }
    exchanges = list(_exchanges(_makes(places, source, target)))
    return Answers({**told, **{pointer: "exchange" for pair in exchanges for pointer in pair}}, exchanges)


def _makes(places: Mapping[str, _Places], source: Checkpoint, target: Checkpoint) -> dict[str, str]:
    """Rule -> the rule whose targets it makes; of those alone that are so among themselves."""
    found: dict[str, str] = {}
    for one, own in places.items():
        fitting = [
            other
            for other, theirs in places.items()
            if other != one
            and own.keys() == theirs.keys()
            and all(_fits(replace(own[at], targets=theirs[at].targets), source, target, False) for at in own)
        ]
        if len(fitting) == 1:
            found[one] = fitting[0]
    while unfit := [one for one, other in found.items() if other not in found]:
        for one in unfit:
            del found[one]
    return found if len(set(found.values())) == len(found) else {}


def _exchanges(makes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Exchanges of two after which every rule has the targets that it makes."""
    has = {pointer: pointer for pointer in makes}  # rule -> the rule whose targets it has by now
    for one, wanted in makes.items():
        holder = next(pointer for pointer, held in has.items() if held == wanted)
        if holder != one:
            yield one, holder
            has[one], has[holder] = has[holder], has[one]


def _told(steps: list[Step], source: Checkpoint, target: Checkpoint) -> Told:
    if not steps or any(t.name not in target.tensors for step in steps for t in step.targets):
        return "not in both"
    ways: Mapping[Literal["keep", "transpose"], bool] = {"keep": False, "transpose": True}
    fitting = [way for way, turned in ways.items() if all(_fits(step, source, target, turned) for step in steps)]
    if not fitting:
        return "fits neither way"
    return fitting[0] if len(fitting) == 1 else "fits both ways"


def _fits(step: Step, source: Checkpoint, target: Checkpoint, turned: bool) -> bool:
    """Whether what the step makes is what the target holds; `turned`: each with two axes exchanged.

    The shapes that it makes need not be the target's.
    """
    made = apply_ops(step.ops, [_values(source, tensor.name) for tensor in step.sources])
    if turned and not all(square_axes(values.shape) for values in made):
        return False
    for tensor, values in zip(step.targets, made, strict=True):
        there = _values(target, tensor.name)
        rounded = (values.swapaxes(*(square_axes(values.shape) or (0, 0))) if turned else values).astype(there.dtype)
        if not np.array_equal(rounded, there) or (there.size > 1 and np.ptp(there) == 0):
            return False
    return True


def _values(checkpoint: Checkpoint, name: str) -> Array:
    dtype = checkpoint.tensors[name].dtype
    values = checkpoint.read(name)
    return as_float(values, dtype) if is_float(dtype) else values
