"""Square matrices: no shape tells whether the target stores one transposed.

Only other matrices tell. A family whose other members are not square is stored as they are. So is a matrix of a module
if other modules of both models have one that is not square, and a bias that says which axis is the output, and no
matrix of the model is transposed. An embedding is no such witness: every implementation stores it alike. A bare
parameter (`text_projection`) follows no convention, so that nothing tells. Every other square matrix is in doubt, and
so are stacks of such and kernels with as many inputs as outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from converter.mapping.doubts import square_axes
from converter.mapping.draft.captures import restrict
from converter.mapping.draft.match import Match, Matching
from converter.mapping.draft.names import Named, take_apart
from converter.mapping.ops import Shape

# how a pair of tensors is named and stored: the parameter and the number of axes on either side
_Kind: TypeAlias = tuple[str, str, int, int]
_TOLD = "is square: no shape tells whether the target stores it transposed"


@dataclass(frozen=True, slots=True)
class _Evidence:
    """`turned`: the name of a matrix that is transposed, if there is one; `alike`: kinds that are stored alike."""

    turned: str
    alike: frozenset[_Kind]

    def doubt(self, source: Named, target: Named) -> str | None:
        """Why nothing tells whether this square pair is transposed; None if something does."""
        kind = _kind(source, target)
        if self.turned and len(target.shape) == 2:
            return f"{_TOLD}, and {self.turned!r} is"
        if not kind[0] or not kind[1]:
            bare = source if not kind[0] else target
            return f"{_TOLD}, and {bare.name!r} is a parameter of no module whose other matrices could"
        return None if kind in self.alike else f"{_TOLD}, and no matrix of its kind that is not square does"


def doubt_squares(matching: Matching) -> Matching:
    """The matching with a doubt on every square matrix of which nothing tells whether it is transposed.

    Such a matrix becomes a match of its own; what else is in its module keeps the doubt that it has, or none.
    """
    evidence = _evidence(matching)
    return replace(matching, matches=tuple(part for found in matching.matches for part in _divided(found, evidence)))


def squares_as_stored(matching: Matching) -> list[str]:
    """Names, in the target, of the square matrices that are taken as they are stored, without a doubt."""
    return [
        target.name
        for found in matching.matches
        if not found.doubt
        for _, target in _pairs(found)
        if square_axes(target.shape)
    ]


def _divided(found: Match, evidence: _Evidence) -> Iterator[Match]:
    if found.op == "transpose":  # in doubt as a whole
        yield found
        return
    doubts: dict[str | None, list[str]] = {}  # doubt -> the parameters that have it
    for parameter in found.targets[0].parameters:
        doubts.setdefault(_doubt(found, parameter, evidence), []).append(parameter)
    for doubt, parameters in doubts.items():
        part = found
        if len(doubts) > 1:
            sources, targets = (
                tuple(restrict(u, parameters, {}) for u in side) for side in (found.sources, found.targets)
            )
            part = replace(found, sources=sources, targets=targets)
        yield replace(part, doubt="; ".join(filter(None, (part.doubt, doubt))) or None)


def _doubt(found: Match, parameter: str, evidence: _Evidence) -> str | None:
    """The doubt about one parameter of a match, if all tensors that it stands for are square."""
    part = 0 if found.op == "concat" else 1  # the side on which a join has its parts
    pairs = list(_pairs(found, parameter))
    if not all(square_axes(pair[part].shape) for pair in pairs):
        return None
    doubt = evidence.doubt(*pairs[0])
    each = "each part " if found.op in ("concat", "split") else ""
    return doubt and f"{each}{pairs[0][part].shape} {doubt}"


def _evidence(matching: Matching) -> _Evidence:
    shapes = _shapes(matching)
    turned, alike = "", set()
    for found in matching.matches:
        for source, target in _pairs(found):
            if square_axes(target.shape) or len(target.shape) < 2 or len(source.shape) < 2:
                continue
            if found.op == "transpose":
                turned = turned or source.name
            elif found.op in ("rename", "reshape") and _is_told(source, target, shapes):
                alike.add(_kind(source, target))
    return _Evidence(turned, frozenset(alike))


def _is_told(source: Named, target: Named, shapes: tuple[Mapping[str, Shape], ...]) -> bool:
    """Whether this pair, which is not square, tells how matrices of its kind are stored: it is no embedding."""
    if len(source.shape) > 2 or len(target.shape) > 2:
        return True
    for tensor, side in zip((source, target), shapes, strict=True):
        parameter = take_apart(tensor.name)[2]
        if not parameter or side.get(tensor.name.removesuffix(parameter) + "bias") != tensor.shape[:1]:
            return False
    return True


def _shapes(matching: Matching) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Of all tensors of either side, by name."""
    sides: tuple[dict[str, Shape], dict[str, Shape]] = ({}, {})
    for found in matching.matches:
        for units, side in zip((found.sources, found.targets), sides, strict=True):
            side.update(
                {t.name: t.shape for unit in units for params in unit.members.values() for t in params.values()}
            )
    for left, side in zip((matching.left_sources, matching.left_targets), sides, strict=True):
        side.update({tensor.name: tensor.shape for tensor in left})
    return sides


def _pairs(found: Match, parameter: str | None = None) -> Iterator[tuple[Named, Named]]:
    """Every source of a match, or those called `parameter`, with the target that it becomes, or becomes part of."""
    for source in found.sources:
        for target in found.targets:
            for index, params in target.members.items():
                for name, tensor in params.items():
                    if parameter in (None, name):
                        yield source.members[index][name], tensor


def _kind(source: Named, target: Named) -> _Kind:
    return take_apart(source.name)[2], take_apart(target.name)[2], len(source.shape), len(target.shape)
