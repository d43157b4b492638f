"""Buffers that follow from a size, told by their names: what rebuilds them, and how many of them there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from converter.mapping.draft.names import Named, Numbers, Unit


def rebuilt(tensor: Named) -> dict[str, Any] | None:
    """The `rebuild` of a tensor called and shaped as such a buffer; whether it holds these numbers is for `convert`."""
    last, shape = tensor.name.rpartition(".")[2], tensor.shape
    if not tensor.kind.startswith("int"):
        return None
    if last == "position_ids" and len(shape) == 2 and shape[0] == 1:
        return {"as": "numbers", "count": shape[1]}
    if last == "relative_position_index" and len(shape) == 2 and shape[0] == shape[1] == isqrt(shape[0]) ** 2:
        return {"as": "relative_position_index", "window_size": isqrt(shape[0])}
    return None


def counts_of(unit: Unit, captures: Sequence[str], lists: Mapping[str, Sequence[int]]) -> dict[str, int | str] | None:
    """How many there are of each counted number, so that all of them are written: a number, or one of a list of the
    config that an earlier number chooses (blocks of a stage). None if neither says it."""
    counts: dict[str, int | str] = {}
    for position, name in enumerate(captures):
        seen: dict[Numbers, set[int]] = {}
        for index in unit.members:
            seen.setdefault(index[:position], set()).add(index[position])
        if any(numbers != set(range(len(numbers))) for numbers in seen.values()):
            return None
        expression = _count({above: len(numbers) for above, numbers in seen.items()}, captures, lists)
        if expression is None:
            return None
        counts[name] = expression
    return counts


def _count(
    counts: Mapping[Numbers, int], captures: Sequence[str], lists: Mapping[str, Sequence[int]]
) -> int | str | None:
    """The number that `counts` all are, or an expression for it by one of the numbers before."""
    if len(set(counts.values())) == 1:
        return next(iter(counts.values()))
    for position in range(len(next(iter(counts)))):
        by = {above[position]: count for above, count in counts.items()}
        series = [by[number] for number in sorted(by)]
        if all(by[above[position]] == count for above, count in counts.items()):
            for name, values in lists.items():
                if list(values) == series:
                    return f"{name}[{captures[position]}]"
    return None
