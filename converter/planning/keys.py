"""The keys of a checkpoint as a table knows them: what is taken off, and which two become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from converter.display import counted, quoted
from converter.mapping.table import Table
from converter.mapping.wrappers import load_wrappers
from converter.planning.plan import Described, Naming, Tensor


def by_key(tensors: Mapping[str, Described], table: Table) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the names that the rules have for them; problems of those that have the same."""
    found: dict[str, Tensor] = {}
    copies: dict[frozenset[str], str] = {}
    same: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, info in tensors.items():
        short = table.short(name)
        if copy := load_wrappers().copies.intersection(table.names.taken_off(name)):
            copies.setdefault(copy, name)
        if short in found:
            first = found[short].name
            same.setdefault((_around(table, first), _around(table, name)), []).append((first, name))
        else:
            found[short] = Tensor(name, info.shape, info.dtype)
    problems = [_twice(table, wrappers, pairs) for wrappers, pairs in same.items()]
    if len(copies) > 1 and not problems:
        shown = " and ".join(map(quoted, copies.values()))
        roots = [table.names.prefix(name) for name in copies.values()]
        problems.append(f"{shown} are of different copies of a model, and would be mixed.{_choice(roots)}")
    return found, problems


def naming(table: Table, names: Collection[str]) -> Naming:
    """The most frequent prefix, and all names that are not this prefix plus their short name."""
    prefixes = Counter(map(table.names.prefix, names)).most_common(1)
    prefix = prefixes[0][0] if prefixes else ""
    return Naming(prefix, {short: n for n in names if n != prefix + (short := table.short(n))})


def wrappers_of(table: Table, names: Iterable[str]) -> dict[str, int]:
    """The segments that are taken off names, each with how many names have it."""
    return dict(Counter(segment for name in names for segment in dict.fromkeys(table.names.taken_off(name))))


def _around(table: Table, name: str) -> str:
    return "".join(f"{segment}." for segment in table.names.taken_off(name))


def _twice(table: Table, wrappers: tuple[str, str], pairs: list[tuple[str, str]]) -> str:
    first, second = pairs[0]
    said = f"{quoted(first)} and {quoted(second)} are the same key once wrappers are taken off"
    if any(table.names.unwrapped(one) != table.names.unwrapped(other) for one, other in pairs):
        said += " and other names are replaced"
    if len(pairs) > 1:
        said += f", and so are {counted(len(pairs) - 1, 'other pair')}"
    roots = [wrapper for wrapper, name in zip(wrappers, pairs[0], strict=True) if name.startswith(wrapper)]
    return f"{said}.{_choice(roots)}"


def _choice(roots: Iterable[str]) -> str:
    choices = " or ".join(f"--root {root.removesuffix('.')}" for root in roots if root)
    return f" Choose with {choices}, or save the ones that are meant alone" if choices else ""
