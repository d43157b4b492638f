"""Settling the doubts of a table: its document as a person who looked wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from converter.display import listed, quoted
from converter.errors import TableError
from converter.mapping.doubts import pointed, square_axes
from converter.mapping.load import load_table
from converter.mapping.ops import Shape
from converter.mapping.table import Table
from converter.mapping.transfers import transfers

How: TypeAlias = Literal["keep", "transpose", "exchange"]
Entry: TypeAlias = dict[str, Any]


def settled(
    path: Path, document: Mapping[str, Any], how: How, named: Sequence[str], note: str | None = None
) -> dict[str, Any]:
    """The document of the table at `path` with the entries `named` settled, each by its pointer or its source.

    `keep`: as they are. `transpose`: two axes of what the rule makes are exchanged. `exchange`: two rules
    make each other's targets. `note` is kept with each, by default the doubt that was. Nothing is written. Raises
    TableError where that cannot be done.
    """
    table = load_table(path)
    content = deepcopy(dict(document))
    entries = dict(_found(content, name) for name in named)
    if how == "exchange":
        _exchange(entries)
    for pointer, entry in entries.items():
        if how == "keep" and "doubt" not in entry:
            raise TableError(f"{path}: {pointer} is not in doubt, so there is nothing to keep")
        if how == "transpose":
            _transpose(table, pointer, entry)
        doubt = entry.pop("doubt", None)
        if pointer.startswith("/ignore/"):
            entry["reason"] = note or (
                "one weight under several names" if entry["rebuild"] else "not needed by the target"
            )
        elif pointer.startswith("/absent/"):
            entry["reason"] = note or "the source has no such tensor"
        elif note or doubt:
            entry["note"] = note or f"settled: {how}. The doubt was: {doubt}"
    _check(table, content, entries)
    return content


def _found(content: Mapping[str, Any], name: str) -> tuple[str, Entry]:
    """The entry of that pointer or source; of what is absent, its target."""
    every: dict[str, Any] = {
        p: entry for section in ("rules", "ignore", "absent") for p, entry in pointed(content, section)
    }
    if name in every:
        return name, every[name]
    found = [(pointer, entry) for pointer, entry in every.items() if entry.get("source", entry.get("target")) == name]
    if len(found) != 1:
        known = [pointer for pointer, entry in every.items() if "doubt" in entry]
        hint = f"; in doubt are {listed(known, 20)}" if known else "; nothing is in doubt"
        raise TableError(f"{quoted(name)} names no rule, or several: give a pointer (/rules/4) or a source{hint}")
    return found[0]


def _exchange(entries: Mapping[str, Entry]) -> None:
    if len(entries) != 2 or not all(pointer.startswith("/rules/") for pointer in entries):
        raise TableError(f"exchange takes two rules, not {listed(entries) or 'none'}")
    one, other = entries.values()
    one["target"], other["target"] = other["target"], one["target"]


def _transpose(table: Table, pointer: str, entry: Entry) -> None:
    """Exchange two axes of each part: after a split, before a concat."""
    ops = entry.get("ops", [])
    if any(op["op"] == "transpose" for op in ops):
        raise TableError(f"{table.path}: {pointer} transposes already; 'keep' says that it is right")
    shapes = _made(table, pointer)
    orders = {_exchanged(shape) for shape in shapes}
    if len(orders) != 1 or None in orders:
        raise TableError(
            f"{table.path}: {pointer} makes {listed(dict.fromkeys(map(str, shapes))) or 'nothing'}, and what is "
            "transposed here are matrices and kernels of one kind. Write a rule for each kind first"
        )
    turn = {"op": "transpose", "axes": list(orders.pop() or ())}
    joins = next((place for place, op in enumerate(ops) if op["op"] == "concat"), len(ops))
    kept = {key: entry.pop(key) for key in list(entry) if key not in ("source", "target", "ops")}
    entry["ops"] = [*ops[:joins], turn, *ops[joins:]]
    entry.update(kept)


def _exchanged(shape: Shape) -> tuple[int, ...] | None:
    """The order of axes in which two are exchanged: those that no shape tells apart, else the first two."""
    if len(shape) < 2:
        return None
    i, j = square_axes(shape) or (0, 1)
    order = list(range(len(shape)))
    order[i], order[j] = j, i
    return tuple(order)


def _made(table: Table, pointer: str) -> list[Shape]:
    """Shapes of what a rule makes, under all variants."""
    shapes = []
    for variant in table.spec.variants:
        made, _ = transfers(table, table.bind(variant.config), variant.config)
        shapes += [shape for transfer in made if transfer.rule.pointer == pointer for _, shape in transfer.targets]
    return shapes


def _check(table: Table, content: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    """TableError for what is wrong with the settled entries that was not wrong before."""
    included = [(pointer, entry) for pointer, entry in table.entries["rules"] if not pointer.startswith("/")]
    after = replace(table, entries={**table.entries, "rules": (*included, *pointed(content, "rules"))})
    problems = []
    for variant in table.spec.variants:
        known = set(transfers(table, table.bind(variant.config), variant.config)[1])
        try:
            found = transfers(after, after.bind(variant.config), variant.config)[1]
        except TableError as error:
            found = list(error.problems) or [str(error)]
        problems += [problem for problem in found if problem not in known]
    if problems:
        raise TableError(f"{table.path}: {listed(entries)} cannot be settled so; nothing was changed", problems)
