"""From tensors of the target to a format: a table read backwards, and what the format has beyond the target.

That is rebuilt from the config, or restored from the residue of the conversion that once left it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from converter.checkpoint import DTYPES, DType
from converter.display import quoted
from converter.mapping.cast import can_hold, is_float
from converter.mapping.table import Table
from converter.planning.fit import Fit, Fits, counter_of, wrong_dtypes
from converter.planning.plan import Format, LeftOut, Missing, Naming, Plan, Rebuilt, Residue, Step, Tensor
from converter.planning.refusals import refusal


def make_export(
    table: Table, tensors: Sequence[Tensor], *, dtype: str | None = None, residue: Residue | None = None
) -> Plan:
    """Read `table` backwards: from tensors of its spec, which need not be there yet, to its format.

    `residue` is that of a conversion from this format: what its own state dict had and the spec has not.
    Raises as `make_plan`.
    """
    inside = {tensor.name: tensor for tensor in tensors if table.spec.holds(tensor.name)}
    outside = tuple(
        LeftOut(tensor, "", f"{table.name} holds {table.spec.title} alone", None)
        for tensor in tensors
        if not table.spec.holds(tensor.name)
    )
    naming = residue.naming if residue else Naming(table.saved_as.prefix)
    laid = Fits(table, inside, None, naming=naming, backwards=True, residue=residue)
    plan = _with_the_rest(laid.fit, laid.fit.plan(dtype), DTYPES[dtype] if dtype else None)
    if plan.problems:
        raise refusal(laid, len(inside), plan.problems)
    return replace(plan, left_out=(*outside, *plan.left_out))


def _with_the_rest(fit: Fit, plan: Plan, dtype: DType | None) -> Plan:
    """`plan`, with what the format has beyond the spec: rebuilt, or kept from the checkpoint it once came from."""
    missing = list(plan.missing)
    for ignore in fit.there.ignores:
        if ignore.without and not any(ignore.source.match(name) is not None for name in fit.kept):
            missing.append(Missing(ignore.source.text, ignore.pointer, ignore.without))
    made_of_steps = {tensor.name: tensor for step in plan.steps for tensor in step.targets}
    rebuilt, unfit = _rebuilt(fit, {**fit.kept, **made_of_steps})
    kept = [
        replace(tensor, dtype=dtype if dtype and is_float(tensor.dtype) else tensor.dtype)
        for tensor in fit.kept.values()
    ]

    def named(tensor: Tensor) -> Tensor:
        return replace(tensor, name=fit.naming.full(tensor.name))

    made = replace(
        plan,
        steps=tuple(replace(step, targets=tuple(map(named, step.targets))) for step in plan.steps),
        carried=tuple(Step("residue", (t,), (made,), ()) for t, made in zip(fit.kept.values(), kept, strict=True)),
        rebuilt=tuple(
            replace(r, tensor=named(r.tensor), copy_of=r.copy_of and fit.naming.full(r.copy_of)) for r in rebuilt
        ),
        missing=tuple(missing),
        problems=(*plan.problems, *_misplaced(fit), *unfit),
    )
    if fit.table.is_hub:
        return made
    config = fit.table.config_document(fit.config, {tensor.dtype.name for tensor in made.targets})
    return replace(made, written=Format(fit.table.name, fit.table.sha256, fit.table.saved_as.root, config))


def _misplaced(fit: Fit) -> Iterator[str]:
    """Problems of what the residue holds: each tensor must be what a rule makes, or an entry leaves out."""
    fitting: set[str] = set()
    for transfer in fit.restored:
        back = transfer.reverse()
        fitting |= {name for name, _ in back.sources}
        for tensor, shape in ((fit.kept[name], shape) for name, shape in back.sources):
            if tensor.shape != shape:
                yield f"the residue's {quoted(tensor.name)} is {tensor.shape}; {back.rule.pointer} needs {shape}"
        yield from wrong_dtypes(back, [fit.kept[name] for name, _ in back.sources])
    made = {name: transfer.rule.pointer for transfer in fit.transfers for name, _ in transfer.targets}
    for name, tensor in fit.kept.items():
        if name in fitting:
            continue
        found = f"the residue's {quoted(tensor.name)} {tensor.shape}"
        claims = fit.there.claims.of(name)
        if name in made:
            yield f"{found}: {made[name]} makes it of what is there in the source, or needs more than the residue has"
        elif not claims and not counter_of(tensor):
            yield f"{found}: {fit.table.name} has no rule for it. Give the residue of this very conversion"
        elif computed := next((claim for claim in claims if claim.rebuild), None):
            if not computed.accepts:
                yield f"{found}: {computed.pointer} computes it, so no residue holds it"
            elif name.rpartition(".")[0] not in _modules(made):
                yield f"{found}: {fit.variant.name} has no such layer"
    if fit.residue:
        known = made.keys() | fit.kept.keys() | fit.residue.buffers.keys()
        for name in (name for name in fit.residue.naming.others if name not in known):
            yield f"the residue names {quoted(name)}, which {fit.table.name} does not write"
        for name, shape in fit.residue.naming.shapes.items():
            if fit.reshaped.get(name) != shape:
                yield f"the residue has {quoted(name)} {shape}, a shape in which {fit.table.name} does not write it"


def _modules(names: Iterable[str]) -> set[str]:
    """All modules that tensors of these names belong to."""
    return {"", *(name[:end] for name in names for end, letter in enumerate(name) if letter == ".")}


def _rebuilt(fit: Fit, made: Mapping[str, Tensor]) -> tuple[list[Rebuilt], list[str]]:
    """The buffers to write, and copies of what is `made`: those of the residue's checkpoint, or what the format's own
    tools save."""
    wanted: dict[str, DType | None] = {}
    for ignore in fit.there.ignores:
        wanted |= {ignore.source.format(captures): None for captures in ignore.written}
    names = {name for transfer in fit.transfers for name, _ in transfer.targets} | wanted.keys()
    modules = _modules(names)
    if fit.residue:
        wanted = dict(fit.residue.buffers)
    rebuilt, problems = [], []
    for name, dtype in wanted.items():
        found = f"the residue's buffer {quoted(name)}"
        claim = next((claim for claim in fit.there.claims.of(name) if claim.is_rebuilt), None)
        captures = (claim and claim.source.match(name)) or {}
        if claim is None or not claim.is_rebuilt:
            problems.append(f"{found}: {fit.table.name} computes no such buffer")
        elif claim.copy_of is not None:
            original = claim.copy_of.format(captures)
            if original in made:
                rebuilt.append(Rebuilt(replace(made[original], name=name), claim.pointer, None, original))
            else:
                problems.append(f"{name!r} is a copy of {original!r}, which is not written")
        elif name not in names if claim.written else name.rpartition(".")[0] not in modules:
            problems.append(f"{found}: {fit.variant.name} has no such layer")
        elif claim.rebuild is not None:
            make = partial(claim.rebuild, captures)
            value = make()
            if dtype is not None and not can_hold(value, dtype):
                problems.append(f"{found}: {dtype.name} cannot hold what {claim.pointer} computes")
            rebuilt.append(Rebuilt(Tensor(name, value.shape, dtype or DTYPES[value.dtype.name]), claim.pointer, make))
    return rebuilt, problems
