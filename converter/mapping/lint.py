"""What a schema can't say about a table: that it covers its target, for every variant, once, and can be read back."""

from __future__ import annotations

from collections.abc import Iterator

from converter.errors import TableError
from converter.mapping.expression import Value
from converter.mapping.ops import prove_bijective
from converter.mapping.spec import Config, Spec
from converter.mapping.table import Bound, Table, Transfer


def lint(table: Table) -> list[str]:
    """Every problem of `table` under every variant of its spec, with and without each option; [] if there is none."""
    problems: list[str] = []
    active: set[str] = set()
    for label, config in _configs(table.spec):
        try:
            bound = table.bind(config)
            transfers, found = table.transfers(bound, config)
        except TableError as error:
            problems.append(f"{label}: {error}")
            continue
        sections = (bound.rules, bound.ignores, bound.absent, bound.source_taps)
        active |= {entry.pointer for section in sections for entry in section}
        found += _ambiguities(bound, transfers)
        found += _unproved(transfers)
        found += _repeated_taps(bound)
        problems += [f"{label}: {problem}" for problem in found]
    for section in ("rules", "ignore", "absent", "taps"):
        for pointer in table.pointers(section):
            if pointer not in active:
                problems.append(f"{pointer}: its 'when' holds for no variant of {table.spec.name}")
    problems += table.doubts()
    return problems + [f"{pointer}: no pattern or op uses it" for pointer in table.unused_names()]


def _configs(spec: Spec) -> Iterator[tuple[str, Config]]:
    for variant in spec.variants:
        yield variant.name, variant.config
        for option in spec.options:
            # 7 fits nothing by accident, so an expression that forgot the option shows
            config: dict[str, Value] = {**variant.config, option.field: 7}
            yield f"{variant.name} with {option.field}", config


def _ambiguities(bound: Bound, transfers: list[Transfer]) -> Iterator[str]:
    """Source keys that the table's rules make use of, and that another rule or ignore claims as well."""
    owner = {name: transfer.rule for transfer in transfers for name, _ in transfer.sources}
    for rule in bound.rules:
        for pattern in rule.sources:
            for name in (n for n in owner if owner[n] is not rule and pattern.match(n) is not None):
                yield f"{name!r} matches {rule.pointer} and {owner[name].pointer}"
                break  # one example per pair of rules says it all
    for ignore in bound.ignores:
        for name in (n for n in owner if ignore.source.match(n) is not None):
            yield f"{name!r} matches {ignore.pointer} and {owner[name].pointer}"
            break


def _unproved(transfers: list[Transfer]) -> Iterator[str]:
    proved = set()
    for transfer in transfers:
        shapes = tuple(shape for _, shape in transfer.sources)
        if transfer.ops and (transfer.ops, shapes) not in proved:
            proved.add((transfer.ops, shapes))
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
