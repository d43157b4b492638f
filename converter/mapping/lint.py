"""What a schema can't say about a table: that it covers its target, for every variant, once, and can be read back."""

from __future__ import annotations

import math
from collections.abc import Iterator

from converter.errors import TableError
from converter.mapping.documents import read_wrappers
from converter.mapping.entries import Bound, Ignore, Rule, Transfer
from converter.mapping.expression import Value
from converter.mapping.folders import WRAPPERS
from converter.mapping.ops import prove_bijective
from converter.mapping.pattern import Pattern
from converter.mapping.spec import Budget, Config, Spec
from converter.mapping.table import Table
from converter.mapping.transfers import check_cost, transfers

_MOST_PROVED = 1 << 30  # elements under all variants together: some ten seconds


def lint(table: Table) -> list[str]:
    """Every problem of `table` under every variant of its spec, with and without each option; [] if there is none."""
    problems: list[str] = []
    active: set[str] = set()
    failed = False
    for label, config in _configs(table.spec):
        found: list[str] = []
        try:
            bound = table.bind(config)
            sections = (bound.rules, bound.ignores, bound.absent, bound.source_taps)
            active |= {entry.pointer for section in sections for entry in section}
            made, found = transfers(table, bound, config)
            table.config_document(config, {"float32"})
            found += _ambiguities(table, bound, made)
            found += _unreadable(table, bound, made)
            found += _copies_of_nothing(bound, made)
            found += _unproved(made, Budget(table.spec.share(_MOST_PROVED), "elements of tensors with ops"))
            found += _repeated_taps(bound)
        except TableError as error:
            found.append(str(error))
            failed = True
        problems += [f"{label}: {problem}" for problem in found]
    for section in ("rules", "ignore", "absent", "taps"):
        for pointer in table.pointers(section):
            if not failed and pointer not in active:
                problems.append(f"{pointer}: its 'when' holds for no variant of {table.spec.name}")
    problems += table.doubts()
    return problems + [f"{pointer}: no pattern or op uses it" for pointer in table.unused_names()]


def lint_wrappers() -> list[str]:
    """Every problem of `wrappers.json`. Raises TableError where it breaks the schema."""
    content = read_wrappers(check=True)
    names = [entry["name"] for section in ("wrappers", "counters") for entry in content[section]]
    return [f"{WRAPPERS}: {name!r} is there twice" for name in sorted(set(names)) if names.count(name) > 1]


def _configs(spec: Spec) -> Iterator[tuple[str, Config]]:
    for variant in spec.variants:
        yield variant.name, variant.config
        for option in spec.options:
            # 7 fits nothing by accident, so an expression that forgot the option shows
            config: dict[str, Value] = {**variant.config, option.field: 7}
            yield f"{variant.name} with {option.field}", config


def _ambiguities(table: Table, bound: Bound, transfers: list[Transfer]) -> Iterator[str]:
    """Source keys that the table makes use of or writes, and that another rule or ignore claims as well."""
    owner: dict[str, Rule | Ignore] = {name: t.rule for t in transfers for name, _ in t.sources}
    owner |= {ignore.source.format(captures): ignore for ignore in bound.ignores for captures in ignore.written}
    entries: list[tuple[Rule | Ignore, Pattern]] = [(rule, pattern) for rule in bound.rules for pattern in rule.sources]
    entries += [(ignore, ignore.source) for ignore in bound.ignores]
    check_cost(table, [pattern for _, pattern in entries], owner)
    for entry, pattern in entries:
        for name, _ in pattern.among(owner.keys()):
            if owner[name] is not entry:
                yield f"{name!r} matches {entry.pointer} and {owner[name].pointer}"
                break  # one example per pair of rules says it all


def _unreadable(table: Table, bound: Bound, transfers: list[Transfer]) -> Iterator[str]:
    """Keys that the table would write but not read back, since wrappers, prefixes or aliases change them."""
    for transfer in transfers:
        for pattern, (name, _) in zip(transfer.rule.sources, transfer.sources, strict=True):
            if pattern.match(name) is None:
                yield f"{transfer.rule.pointer}: makes {name!r} on the way back, which {pattern.text!r} does not match"
                return
    names = [(t.rule.pointer, name) for t in transfers for name, _ in t.sources]
    names += [(ignore.pointer, ignore.source.format(c)) for ignore in bound.ignores for c in ignore.written]
    for pointer, name in names:
        for where, key in (("", name), ("/saved_as/prefix, ", table.saved_as.prefix + name)):
            if (read := table.short(key)) != name:
                yield f"{where}/prefixes, /aliases: {key!r}, by {pointer}, is read as {read!r}, expected {name!r}"
                return


def _copies_of_nothing(bound: Bound, transfers: list[Transfer]) -> Iterator[str]:
    """Copies of keys that no rule takes: their numbers would be nowhere."""
    taken = {name for transfer in transfers for name, _ in transfer.sources}
    for ignore in bound.ignores:
        if ignore.copy_of is None:
            continue
        if not any(ignore.copy_of.among(taken)):
            yield f"{ignore.pointer}: a copy of {ignore.copy_of.text!r}, which no rule takes"
        for original in (ignore.copy_of.format(captures) for captures in ignore.written):
            if original not in taken:
                yield f"{ignore.pointer}: a copy of {original!r}, which no rule takes"
                break


def _unproved(transfers: list[Transfer], budget: Budget) -> Iterator[str]:
    proved = set()
    for transfer in transfers:
        shapes = tuple(shape for _, shape in transfer.sources)
        if transfer.ops and (transfer.ops, shapes) not in proved:
            proved.add((transfer.ops, shapes))
            try:
                budget.take(sum(map(math.prod, shapes)))
            except TableError as error:
                yield f"{transfer.rule.pointer}: making {transfer.targets[0][0]!r} {transfer.targets[0][1]}: {error}"
                return
            if wrong := prove_bijective(transfer.ops, shapes):
                yield f"{transfer.rule.pointer}: {wrong}"


def _repeated_taps(bound: Bound) -> Iterator[str]:
    """Taps of the source that share a name or a place: one of them would be compared with the wrong activation."""
    names: dict[str, str] = {}
    places: dict[tuple[str, tuple[str | int, ...]], str] = {}
    for tap in bound.source_taps:
        if tap.name in names:
            yield f"{tap.pointer}: {names[tap.name]} taps {tap.name!r} as well"
        elif (tap.module, tap.output) in places:
            place = " ".join(map(str, (tap.module, *tap.output)))
            yield f"{tap.pointer}: {tap.name!r} is at {place}, where {places[tap.module, tap.output]!r} is"
        names.setdefault(tap.name, tap.pointer)
        places.setdefault((tap.module, tap.output), tap.name)
