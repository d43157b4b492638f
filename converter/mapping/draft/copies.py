"""Tensors of the source that hold the same numbers: one module under several names, of which a target may take one.

Only one of such names is matched, that which reads most like a name of the target, so that the others neither compete
with it nor take what is another's. The others are left out as copies of it. Where a target of such a shape is left
over then, it may want the copies, too: all of them are matched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from converter.mapping.draft.match import Matching, match
from converter.mapping.draft.missing import less_sure
from converter.mapping.draft.names import Named, Unit, take_apart
from converter.mapping.draft.words import Vocabulary


@dataclass(frozen=True, slots=True)
class Shared:
    """The names of one tensor; `chosen` is the one that is matched."""

    names: tuple[str, ...]
    chosen: str


def match_shared(sources: Sequence[Named], targets: Sequence[Named], on_round: Callable[[int], None]) -> Matching:
    """`match`, with tensors of the same numbers as one where the target has no place for several."""
    shared = _shared(sources, targets)
    found = _match_some(sources, targets, shared, on_round)
    places = {(tensor.shape, tensor.kind) for tensor in found.left_targets}
    by_name = {tensor.name: tensor for tensor in sources}
    single = [s for s in shared if (by_name[s.chosen].shape, by_name[s.chosen].kind) not in places]
    if len(single) < len(shared):
        more = _match_some(sources, targets, single, lambda _: None)
        if len(more.left_targets) < len(found.left_targets):
            return more
    return found


def _match_some(
    sources: Sequence[Named], targets: Sequence[Named], single: Iterable[Shared], on_round: Callable[[int], None]
) -> Matching:
    """Match all sources but those names of each of `single` that are not chosen."""
    aside = {name for shared in single for name in shared.names if name != shared.chosen}
    found = match([tensor for tensor in sources if tensor.name not in aside], targets, on_round)
    found = less_sure(found, len(targets))
    left = aside | {tensor.name for tensor in found.left_sources}
    return replace(found, left_sources=tuple(tensor for tensor in sources if tensor.name in left))


def originals(sources: Sequence[Named], left: Iterable[Named]) -> dict[str, str]:
    """Name of a tensor of `left` -> the name of one that has a match and the same numbers."""
    left_names = {tensor.name for tensor in left}
    matched = {t.numbers: t.name for t in reversed(sources) if t.numbers and t.name not in left_names}
    return {t.name: matched[t.numbers] for t in sources if t.name in left_names and t.numbers in matched}


def pattern_of_original(unit: Unit, of: Mapping[str, str], numbers: Mapping[int, str]) -> str | None:
    """The pattern of what the tensors of a unit are copies of, or None where no one pattern says it.

    `numbers`: how the unit's own pattern writes its counted numbers.
    """
    members = [
        (take_apart(t.name), take_apart(of[t.name])) for params in unit.members.values() for t in params.values()
    ]
    (template, _, parameter), found = members[0][1], [original for _, original in members]
    if any((other, p) != (template, parameter) for other, _, p in found):
        return None
    texts = []
    for slot in range(template.count("#")):
        values = [original[1][slot] for original in found]
        copied = (own for own in unit.free if [copy[1][own] for copy, _ in members] == values)
        own = next(copied, None)
        if len(set(values)) > 1 and own is None:
            return None
        texts.append(str(values[0]) if len(set(values)) == 1 or own is None else numbers[own])
    pieces = template.split("#")
    return "".join(piece + text for piece, text in zip(pieces, [*texts, ""], strict=True)) + parameter


def _shared(sources: Sequence[Named], targets: Sequence[Named]) -> list[Shared]:
    """Tensors with more than one name. Those of one module take the same one of its names."""
    groups: dict[str, list[str]] = {}
    for tensor in sources:
        if tensor.numbers:
            groups.setdefault(tensor.numbers, []).append(tensor.name)
    shapes = {tensor.name: (tensor.shape, tensor.kind) for tensor in sources}
    candidates: dict[object, list[str]] = {}
    for target in targets:
        candidates.setdefault((target.shape, target.kind), []).append(target.name)
    vocabulary = Vocabulary([*shapes, *(target.name for target in targets)])
    modules: dict[tuple[str, ...], list[list[str]]] = {}
    for names in groups.values():
        if len(names) > 1:
            names.sort(key=_natural)
            modules.setdefault(_modules(names), []).append(names)
    found = []
    for tensors in modules.values():
        scores = [0.0] * len(tensors[0])
        for names in tensors:
            there = candidates.get(shapes[names[0]], [])
            if there:
                alike = vocabulary.similarity(names, there).max(axis=1).round(9)
                scores = [score + float(a) + (n in there) for score, a, n in zip(scores, alike, names, strict=True)]
        best = scores.index(max(scores))
        found += [Shared(tuple(names), names[best]) for names in tensors]
    return found


def _modules(names: Sequence[str]) -> tuple[str, ...]:
    """What the names are without the segments that all of them end with: the modules that are one."""
    parts = [name.split(".") for name in names]
    same = 0
    while all(len(p) > same + 1 and p[-1 - same] == parts[0][-1 - same] for p in parts):
        same += 1
    return tuple(".".join(p[: len(p) - same]) for p in parts)


def _natural(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Short names first, and numbers by their size."""
    pieces = re.split(r"([0-9]+)", name)
    return name.count("."), [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]
