"""Which part of the source becomes which part of the target.

Consistency is the strongest evidence, so the largest parts are matched first: whole families of one template, in which
every tensor has a counterpart of its shape at the same counted position, then families with some number fixed, then
families that correspond in their order only, then single tensors. Parts of equal signature are assigned by the words
of their names, with scipy's solver, and a pair without which another assignment is nearly as good is doubtful. What
has no counterpart of its own shape is joined, split, transposed or reshaped as far as shapes allow, with a doubt
where shapes cannot tell the order. All of it runs a few times: where neighbours went is evidence in the next round.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from converter.mapping.draft.assignment import Judge, labels
from converter.mapping.draft.names import Named, Signature, Unit, take_apart, units
from converter.mapping.draft.order import Order
from converter.mapping.draft.words import JOINED, Neighbours, Vocabulary, meaning

Op = Literal["rename", "concat", "split", "transpose", "reshape"]
_ROUNDS = 3
_SURE, _DOUBTFUL = 1.0, 0.25  # weight of a pair as evidence for its neighbours
_TORN = "the module as a whole has no counterpart, only its tensors one by one"
TURNED = "only the transposed shape is there"
_COUNTED_JOIN = 0.3  # similarity from which tensors that differ in a number may be parts of one


@dataclass(frozen=True, slots=True)
class Match:
    """`sources` become `targets` by `op`; one of the two sides is a single unit. `alike`: how alike the names are."""

    sources: tuple[Unit, ...]
    targets: tuple[Unit, ...]
    op: Op
    doubt: str | None
    alike: float = 0.0


@dataclass(frozen=True, slots=True)
class Matching:
    """The matches, and the tensors of either side that have none."""

    matches: tuple[Match, ...]
    left_sources: tuple[Named, ...]
    left_targets: tuple[Named, ...]


def match(
    sources: Sequence[Named], targets: Sequence[Named], on_round: Callable[[int], None] = lambda _: None
) -> Matching:
    """Match two models. `on_round` is told of every finished round."""
    vocabulary = Vocabulary({unit.label for side in (sources, targets) for unit in units(side) if not unit.fixed})
    likely = certain = Neighbours(())
    order = Order(sources)
    result = Matching((), tuple(sources), tuple(targets))
    for number in range(_ROUNDS):
        result = _Round(sources, targets, Judge(vocabulary, likely, certain), order).run()
        on_round(1)
        if not result.left_targets and not any(found.doubt for found in result.matches):
            break  # another round would give the same
        if number < _ROUNDS - 1:
            likely = Neighbours(_evidence(result.matches))
            certain = Neighbours(_evidence(found for found in result.matches if not found.doubt))
            order = order.after((one, other) for m in result.matches for one in m.sources for other in m.targets)
    return result


def _evidence(matches: Iterable[Match]) -> Iterator[tuple[str, str, float]]:
    for found in matches:
        weight = (_DOUBTFUL if found.doubt else _SURE) * len(found.targets[0].names)
        for source in found.sources:
            for target in found.targets:
                yield source.label, target.label, weight


class _Round:
    """One pass over all ways to match; a tensor that is matched takes no further part."""

    def __init__(self, sources: Sequence[Named], targets: Sequence[Named], judge: Judge, order: Order) -> None:
        self.sources = {tensor.name: tensor for tensor in sources}
        self.targets = {tensor.name: tensor for tensor in targets}
        self.judge = judge
        self.order = order
        self.matches: list[Match] = []

    def run(self) -> Matching:
        left, right = self._units()
        self._join(_named_siblings, left, right, 0.0)
        self._rename(left, right, lambda unit: bool(unit.free))
        self._in_order()
        self._rename(left, right, lambda unit: not unit.free)
        left, right = self._units()
        self._join(_counted_siblings, left, right, _COUNTED_JOIN)
        self._reformed(left, right)
        whole = len(self.matches)
        left, right = self._units(by_module=False)
        self._assign(_by_signature(left), _by_signature(right), "rename", None, torn=True)
        self._reformed(left, right)
        self._undo_strangers(whole)
        return Matching(tuple(self.matches), tuple(self.sources.values()), tuple(self.targets.values()))

    def _units(self, by_module: bool = True) -> tuple[list[Unit], list[Unit]]:
        return units(self.sources.values(), by_module), units(self.targets.values(), by_module)

    def _take(self, found: Match) -> None:
        self.matches.append(found)
        for unit in found.sources:
            for name in unit.names:
                del self.sources[name]
        for unit in found.targets:
            for name in unit.names:
                del self.targets[name]

    def _undo_strangers(self, first: int) -> None:
        """Give up matches, from `first` on, of one tensor of a module with one of a module that has little in common.

        A pooler's bias is no norm's although both are as long, where the weights of neither have a counterpart.
        """
        parts = [{take_apart(name)[:2] for name in side} for side in (self.sources, self.targets)]
        for found in self.matches[first:]:
            one, other = (next(iter(unit.names)) for unit in (found.sources[0], found.targets[0]))
            if take_apart(one)[:2] in parts[0] and take_apart(other)[:2] in parts[1]:
                stems = [[name.removesuffix(take_apart(name)[2])] for name in (one, other)]
                if self.judge.vocabulary.similarity(*stems)[0, 0] < _COUNTED_JOIN:
                    self.matches.remove(found)
                    for side, units_of in ((self.sources, found.sources), (self.targets, found.targets)):
                        side |= {t.name: t for u in units_of for params in u.members.values() for t in params.values()}

    def _still(self, sources: Iterable[Unit], targets: Iterable[Unit]) -> bool:
        """Whether no tensor of either side is matched yet, nor in two of these units."""
        for items, side in ((list(sources), self.sources), (list(targets), self.targets)):
            names = [name for unit in items for name in unit.names]
            if len(set(names)) < len(names) or not side.keys() >= set(names):
                return False
        return True

    def _rename(self, left: Sequence[Unit], right: Sequence[Unit], which: Callable[[Unit], bool]) -> None:
        self._assign(_by_signature(filter(which, left)), _by_signature(filter(which, right)), "rename", None)

    def _assign(
        self,
        left: Mapping[Signature, list[Unit]],
        right: Mapping[Signature, list[Unit]],
        op: Op,
        always: str | None,
        torn: bool = False,
    ) -> None:
        """Match units under equal keys, the largest first. `torn`: their modules as a whole have no counterpart."""
        common = [key for key in left if key in right]
        for key in sorted(common, key=len, reverse=True):
            some, others = _open(left[key], self.sources), _open(right[key], self.targets)
            if not some or not others:
                continue
            hints = self.order.matrix(some, others)
            for choice in self.judge.choose(labels(some), labels(others), several=len(key) > 1, hints=hints):
                pair = (some[choice.source],), (others[choice.target],)
                if self._still(*pair):  # units of one family may overlap
                    said = [text for text in (always, choice.doubt) if text]
                    if torn and pair[0][0].label != pair[1][0].label:
                        said.insert(0, _TORN)
                    self._take(Match(*pair, op, "; ".join(said) or None, choice.alike))

    def _in_order(self) -> None:
        """Families whose tensors correspond in the order of their numbers, though these follow no one formula."""
        sides = []
        for tensors in (self.sources, self.targets):
            families: dict[str, list[Unit]] = {}
            for unit in units(tensors.values()):
                if not unit.free:
                    families.setdefault(unit.template, []).append(unit)
            ordered: dict[Signature, list[list[Unit]]] = {}
            for family in families.values():
                if len(family) > 1:
                    family.sort(key=lambda unit: unit.fixed)
                    key: Signature = tuple(
                        ((i,), p, shape, kind) for i, unit in enumerate(family) for _, p, shape, kind in unit.signature
                    )
                    ordered.setdefault(key, []).append(family)
            sides.append(ordered)
        left, right = sides
        for key in sorted((key for key in left if key in right), key=len, reverse=True):
            some, others = ([family[0].template for family in side[key]] for side in (left, right))
            for choice in self.judge.choose(some, others):
                doubt = "the numbers follow no one formula: the tensors are paired in their order"
                if choice.doubt:
                    doubt += "; " + choice.doubt
                for pair in zip(left[key][choice.source], right[key][choice.target], strict=True):
                    self._take(Match((pair[0],), (pair[1],), "rename", doubt))

    def _join(
        self,
        siblings: Callable[[Sequence[Unit]], Mapping[str, list[Unit]]],
        left: Sequence[Unit],
        right: Sequence[Unit],
        least: float,
    ) -> None:
        """Match siblings on one side with one unit on the other, whose size along the first axis is their sum."""
        operations: tuple[Op, Op] = ("concat", "split")
        for op in operations:
            left, right = _open(left, self.sources), _open(right, self.targets)
            parts, wholes = (left, right) if op == "concat" else (right, left)
            own = {unit.signature for unit in parts}
            whole_by = _by_signature(unit for unit in wholes if unit.signature not in own)
            groups: dict[Signature, list[tuple[str, list[Unit]]]] = {}
            for label, group in siblings(parts).items():
                if (added := _added(group)) in whole_by:
                    groups.setdefault(added, []).append((label, group))
            for key in sorted(groups, key=len, reverse=True):
                candidates = _open(whole_by[key], self.targets if op == "concat" else self.sources)
                for (label, group), whole, doubt in self._pairs(groups[key], candidates, op == "concat"):
                    alike = self.judge.vocabulary.similarity([label], [whole.label])[0, 0]
                    some, others = (group, [whole]) if op == "concat" else ([whole], group)
                    if alike >= least and self._still(some, others):
                        order = ", ".join(map(str, group))
                        said = f"shapes tell neither the order ({order}) nor whether the parts are interleaved by head"
                        self._take(Match(tuple(some), tuple(others), op, f"{said}; {doubt}" if doubt else said))

    def _pairs(
        self, groups: Sequence[tuple[str, list[Unit]]], wholes: Sequence[Unit], from_groups: bool
    ) -> Iterator[tuple[tuple[str, list[Unit]], Unit, str | None]]:
        """Groups with the wholes that they are parts of. The judge wants the source's names first."""
        names = [label for label, _ in groups]
        if not wholes:
            return
        for choice in self.judge.choose(*((names, labels(wholes)) if from_groups else (labels(wholes), names))):
            group, whole = (choice.source, choice.target) if from_groups else (choice.target, choice.source)
            yield groups[group], wholes[whole], choice.doubt

    def _reformed(self, left: Sequence[Unit], right: Sequence[Unit]) -> None:
        """Units whose shapes are each other's transpose, or differ in axes of size 1 only."""
        left, right = _open(left, self.sources), _open(right, self.targets)
        turned: dict[Signature, list[Unit]] = {}
        for unit in left:
            if (key := _transposed(unit.signature)) != unit.signature:
                turned.setdefault(key, []).append(unit)
        self._assign(turned, _by_signature(right), "transpose", TURNED)
        left, right = _open(left, self.sources), _open(right, self.targets)
        self._assign(_keyed(left, _squeezed), _keyed(right, _squeezed), "reshape", None)


def _open(items: Iterable[Unit], side: Mapping[str, Named]) -> list[Unit]:
    """Units of which no tensor is matched yet."""
    return [unit for unit in items if unit.names <= side.keys()]


def _by_signature(items: Iterable[Unit]) -> dict[Signature, list[Unit]]:
    return _keyed(items, lambda signature: signature)


def _keyed(items: Iterable[Unit], key: Callable[[Signature], Signature]) -> dict[Signature, list[Unit]]:
    found: dict[Signature, list[Unit]] = {}
    for unit in items:
        found.setdefault(key(unit.signature), []).append(unit)
    return found


def _transposed(signature: Signature) -> Signature:
    return tuple((i, p, shape[::-1] if len(shape) == 2 else shape, kind) for i, p, shape, kind in signature)


def _squeezed(signature: Signature) -> Signature:
    return tuple((i, p, tuple(size for size in shape if size != 1), kind) for i, p, shape, kind in signature)


def _added(group: Sequence[Unit]) -> Signature:
    """The signature of the tensors that `group`, all of one signature, make along the first axis; () if they cannot."""
    signature = group[0].signature
    if any(not shape for _, _, shape, _ in signature):
        return ()
    return tuple((i, p, (shape[0] * len(group), *shape[1:]), kind) for i, p, shape, kind in signature)


def _named_siblings(parts: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Units whose names differ in one word: query, key and value, or another list of `JOINED`, in the list's order."""
    found: dict[str, list[Unit]] = {}
    for line in JOINED:
        groups: dict[tuple[str, Signature], dict[str, Unit]] = {}
        for unit in parts:
            # letters alone: q_proj is `q` and `proj`, and the key is the rest with a hole
            for word in re.finditer(r"[A-Za-z]+", unit.label):
                if (means := meaning(word[0].lower())) in line:
                    rest = f"{unit.label[: word.start()]}+{unit.label[word.end() :]}"
                    groups.setdefault((rest, unit.signature), {})[means] = unit
        for (rest, _), members in groups.items():
            if set(members) == set(line) and rest not in found:
                found[rest] = [members[word] for word in line]
    return found


def _counted_siblings(parts: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Units of one family that differ in one fixed number, in its order."""
    groups: dict[tuple[str, tuple[int, ...], tuple[tuple[int, int], ...], int, Signature], list[Unit]] = {}
    for unit in parts:
        for slot, _ in unit.fixed:
            rest = tuple(item for item in unit.fixed if item[0] != slot)
            groups.setdefault((unit.template, unit.free, rest, slot, unit.signature), []).append(unit)
    found: dict[str, list[Unit]] = {}
    for (template, _, rest, slot, _), members in groups.items():
        if 1 < len(members) <= 64:
            members.sort(key=lambda unit: dict(unit.fixed)[slot])
            found.setdefault(f"{template}{''.join(f'+{number}' for _, number in rest)}", members)
    return found
