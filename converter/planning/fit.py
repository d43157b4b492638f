"""Fitting a table to tensors: which variant they are, what becomes of each, and everything that is wrong.

A table is laid against a checkpoint, or, read backwards, against tensors of its target: `converter.planning.export`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from converter.checkpoint import DTYPES, DType
from converter.display import quoted
from converter.errors import PlanError, TableError
from converter.mapping.cast import is_float
from converter.mapping.entries import Bound, Ignore, Transfer
from converter.mapping.load import hub_table
from converter.mapping.names import form_of
from converter.mapping.ops import Op, Shape, prove_bijective
from converter.mapping.pattern import Captures
from converter.mapping.spec import Variant
from converter.mapping.table import Table
from converter.mapping.transfers import transfers
from converter.mapping.wrappers import Counter as TrainersCounter
from converter.mapping.wrappers import load_wrappers
from converter.planning.keys import by_key, naming, wrappers_of
from converter.planning.nearest import of_other_sizes, problems_of_unknown
from converter.planning.options import with_options
from converter.planning.plan import Contents, LeftOut, Missing, Naming, Plan, Residue, Step, Tensor
from converter.planning.refusals import refusal


def make_plan(
    table: Table,
    contents: Contents,
    *,
    variant: str | None = None,
    dtype: str | None = None,
    only_joins: bool = False,
    refuse: bool = True,
) -> Plan:
    """Fit `table` to the index of a checkpoint.

    The variant is inferred from names and shapes unless stated; `dtype` casts every tensor, else each keeps its own;
    with `only_joins` it casts only those of several dtypes that become one.
    A tensor that cannot be read is a problem unless the table leaves it out, an object only where a tensor is needed.
    Raises PlanError with every problem at once, or TableError where the table's doubts are all that is wrong, unless
    `refuse` is False: then they are in the plan.
    """
    laid = fits(table, contents, variant)
    plan = laid.fit.plan(dtype, only_joins=only_joins)
    if refuse and plan.problems:
        if said := hidden(table, contents) or of_other_sizes(laid):
            raise PlanError(said)
        if laid.best is not laid.fit and not laid.best.plan(dtype, only_joins=only_joins).problems:
            stated, found = laid.fit.variant.name, laid.best.variant.name
            raise PlanError(
                f"{table.name}: {stated} was stated, but every tensor is that of {found}. State that, or none."
            )
        raise refusal(laid, len(contents.tensors), plan.problems)
    return plan


def hidden(table: Table, contents: Contents) -> str:
    """A sentence, if the names of the format are there, but behind something that is no known wrapper; else ""."""
    is_foreign = any(map(table.foreign, contents.tensors))
    start = "" if is_foreign else table.names.behind(contents.tensors)
    return start and (
        f"names of {table.label} are there, but behind {quoted(f'{start}.')}, which is no known wrapper. If it is one "
        f"here, take it off with --root {start}"
    )


def fits(table: Table, contents: Contents, variant: str | None = None) -> Fits:
    """`table` laid against the index of a checkpoint, under every variant. Arguments as for `make_plan`."""
    tensors, problems = by_key(contents.tensors, table)
    reasons = {**contents.objects, **contents.unsupported}
    unreadable = {table.short(name): reason for name, reason in reasons.items()}
    # an object is no matter, unless it lies where the format has a tensor
    extra = [table.short(n) for n in reasons if n in contents.unsupported or table.names.knows(form_of(n))]
    problems += [f"{quoted(tensors[key].name)} is there twice: {unreadable[key]}" for key in extra if key in tensors]
    return Fits(
        table,
        tensors,
        variant,
        unreadable=unreadable,
        extra=extra,
        problems=problems,
        naming=naming(table, contents.tensors),
        wrappers=wrappers_of(table, contents.tensors),
    )


class Fits:
    """A table laid against tensors, once for each variant. `best` has the highest score, of equals the one with more
    shapes in common with the tensors; `fit` is that of the stated variant, or `best`.

    `details` are arguments of `Fit`.
    """

    def __init__(
        self,
        table: Table,
        tensors: Mapping[str, Tensor],
        variant: str | None,
        **details: Any,
    ) -> None:
        try:
            self.stated = table.spec.variant(variant) if variant else None
        except TableError as error:
            raise PlanError(str(error)) from None
        self.table = table
        shapes = Counter(tensor.shape for tensor in tensors.values())

        def in_common(variant: Variant) -> float:
            try:
                made = Counter(table.spec.tensors(variant.config).values())
            except TableError:  # told if it comes to fitting this variant
                return 0.0
            return (made & shapes).total() / max(1, (made | shapes).total())

        fits: list[Fit] = []
        for each in sorted(table.spec.variants, key=in_common, reverse=True):  # to fit one takes six times as long
            fits.append(Fit(table, each, tensors, **details))
            if fits[-1].score == 1:  # nothing is missing or left over; no other variant can fit better
                break
        self.best = max(fits, key=lambda fit: fit.score)
        self.fit = self.best
        if self.stated and self.stated != self.best.variant:
            self.fit = next((f for f in fits if f.variant == self.stated), None) or Fit(
                table, self.stated, tensors, **details
            )


@dataclass(eq=False)
class Fit:
    """A table under one variant, laid against tensors: those of a checkpoint, or backwards against the spec's own."""

    table: Table
    variant: Variant
    tensors: Mapping[str, Tensor]
    naming: Naming
    unreadable: Mapping[str, str] = field(default_factory=dict)
    extra: Sequence[str] = ()
    problems: Sequence[str] = ()
    backwards: bool = False
    residue: Residue | None = None
    wrappers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table, variant, tensors, backwards = self.table, self.variant, self.tensors, self.backwards
        self.kept: Mapping[str, Tensor] = self.residue.tensors if self.residue else {}
        self.config = with_options(table, variant, tensors, self.kept if backwards else None)
        self.there: Bound = table.bind(self.config)
        self.transfers, self.static_problems = transfers(table, self.there, self.config)
        stored = {**self.naming.shapes, **{name: t.shape for name, t in (self.kept if backwards else tensors).items()}}
        self.transfers = [transfer.of_stored(stored) for transfer in self.transfers]
        self.reshaped = {name: shape for t in self.transfers for name, shape in t.sources if shape == t.also}
        self.bound = self.there.reverse() if backwards else self.there
        if backwards:
            self.transfers = [transfer.reverse() for transfer in self.transfers]
        # transfers without any source: restored from the residue, or dropped because they are optional
        lacking = [t for t in self.transfers if not any(name in tensors for name, _ in t.sources)]
        self.restored = [t for t in lacking if all(name in self.kept for name, _ in t.targets)]
        self.dropped = [t for t in lacking if t.rule.optional and not all(name in self.kept for name, _ in t.targets)]
        absent = {name for transfer in (*self.restored, *self.dropped) for name, _ in transfer.sources}
        needed = {name: (shape, t) for t in self.transfers for name, shape in t.sources}
        self.needed = {name: item for name, item in needed.items() if name not in absent}
        self.found = sum(name in tensors and tensors[name].shape == shape for name, (shape, _) in self.needed.items())
        restored = {name: shape for t in self.restored for name, shape in t.targets}
        fits = self.found + sum(self.kept[name].shape == shape for name, shape in restored.items())
        ignored = sum(bool(self.bound.claims.of(name) or counter_of(tensor)) for name, tensor in tensors.items())
        ignored += sum(bool(self.there.claims.of(name)) for name in self.kept)
        # intersection over union of the tensors that are needed and those that are present, ignored ones aside
        self.score = fits / max(1, len(self.needed) + len(restored) + len(tensors) + len(self.kept) - ignored - fits)

    @property
    def is_sound(self) -> bool:
        """Whether the plan would have no problem."""
        return not self.plan(None).problems

    def plan(self, dtype: str | None, *, only_joins: bool = False) -> Plan:
        """Everything that this fit decides, and what is wrong with it."""
        steps, found = self._steps(DTYPES[dtype] if dtype else None, only_joins)
        left_out, unmatched = self._account()
        unmatched += self._unread()
        # the shorter list first: for a checkpoint of another model, the longer one would bury it
        fewer, more = sorted([unmatched, found], key=len)
        missing = [
            Missing(_folded(t.rule.targets[0].text, t), t.rule.pointer, t.rule.optional or "") for t in self.dropped
        ]
        return Plan(
            self.table.name,
            self.table.sha256,
            self.table.spec.name,
            self.variant,
            self.config,
            steps,
            left_out,
            (*self.table.doubts(), *self.problems, *self.static_problems, *fewer, *more),
            self.table.spec.part,
            tuple(dict.fromkeys(missing)),
            naming=replace(self.naming, shapes=self.reshaped),
            wrappers=self.wrappers,
            config_of_library=hub_table(self.table.spec).config_document(
                self.config, {tensor.dtype.name for step in steps for tensor in step.targets}
            ),
        )

    def _steps(self, dtype: DType | None, only_joins: bool) -> tuple[tuple[Step, ...], list[str]]:
        steps, problems = [], []
        proved: dict[tuple[tuple[Op, ...], tuple[Shape, ...]], str | None] = {}
        dropped = set(map(id, (*self.restored, *self.dropped)))
        for transfer in self.transfers:
            if id(transfer) in dropped:
                continue
            wrong = list(self._misfits(transfer))
            sources = [self.tensors[name] for name, _ in transfer.sources if name in self.tensors]
            if not wrong:
                wrong += wrong_dtypes(transfer, sources)
            is_mixed = len({tensor.dtype for tensor in sources}) > 1
            if not wrong and is_mixed and dtype is None:
                wrong.append(
                    f"{transfer.rule.pointer} joins tensors of different dtypes: {', '.join(map(str, sources))}. "
                    "State with `convert --dtype` in which one to write them"
                )
            if not wrong and transfer.ops:
                proof = (transfer.ops, tuple(shape for _, shape in transfer.sources))
                if proof not in proved:
                    proved[proof] = prove_bijective(*proof)
                if said := proved[proof]:
                    wrong.append(f"{transfer.rule.pointer}: {said}")
            problems += wrong
            if not wrong:
                kept = DTYPES[transfer.rule.cast[1]] if transfer.rule.cast else sources[0].dtype
                made = dtype if dtype and is_float(kept) and (is_mixed or not only_joins) else kept
                targets = tuple(Tensor(name, shape, made) for name, shape in transfer.targets)
                steps.append(Step(transfer.rule.pointer, tuple(sources), targets, transfer.ops))
        return tuple(steps), problems

    def _misfits(self, transfer: Transfer) -> Iterator[str]:
        made = f"{transfer.targets[0][0]!r} {transfer.targets[0][1]}"
        for name, shape in transfer.sources:
            there = self.tensors.get(name)
            if there is None and name in self.unreadable:
                yield f"{self.unreadable[name]}; {transfer.rule.pointer} makes {made} of it"
            elif there is None:
                yield f"{name!r} {shape} is missing; {transfer.rule.pointer} makes {made} of it{self._copy_of(name)}"
            elif there.shape != shape:
                hint = " (it looks transposed)" if there.shape[::-1] == shape else ""
                yield (f"{there.name!r} is {there.shape}{hint}; {transfer.rule.pointer} needs {shape} to make {made}")

    def _copy_of(self, name: str) -> str:
        """A clause, if a missing tensor is there under a name that the table calls a copy of it; else ""."""
        for other, tensor in self.tensors.items():
            for claim in self.bound.claims.of(other):
                if claim.copy_of and claim.copy_of.format(claim.source.match(other) or {}) == name:
                    return f". {tensor.name!r} is there, of which {claim.pointer} says that it is the same: rename it"
        return ""

    def _account(self) -> tuple[tuple[LeftOut, ...], list[str]]:
        """What becomes of the tensors that no transfer needs; every one must be left out by exactly one entry."""
        left_out, problems = [], []
        matched: set[str] = set()
        unknown: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            claims = self.bound.claims.of(name)
            matched |= {ignore.pointer for ignore in claims}
            makers = self.bound.takers.of(name)
            if name in self.needed and len(makers) + len(claims) == 1:
                continue
            pointers = ", ".join([*(r.pointer for r in makers), *(i.pointer for i in claims)])
            if len(makers) + len(claims) > 1:
                problems.append(f"{tensor.name!r} {tensor.shape} is matched more than once: {pointers}")
            elif claims and claims[0].refused:
                problems.append(f"{self.table.name} cannot hold {tensor.name!r} {tensor.shape}: {claims[0].reason}")
            elif claims:
                left_out.append(self._left_out(tensor, claims[0], claims[0].source.match(name) or {}))
            elif not makers and (counter := counter_of(tensor)):
                left_out.append(LeftOut(tensor, counter.pointer, counter.reason, None))
            elif makers:
                problems.append(
                    f"{tensor.name!r} {tensor.shape} matches {pointers}, but no tensor of "
                    f"{self.variant.name} is made of it"
                )
            else:
                unknown[name] = tensor
        shapes = {key: shape for key, (shape, _) in self.needed.items()}
        problems += problems_of_unknown(self.table, unknown, shapes, self.tensors.keys())
        for ignore in self.bound.ignores:
            if ignore.pointer not in matched and ignore.optional is None:
                problems.append(
                    f"{ignore.pointer} matches nothing: {ignore.source.text!r}. If a checkpoint may lack it, say why "
                    "in 'optional'."
                )
        return tuple(left_out), problems

    def _left_out(self, tensor: Tensor, claim: Ignore, captures: Captures) -> LeftOut:
        accepts = claim.accepts and partial(claim.accepts, captures)
        rebuild = None if accepts or claim.rebuild is None else partial(claim.rebuild, captures)
        of = claim.copy_of.format(captures) if claim.copy_of else ""
        original = self.tensors.get(of) if of in self.needed else None  # what nothing is made of stands for nothing
        return LeftOut(tensor, claim.pointer, claim.reason, rebuild, accepts, original)

    def _unread(self) -> list[str]:
        """Problems of tensors that cannot be read and that neither a transfer needs nor the table leaves out."""
        return [
            f"{self.unreadable[name]}; the table does not leave it out"
            for name in self.extra
            if name not in self.needed and not self.bound.claims.of(name)
        ]


def wrong_dtypes(transfer: Transfer, sources: Sequence[Tensor]) -> Iterator[str]:
    for tensor in sources:
        if transfer.dtype is not None and tensor.dtype.name != transfer.dtype:
            yield f"{tensor.name!r} is {tensor.dtype.name}; {transfer.rule.pointer} takes {transfer.dtype}"
        elif transfer.dtype is None and not is_float(tensor.dtype):
            yield f"{tensor.name!r} is {tensor.dtype.name}; {transfer.rule.pointer} takes floating-point weights"
        elif transfer.rule.cast and tensor.dtype.name != transfer.rule.cast[0]:
            yield f"{tensor.name!r} is {tensor.dtype.name}; {transfer.rule.pointer} casts from {transfer.rule.cast[0]}"


def counter_of(tensor: Tensor) -> TrainersCounter | None:
    """The counter of a trainer that a tensor is, which is left out of every format that does not know it."""
    return load_wrappers().counter(tensor.name, tensor.shape, tensor.dtype)


def _folded(pattern: str, transfer: Transfer) -> str:
    """What a rule would have made: its pattern, or the name where it makes a single one."""
    return pattern if "{" in pattern else transfer.targets[0][0]
