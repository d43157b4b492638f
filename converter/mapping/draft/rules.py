"""Matches written as the rules of a table, and what has no match as its ignores.

A rule's ops hold sizes, not captures, so a match whose sizes differ by stage becomes a rule for each. A pattern that
would match anything beyond its unit is replaced by rules without captures: longer, but never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converter.display import counted
from converter.mapping.draft.buffers import counts_of, rebuilt
from converter.mapping.draft.captures import Names, affine, capture_names, pattern_of, restrict
from converter.mapping.draft.copies import pattern_of_original
from converter.mapping.draft.match import TURNED, Match
from converter.mapping.draft.names import Named, Unit, units
from converter.mapping.draft.words import PARAMETERS

Rule = dict[str, Any]
_NO_COUNTERPART = "drafted: no counterpart found"
_BUFFER = "drafted: a buffer that follows from its size"
_COPY = "drafted: the same numbers under another name"


@dataclass(slots=True)
class Writer:
    """Writes rules and collects the `words` that they use.

    `taken`: names that no capture may have. `lists`: those of the target's config.
    """

    sources: Names
    targets: Names
    taken: Collection[str]
    lists: Mapping[str, Sequence[int]]
    words: dict[str, list[str]] = field(default_factory=dict)

    def rules(self, match: Match) -> Iterator[tuple[Rule, Match]]:
        """The rules of one match, each with the part of the match that it stands for."""
        for part, ops in _parts(match):
            rule = self._rule(part, ops)
            pieces = [(rule, part)] if rule is not None else self._literal(part)
            for written, of in pieces:
                if of.op != "rename" and ops:
                    written["ops"] = ops
                if of.doubt:
                    written["doubt"] = of.doubt
                yield written, of

    def _rule(self, match: Match, ops: Any) -> Rule | None:
        whole = match.targets[0]
        captures = capture_names(whole.template, whole.free, {*self.taken, *self.words})
        parameter = self._parameter(whole)
        sides = (match.sources, match.targets)
        shared = [len({unit.progressions[i] for side in sides for unit in side}) == 1 for i in range(len(whole.free))]
        # where both sides count alike, their numbers are clearer than indices
        for plain in [shared, [False] * len(shared)] if any(shared) else [shared]:
            texts = []
            for side, names in zip(sides, (self.sources, self.targets), strict=True):
                patterns = [pattern_of(unit, _numbers(unit, captures, plain), parameter) for unit in side]
                if not all(names.is_exactly(p, u, self.words) for p, u in zip(patterns, side, strict=True)):
                    break
                texts.append(patterns[0] if len(patterns) == 1 else patterns)
            else:
                return {"source": texts[0], "target": texts[1]}
        return None

    def _literal(self, match: Match) -> Iterator[tuple[Rule, Match]]:
        for index, params in match.targets[0].members.items():
            for parameter in params:
                fix = dict(enumerate(index))
                sides = [tuple(restrict(u, [parameter], fix) for u in side) for side in (match.sources, match.targets)]
                texts = [[pattern_of(unit, {}, parameter) for unit in side] for side in sides]
                source, target = (text[0] if len(text) == 1 else text for text in texts)
                yield {"source": source, "target": target}, Match(sides[0], sides[1], match.op, match.doubt)

    def _parameter(self, unit: Unit) -> str:
        """The parameter, or a capture for several; one capture for each set of words."""
        if len(unit.parameters) == 1:
            return unit.parameters[0]
        words = [p for p in PARAMETERS if p in unit.parameters]
        for name, known in self.words.items():
            if known == words:
                return f"{{{name}}}"
        name = "param" if words == ["weight", "bias"] else "statistic" if "running_mean" in words else "part"
        while name in self.words or name in self.taken:
            name += "_2"
        self.words[name] = words
        return f"{{{name}}}"

    def ignores(self, left: Sequence[Named], copies: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Entries for source tensors without a counterpart, folded into patterns that match these tensors only.

        `copies`: which of them hold the numbers of which other tensor.
        """
        copied = [tensor for tensor in left if tensor.name in copies]
        yield from self._copies(copied, copies)
        buffers = [tensor for tensor in left if rebuilt(tensor)]
        yield from self._buffers(buffers)
        aside = {tensor.name for tensor in (*copied, *buffers)}
        for text, tensors in self._folded([t for t in left if t.name not in aside], self.sources):
            yield _ignore(text, tensors)

    def absents(self, left: Sequence[Named]) -> Iterator[tuple[dict[str, Any], list[Named]]]:
        """Entries for target tensors that no rule makes, each with those that it stands for."""
        for text, tensors in self._folded(left, self.targets):
            doubt = f"{_counted(tensors)}: does the source hold it nowhere? Whoever loads the result gets chance there"
            yield {"target": text, "reason": _NO_COUNTERPART, "doubt": doubt}, tensors

    def _folded(self, left: Sequence[Named], side: Names) -> Iterator[tuple[str, list[Named]]]:
        """Patterns for tensors of one side, which match no others of it, each with its tensors."""
        open_names = {tensor.name for tensor in left}
        for unit in sorted(units(left), key=lambda unit: -len(unit.names)):
            if not unit.names <= open_names:
                continue
            captures = capture_names(unit.template, unit.free, {*self.taken, *self.words})
            text = pattern_of(unit, _numbers(unit, captures, [False] * len(captures)), self._parameter(unit))
            if not side.is_exactly(text, unit, self.words):
                if unit.free or len(unit.names) > 1:
                    for tensor in _tensors(unit):
                        open_names.discard(tensor.name)
                        yield tensor.name, [tensor]
                    continue
                text = next(iter(unit.names))
            open_names -= unit.names
            yield text, list(_tensors(unit))

    def _copies(self, copied: Sequence[Named], of: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Entries for tensors that hold the numbers of others."""

        def original(unit: Unit, numbers: Mapping[int, str]) -> dict[str, Any] | None:
            pattern = pattern_of_original(unit, of, numbers)
            return {"as": "copy", "of": pattern} if pattern is not None else None

        for entry, tensors in self._rebuilt(copied, original):
            doubt = (
                f"{counted(len(tensors), 'tensor')} with the numbers of {entry['rebuild']['of']}: "
                "is it one module in the model's code, or equal in this file only?"
            )
            yield {**entry, "reason": _COPY, "doubt": doubt}

    def _buffers(self, buffers: Sequence[Named]) -> Iterator[dict[str, Any]]:
        """Entries for buffers that are made anew."""

        def same(unit: Unit, _: Mapping[int, str]) -> dict[str, Any] | None:
            first, *others = (rebuilt(tensor) for tensor in _tensors(unit))
            return first if all(other == first for other in others) else None

        for entry, tensors in self._rebuilt(buffers, same):
            doubt = f"{_counted(tensors)}: does the target compute it by itself? convert compares the numbers"
            yield {**entry, "reason": _BUFFER, "doubt": doubt}

    def _rebuilt(
        self, tensors: Sequence[Named], how: Callable[[Unit, Mapping[int, str]], dict[str, Any] | None]
    ) -> Iterator[tuple[dict[str, Any], list[Named]]]:
        """Entries for tensors that are rebuilt as `how` says of a unit and its numbers, and their tensors.

        Each says how many it stands for, so that all of them are written on the way back.
        """
        open_names = {tensor.name for tensor in tensors}
        parts = (restrict(unit, [p], {}) for unit in units(tensors) for p in unit.parameters)
        for unit in sorted(parts, key=lambda unit: -len(unit.names)):
            if not unit.names <= open_names:
                continue
            captures = capture_names(unit.template, unit.free, {*self.taken, *self.words})
            numbers = _numbers(unit, captures, [False] * len(captures))
            text = pattern_of(unit, numbers, unit.parameters[0])
            rebuild, counts = how(unit, numbers), counts_of(unit, captures, self.lists)
            if rebuild is None or counts is None or not self.sources.is_exactly(text, unit, self.words):
                continue
            open_names -= unit.names
            yield {"source": text, "reason": "", "rebuild": rebuild, "written": counts}, list(_tensors(unit))


def _ignore(text: str, tensors: Sequence[Named]) -> dict[str, Any]:
    return {
        "source": text,
        "reason": _NO_COUNTERPART,
        "rebuild": None,
        "doubt": f"{_counted(tensors)}: does the target not need it, or compute it by itself?",
    }


def _counted(tensors: Sequence[Named]) -> str:
    shapes = ", ".join(dict.fromkeys(f"{t.shape}{' ' + t.kind if t.kind else ''}" for t in tensors[:200]))
    return f"{len(tensors)} of shape {shapes[:200]}"


def _tensors(unit: Unit) -> Iterator[Named]:
    for params in unit.members.values():
        yield from params.values()


def _numbers(unit: Unit, captures: Sequence[str], plain: Sequence[bool]) -> Mapping[int, str]:
    return {
        slot: f"{{{name}}}" if as_is else affine(name, start, step)
        for slot, name, (start, step), as_is in zip(unit.free, captures, unit.progressions, plain, strict=True)
    }


def _parts(match: Match) -> Iterator[tuple[Match, list[dict[str, Any]]]]:
    """The match in parts of the same ops each."""
    if match.op == "rename":
        yield match, []
        return
    whole = match.targets[0]
    ops = {(index, p): _ops(match, index, p) for index, params in whole.members.items() for p in params}
    groups: list[list[str]] = []  # parameters that take the same ops wherever they are
    for parameter in whole.parameters:
        own = {index: op for (index, p), op in ops.items() if p == parameter}
        for group in groups:
            if own == {index: op for (index, p), op in ops.items() if p == group[0]}:
                group.append(parameter)
                break
        else:
            groups.append([parameter])
    for group in groups:
        own = {index: op for (index, p), op in ops.items() if p == group[0]}
        for fix in _fixed(own, len(whole.free)):
            sides = [tuple(restrict(u, group, fix) for u in side) for side in (match.sources, match.targets)]
            needed = next(op for index, op in own.items() if all(index[i] == value for i, value in fix.items()))
            op = match.op if needed else "rename"
            doubt = match.doubt
            if doubt and op == "rename":  # a bias, whose shape is as it was
                doubt = "; ".join(said for said in doubt.split("; ") if said != TURNED) or None
            yield Match(sides[0], sides[1], op, doubt), needed


def _fixed(ops: Mapping[tuple[int, ...], Any], slots: int) -> list[dict[int, int]]:
    """Which slots to fix, and at which indices, so that every part has one op: none, one, or all."""
    for chosen in [(), *((slot,) for slot in range(slots))]:
        parts: dict[tuple[int, ...], list[Any]] = {}
        for index, op in ops.items():
            parts.setdefault(tuple(index[i] for i in chosen), []).append(op)
        if all(op == part[0] for part in parts.values() for op in part):
            return [dict(zip(chosen, key, strict=True)) for key in parts]
    return [dict(enumerate(index)) for index in ops]


def _ops(match: Match, index: tuple[int, ...], parameter: str) -> list[dict[str, Any]]:
    before, after = (side[0].members[index][parameter].shape for side in (match.sources, match.targets))
    if match.op == "concat":
        return [{"op": "concat", "axis": 0, "sizes": [before[0]] * len(match.sources)}]
    if match.op == "split":
        return [{"op": "split", "axis": 0, "sizes": [after[0]] * len(match.targets)}]
    if match.op == "transpose" and len(before) == 2:
        return [{"op": "transpose", "axes": [1, 0]}]
    if match.op == "reshape" and before != after:
        return [{"op": "reshape", "from": list(before), "to": list(after)}]
    return []
