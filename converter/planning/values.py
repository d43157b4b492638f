"""Doubts that values settle: two checkpoints of the same weights, one in a table's format, one of its target.

A rule is right as it stands if what it makes of the one is what the other holds, in every number. It is to be
transposed if that is so after an exchange of two axes that no shape tells apart. Nothing is told by values that are all
the same (fresh norms, zero biases), that fit both ways, or that fit neither: then the weights may be others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from converter.checkpoint import Checkpoint
from converter.checkpoint.arrays import np
from converter.mapping.cast import as_float, is_float
from converter.mapping.doubts import in_doubt, square_axes
from converter.mapping.ops import Array, apply_ops
from converter.mapping.table import Table
from converter.planning.fit import make_plan
from converter.planning.plan import Step

Told: TypeAlias = Literal["keep", "transpose", "fits neither way", "fits both ways", "not in both"]


def told_by_values(table: Table, source: Checkpoint, target: Checkpoint) -> dict[str, Told]:
    """Pointer of each rule in doubt -> what the values say of it."""
    plan = make_plan(table, source, refuse=False)
    steps: dict[str, list[Step]] = {pointer: [] for pointer in in_doubt(table.entries) if "rules" in pointer}
    for step in plan.steps:
        if step.pointer in steps:
            steps[step.pointer].append(step)
    return {pointer: _told(of, source, target) for pointer, of in steps.items()}


def _told(steps: list[Step], source: Checkpoint, target: Checkpoint) -> Told:
    if not steps or any(t.name not in target.tensors for step in steps for t in step.targets):
        return "not in both"
    ways: Mapping[Literal["keep", "transpose"], bool] = {"keep": False, "transpose": True}
    fitting = [way for way, turned in ways.items() if all(_fits(step, source, target, turned) for step in steps)]
    if not fitting:
        return "fits neither way"
    return fitting[0] if len(fitting) == 1 else "fits both ways"


def _fits(step: Step, source: Checkpoint, target: Checkpoint, turned: bool) -> bool:
    """Whether what the step makes is what the target holds; `turned`: each with two axes exchanged."""
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
