"""Comparing two checkpoints tensor by tensor: names, shapes, dtypes, and every bit.

If one side is in the format that a table reads and the other in the format that it makes, the table is applied, and
tensors are compared under the target's names. If the sides have a table each, both tables are applied. Otherwise
tensors are compared by key, without the table's prefixes. One tensor is read at a time, so memory is bounded by the
largest, its counterpart and the ops that make it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from converter.checkpoint import DTYPES, Checkpoint, DType
from converter.display import quoted
from converter.errors import TableError
from converter.mapping.cast import cast, is_float
from converter.mapping.entries import Transfer
from converter.mapping.load import hub_table
from converter.mapping.names import form_of
from converter.mapping.ops import Array, Shape, apply_ops
from converter.mapping.table import Table
from converter.mapping.transfers import transfers
from converter.planning.fit import make_plan
from converter.planning.nearest import nearest
from converter.planning.plan import Plan, Step

Family: TypeAlias = Literal["source", "target", "unknown"]
Kind: TypeAlias = Literal["shape", "dtype", "value"]

_BLOCK = 1 << 18  # elements compared at once: their float64 copies fit the cache
_HINTED, _CANDIDATES = 40, 4096  # names that get a hint, names searched: a crafted file may hold a hundred thousand


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor under the name that it is compared by. `sources`: its names in the file; `step` makes it from them.

    If the table cannot make it, `misfit` says what is wrong with a source, and shape and dtype are that source's.
    `note`: why it could not be compared, if known. `nearest`: similar names that have no partner either.
    """

    name: str
    sources: tuple[str, ...]
    shape: Shape
    dtype: DType
    step: Step | None = None
    misfit: Kind | None = None
    note: str = ""
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor that is not the same on both sides.

    Args:
        differing: elements; None where values could not be compared. What follows is of floats only.
        max_abs: the largest finite difference; infinite where there is no measure.
        relative: Frobenius norm of the finite differences over that of A's finite values; None if that is zero.
        not_finite: elements without a finite difference: a NaN or an infinity that the other side does not have.
    """

    a: Seen
    b: Seen
    kinds: tuple[Kind, ...]
    differing: int | None = None
    max_abs: float = math.inf
    relative: float | None = None
    not_finite: int = 0
    tolerated: bool = False


@dataclass(frozen=True, slots=True)
class Aside:
    """A tensor that is not compared, and why: the table leaves it out, or it cannot be read."""

    side: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Difference:
    """What the comparison found, the worst of `different` first. `by` are the tables that were applied; none: by key.

    Every tensor of both sides is in one place: compared, alone, left out or unreadable.
    """

    by: tuple[str, ...]
    variant: str | None
    families: tuple[Family, Family]
    compared: int
    only_in_a: tuple[Seen, ...]
    only_in_b: tuple[Seen, ...]
    different: tuple[Pair, ...]
    left_out: tuple[Aside, ...]
    unreadable: tuple[Aside, ...]

    @property
    def is_equal(self) -> bool:
        """Something was compared, nothing is alone or unreadable, and no difference is beyond the tolerance."""
        alone = self.only_in_a or self.only_in_b or self.unreadable
        return self.compared > 0 and not alone and all(pair.tolerated for pair in self.different)


def diff(
    a: Checkpoint,
    b: Checkpoint,
    table: Table | None,
    other: Table | None = None,
    *,
    tolerance: float | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Difference:
    """Compare `a` with `b`, through `table` where they are its two sides; without a table by raw key.

    `other` is the table of `b` where it is another one, of the same target. What a format cannot hold is not compared.
    Without `tolerance` every bit and dtype counts. With it floats may differ by so much, in whatever float dtype, and
    NaN equals NaN. `on_bytes` gets the number of bytes of A compared since the last call.
    Raises CheckpointError, or TableError for a table that cannot be applied.
    """
    sides = side_a, side_b = _Side("A", a, table), _Side("B", b, other or table)
    source = next((side for side in sides if side.family == "source"), None)
    families = {side_a.family, side_b.family}
    across = families == {"source", "target"} or (other is not None and families == {"source"})
    for side in sides:
        side.look(through_table=across and side.family == "source")
    if across:
        side_a.set_aside(side_b)
        side_b.set_aside(side_a)
    # in the order of the steps, so that all that a step makes is compared before the next one runs
    common = [name for name in (source or side_a).seen if name in side_a.seen and name in side_b.seen]
    different = []
    for name in common:
        if pair := _compare(side_a, side_b, name, tolerance):
            different.append(pair)
        on_bytes(side_a.seen[name].dtype.itemsize * math.prod(side_a.seen[name].shape))
    for side, opposite in (sides, sides[::-1]):
        side.alone = {name: seen for name, seen in side.seen.items() if name not in opposite.seen}
        side.checkpoint.verify_unchanged()
    return Difference(
        by=tuple(side.plan.table for side in sides if side.plan and across and side.family == "source"),
        variant=source.plan.variant.name if source and source.plan else None,
        families=(side_a.family, side_b.family),
        compared=len(common),
        only_in_a=tuple(side_a.lones(side_b)),
        only_in_b=tuple(side_b.lones(side_a)),
        different=tuple(sorted(different, key=lambda p: (p.differing is not None, not p.not_finite, -p.max_abs))),
        left_out=tuple(out for side in sides for out in side.outs()),
        unreadable=tuple(Aside(side.letter, *item) for side in sides for item in side.unreadable.items()),
    )


class _Side:
    """A checkpoint, which side of the table it is on, and what it holds under the names of the comparison.

    `loose`: tensors that no rule uses. `missing`: tensors that a rule needs and the file lacks. `lacking`: for each
    target that cannot be made, which tensors are missing for it.
    """

    def __init__(self, letter: str, checkpoint: Checkpoint, table: Table | None) -> None:
        self.letter, self.checkpoint, self.table = letter, checkpoint, table
        self._short: Callable[[str], str] = partial(_short, table, hub_table(table.spec)) if table else str
        self.family: Family = "unknown"
        self.plan: Plan | None = None
        self.unreadable = {**checkpoint.objects, **checkpoint.unsupported}
        self.seen: dict[str, Seen] = {}
        self.alone: dict[str, Seen] = {}  # of `seen`, what the other side does not have
        self.loose: dict[str, Seen] = {}
        self.missing: dict[str, Shape] = {}
        self.lacking: dict[str, str] = {}
        self.left_out: dict[str, Aside] = {}
        self.claimed: set[str] = set()  # of `seen`, what the table leaves out
        self._made: dict[str, Array] = {}  # by the last step, not yet taken
        if table is None:
            return
        self.plan = make_plan(table, checkpoint, refuse=False)
        bound = table.bind(self.plan.config)
        self.transfers, problems = transfers(table, bound, self.plan.config)
        if problems:
            raise TableError(f"{table.name} cannot be applied; 'converter lint' says more", problems)
        shapes = {self._short(name): info.shape for name, info in checkpoint.tensors.items()}
        self.transfers = [transfer.of_stored(shapes) for transfer in self.transfers]
        names = shapes.keys()
        outs = {self._short(out.tensor.name): out.reason for out in self.plan.left_out}
        # where most names belong: a file may be a fragment, so what is missing does not count
        sources = len(names & {name for transfer in self.transfers for name, _ in transfer.sources} | outs.keys())
        targets = max(len(names & table.spec.tensors(variant.config).keys()) for variant in table.spec.variants)
        if 2 * max(sources, targets) > len(names):
            self.family = "target" if targets > sources else "source"
        if self.family == "source":
            for name in self.unreadable:
                if claim := next((i for i in bound.ignores if i.source.match(self._short(name)) is not None), None):
                    outs[self._short(name)] = claim.reason
                    del self.unreadable[name]
            self.left_out = {name: Aside(letter, name, reason) for name, reason in outs.items()}

    def look(self, *, through_table: bool) -> None:
        """Fill `seen`: what the table makes of the tensors if it is to be applied, else the tensors by key."""
        tensors = {
            name: Seen(self._short(name), (name,), t.shape, t.dtype) for name, t in self.checkpoint.tensors.items()
        }
        if not through_table or self.plan is None:
            count = Counter(seen.name for seen in tensors.values())
            for name, seen in tensors.items():
                # with both `x` and `module.x` there, each keeps its whole name
                key = seen.name if count[seen.name] == 1 else name
                self.seen[key] = replace(seen, name=key)
            self.claimed = self.left_out.keys() & self.seen.keys()
            return
        own = {seen.name: seen for seen in reversed(tensors.values())}  # of two, the first, as in `make_plan`
        made = {target.name: (step, target) for step in self.plan.steps for target in step.targets}
        for transfer in self.transfers:
            absent = {name: shape for name, shape in transfer.sources if name not in own}
            self.missing |= absent
            for target, _ in transfer.targets:
                if absent:
                    self.lacking[target] = f"{self.letter} lacks {', '.join(map(quoted, absent))}"
                elif target in made:
                    step, tensor = made[target]
                    names = tuple(source.name for source in step.sources)
                    self.seen[target] = Seen(target, names, tensor.shape, tensor.dtype, step)
                else:
                    self.seen[target] = self._misfit(target, transfer, [own[name] for name, _ in transfer.sources])
        used = {name for seen in self.seen.values() for name in seen.sources}
        used |= {own[name].sources[0] for name in self.left_out if name in own}
        self.loose = {name: seen for name, seen in tensors.items() if name not in used}

    def set_aside(self, other: _Side) -> None:
        """Take out what the other side's format cannot hold.

        On the target's side a name that the spec does not know stays in: it is a difference.
        """
        if other.family != "source" or other.table is None or other.plan is None:
            return
        held = {target for transfer in other.transfers for target, _ in transfer.targets}
        part = other.table.spec.tensors(other.plan.config)
        for name in [name for name in self.seen if name not in held]:
            if self.family == "source" or name in part or not other.table.spec.holds(name):
                reason = f"{other.table.name} does not hold it"
                self.left_out |= {source: Aside(self.letter, source, reason) for source in self.seen[name].sources}
                del self.seen[name]

    def _misfit(self, target: str, transfer: Transfer, sources: list[Seen]) -> Seen:
        names = tuple(source.sources[0] for source in sources)
        for source, (_, shape) in zip(sources, transfer.sources, strict=True):
            if source.shape != shape:
                said = f"the table needs {quoted(source.sources[0])} to be {shape}"
                return Seen(target, names, source.shape, source.dtype, misfit="shape", note=said)
        if not transfer.rule.cast and len({s.dtype for s in sources}) == 1 and is_float(sources[0].dtype):
            raise TableError(f"{transfer.rule.pointer} loses elements of {target!r}; 'converter lint' says more")
        said = f"the table takes {transfer.rule.cast[0] if transfer.rule.cast else 'floats of one dtype'}"
        return Seen(target, names, sources[0].shape, sources[0].dtype, misfit="dtype", note=said)

    def lones(self, other: _Side) -> Iterator[Seen]:
        """What is here only, but for what the table leaves out."""
        rest = [*(seen for name, seen in self.alone.items() if name not in self.claimed), *self.loose.values()]
        unmatched = {name: seen.shape for name, seen in (other.alone | other.loose).items()}
        candidates = dict([*self.missing.items(), *unmatched.items()][:_CANDIDATES])
        for position, seen in enumerate(rest):
            near = nearest(seen.name, candidates, seen.shape) if position < _HINTED else ()
            yield replace(seen, nearest=tuple(near), note=other.lacking.get(seen.name, seen.note))

    def outs(self) -> Iterator[Aside]:
        """What the table leaves out, unless both sides have it: then it was compared."""
        return (out for name, out in self.left_out.items() if name not in self.claimed or name in self.alone)

    def take(self, name: str) -> Array:
        """The values of a tensor, flat and contiguous. What a step makes is made once, for all its targets."""
        seen = self.seen[name]
        if seen.step is None:
            return self.checkpoint.read(seen.sources[0]).ravel()
        if name not in self._made:
            self._made.clear()
            arrays = apply_ops(seen.step.ops, [self.checkpoint.read(source) for source in seen.sources])
            self._made.update(zip((target.name for target in seen.step.targets), arrays, strict=True))
        return cast(self._made.pop(name), seen.step.sources[0].dtype, seen.dtype, name).ravel()


def _short(table: Table, target: Table, name: str) -> str:
    """`name` without wrappers, whichever side of the table it is of."""
    return (table if table.names.knows(form_of(name)) else target).short(name)


def _compare(side_a: _Side, side_b: _Side, name: str, tolerance: float | None) -> Pair | None:
    """None if shape, dtype and every bit are the same."""
    a, b = side_a.seen[name], side_b.seen[name]
    floats = is_float(a.dtype) and is_float(b.dtype)
    kinds: tuple[Kind, ...] = () if a.dtype == b.dtype else ("dtype",)
    if misfit := a.misfit or b.misfit:
        return Pair(a, b, (misfit,))
    if a.shape != b.shape or (kinds and not floats):
        return Pair(a, b, ("shape", *kinds) if a.shape != b.shape else kinds)
    x, y = side_a.take(name), side_b.take(name)
    blocks = [slice(start, start + _BLOCK) for start in range(0, x.size, _BLOCK)]
    differing = 0 if kinds else sum(_count_unequal(x[block], y[block]) for block in blocks)
    if not floats or not (kinds or differing):
        return Pair(a, b, ("value",), differing) if differing else None
    not_finite, largest, squared, gap_squared = 0, 0.0, 0.0, 0.0
    for block in blocks:
        with np.errstate(all="ignore"):  # infinities and signalling NaNs are counted, not warned of
            p, q = (cast(v[block], s.dtype, DTYPES["float64"], name) for v, s in ((x, a), (y, b)))
            gap = np.abs(p - q)
            gap[(p == q) | (np.isnan(p) & np.isnan(q))] = 0
            finite = np.isfinite(gap)
            if kinds:
                differing += int(np.count_nonzero(gap))
            not_finite += finite.size - int(np.count_nonzero(finite))
            gap[~finite] = 0
            largest = max(largest, float(gap.max()))
            p = np.where(np.isfinite(p), p, 0)
            squared, gap_squared = squared + float(np.vdot(p, p)), gap_squared + float(np.vdot(gap, gap))
    relative = math.sqrt(gap_squared / squared) if squared and math.isfinite(gap_squared + squared) else None
    tolerated = tolerance is not None and not not_finite and largest <= tolerance
    return Pair(a, b, (*kinds, "value") if differing else kinds, differing, largest, relative, not_finite, tolerated)


def _count_unequal(x: Array, y: Array) -> int:
    """Elements that differ in any bit."""
    width = min(x.itemsize, 8)  # complex128 is two words
    return int(np.count_nonzero((x.view(f"u{width}") != y.view(f"u{width}")).reshape(x.size, -1).any(axis=1)))
