"""Doubts: what a person has to decide about a table before it is used. All that counts or lists them asks here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converter.display import counted

_SECTIONS = ("rules", "ignore", "absent")

Entry = Mapping[str, Any]


def in_doubt(entries: Mapping[str, Iterable[tuple[str, Entry]]]) -> dict[str, Entry]:
    """JSON pointer -> entry, of the entries that have a doubt; `entries` by section, with their pointers."""
    return {pointer: entry for name in _SECTIONS for pointer, entry in entries.get(name, ()) if "doubt" in entry}


def in_doubt_of(document: Mapping[str, Any]) -> dict[str, Entry]:
    """The same of a table's document."""
    return in_doubt({name: pointed(document, name) for name in _SECTIONS})


def pointed(document: Mapping[str, Any], section: str) -> Iterator[tuple[str, Entry]]:
    """The entries of a section with their JSON pointers."""
    yield from ((f"/{section}/{place}", entry) for place, entry in enumerate(document.get(section, ())))


def square_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """The axes of a matrix, or of stacked ones, or the first two of a kernel, if they are equal; else None.

    Were they exchanged, no shape would tell. Height and width of a kernel have one order everywhere.
    """
    pairs = [(0, 1)] if len(shape) != 3 else [(1, 2), (0, 1)]
    return next(((i, j) for i, j in pairs if len(shape) > j and shape[i] == shape[j] > 1), None)


def unsettled(table: Path, count: int) -> str:
    """The headline of a refusal where nothing but doubts is wrong."""
    return f"{table}: {counted(count, 'doubt')} to settle first: 'converter settle {table}' lists them, and how"
