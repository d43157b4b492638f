"""Two plans in a row as one: from one format to the target's naming, and on from there to another format.

What the first makes and the second takes are tensors of the same spec. Steps that meet in such a tensor become one
step, whose ops are both chains in a row; where the second undoes what the first does, both go away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from converter.errors import PlanError
from converter.mapping.ops import Arrange, Branches, Elementwise, Op, prove_bijective
from converter.planning.plan import LeftOut, Plan, Step, Tensor


def compose(first: Plan, second: Plan) -> Plan:
    """`first`, then `second`, which was made of the tensors that `first` makes.

    What passes through is proved like any other plan: every element of a source that is taken is in exactly one place.
    Raises PlanError where a rule of `first` makes tensors of which `second` takes only some, or where a number would
    pass through a narrower dtype on its way.
    """
    steps: list[Step] = []
    problems: list[str] = []
    reasons = {out.tensor.name: out for out in second.left_out}
    left_out: list[LeftOut] = []
    for makers, takers in _groups(first.steps, second.steps):
        made = [tensor for step in makers for tensor in step.targets]
        taken = [tensor for step in takers for tensor in step.sources]
        unused = [tensor for tensor in made if tensor not in taken]
        if not takers:
            out = reasons[made[0].name]
            left_out += [LeftOut(t, step.pointer, out.reason, None) for step in makers for t in step.sources]
        elif unused:
            problems.append(
                f"{makers[0].pointer} makes {unused[0].name!r}, which {second.format} does not hold, together with "
                f"{taken[0].name!r}, which it does"
            )
        elif narrow := [step for step in makers if not step.is_lossless and _changes(step.targets, takers)]:
            problems.append(
                f"{narrow[0].pointer} rounds {narrow[0].sources[0].name!r} on its way; convert in two steps"
            )
        else:
            pointers = [*(_at(first.table, s) for s in makers), *(_at(second.format, s) for s in takers)]
            steps += _joined(makers, takers, " ".join(dict.fromkeys(pointers)))
    problems += _disproved(steps)
    if problems:
        raise PlanError(f"{first.table} and {second.format} cannot be joined: {len(problems)} problems", problems)
    return replace(
        first,
        variant=second.variant,
        config=second.config,
        part=second.part,
        steps=tuple(steps),
        left_out=(*first.left_out, *left_out),
        missing=second.missing,
        rebuilt=second.rebuilt,
        carried=second.carried,
        written=second.written,
    )


def _groups(first: Sequence[Step], second: Sequence[Step]) -> Iterator[tuple[list[Step], list[Step]]]:
    """Steps of both sides that are connected through the tensors between them, in the order of `first`."""
    maker = {tensor.name: step for step in first for tensor in step.targets}
    takers = {tensor.name: step for step in second for tensor in step.sources}
    done: set[int] = set()
    for start in first:
        if id(start) in done:
            continue
        group: dict[int, Step] = {}
        beyond: dict[int, Step] = {}
        queue = [start]
        while queue:
            step = queue.pop()
            if id(step) in group:
                continue
            group[id(step)] = step
            for taker in (takers[t.name] for t in step.targets if t.name in takers):
                beyond[id(taker)] = taker
                queue += [maker[tensor.name] for tensor in taker.sources]
        done |= group.keys()
        yield list(group.values()), list(beyond.values())


def _changes(made: Sequence[Tensor], takers: Sequence[Step]) -> bool:
    """Whether the dtype of what is made changes once more."""
    return any(target.dtype != tensor.dtype for tensor in made for step in takers for target in step.targets)


def _at(table: str, step: Step) -> str:
    """The rule of a step, with its table."""
    return step.pointer if not step.pointer.startswith("/") else f"{table}:{step.pointer}"


def _joined(makers: Sequence[Step], takers: Sequence[Step], pointer: str) -> Iterator[Step]:
    """One step for the whole group, or one for each tensor where nothing is left that joins or splits."""
    made = [tensor.name for step in makers for tensor in step.targets]
    taken = [tensor.name for step in takers for tensor in step.sources]
    order = tuple(made.index(name) for name in taken)
    ops = _without_detours([*_side_by_side(makers), *([Arrange(order)] if order != tuple(range(len(order))) else []),
                            *_side_by_side(takers)])  # fmt: skip
    sources = [tensor for step in makers for tensor in step.sources]
    targets = [tensor for step in takers for tensor in step.targets]
    if all(isinstance(op, Elementwise) for op in ops):
        for source, target in zip(sources, targets, strict=True):
            yield Step(pointer, (source,), (target,), ops)
    else:
        yield Step(pointer, tuple(sources), tuple(targets), ops)


def _side_by_side(steps: Sequence[Step]) -> tuple[Op, ...]:
    if len(steps) == 1:
        return steps[0].ops
    if all(not step.ops for step in steps):
        return ()
    return (Branches(tuple((len(step.sources), len(step.targets), step.ops) for step in steps)),)


def _without_detours(ops: Sequence[Op]) -> tuple[Op, ...]:
    """`ops` without neighbours of which one undoes the other."""
    kept = list(ops)
    while at := next((i for i, (a, b) in enumerate(pairwise(kept), start=1) if a.inverse() == b), None):
        del kept[at - 1 : at + 1]
    return tuple(kept)


def _disproved(steps: Sequence[Step]) -> Iterator[str]:
    proofs = {(step.ops, tuple(t.shape for t in step.sources)): step for step in steps if step.ops}
    for (ops, shapes), step in proofs.items():
        if said := prove_bijective(ops, shapes):
            yield f"{step.pointer}: {said}"
