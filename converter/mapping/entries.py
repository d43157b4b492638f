"""The entries of a table under one config: patterns compiled, conditions decided, ops with numbers.

Rules, transfers and bound tables can be reversed, so that one table serves to read a format and to write it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from converter.errors import TableError
from converter.mapping.expression import Value, integer
from converter.mapping.ops import Array, Op, Shape, invert_ops, make_op
from converter.mapping.pattern import Captures, Pattern, compile_pattern
from converter.mapping.rebuild import REBUILDERS
from converter.mapping.spec import Budget, Config, each


@dataclass(frozen=True, slots=True)
class Rule:
    """Source patterns -> ops (and a cast) -> target patterns, under one config. `pointer` is its place in the JSON.

    `ops` gives the chain for the captures of one application: sizes may differ from stage to stage. `cost`: the names
    and sizes of one.
    """

    pointer: str
    sources: tuple[Pattern, ...]
    targets: tuple[Pattern, ...]
    cast: tuple[str, str] | None
    optional: str | None
    ops: Callable[[Captures], tuple[Op, ...]]
    cost: int = 1

    def reverse(self) -> Rule:
        """The rule from the targets back to the sources."""
        cast = self.cast and (self.cast[1], self.cast[0])
        return replace(
            self, sources=self.targets, targets=self.sources, cast=cast, ops=lambda c: invert_ops(self.ops(c))
        )


@dataclass(frozen=True, slots=True)
class Ignore:
    """Source keys that are left out on purpose. `rebuild` gives the value that the config implies, or None.

    `written` are the captures for which it is rebuilt where this format is written; `without` says what the format's
    own tools do where it is missing. `refused`: leaving it out would change what the model computes.
    """

    pointer: str
    source: Pattern
    reason: str
    optional: str | None
    rebuild: Callable[[Mapping[str, Value]], Array] | None
    written: tuple[Mapping[str, int], ...] = ()
    without: str | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class SourceTap:
    """Where the source model computes the activation `name`: what `module` returns, `output` leading to the tensor."""

    pointer: str
    name: str
    module: str
    output: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Tap:
    """The same activation on both sides: `target` is a module path, `output` leads from its output to the tensor."""

    source: str
    target: str
    output: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One application of a rule: names and shapes on both sides, and the dtype that the spec demands, if any."""

    rule: Rule
    sources: tuple[tuple[str, Shape], ...]
    targets: tuple[tuple[str, Shape], ...]
    ops: tuple[Op, ...]
    dtype: str | None = None

    def reverse(self) -> Transfer:
        """From the targets back to the sources."""
        return Transfer(self.rule.reverse(), self.targets, self.sources, invert_ops(self.ops), self.dtype)


@dataclass(frozen=True, slots=True)
class Bound:
    """A table under one config: patterns compiled, conditions decided, ops with numbers.

    `absent` are target keys that the format does not hold, as what is left out of the way back. `source_taps`: every
    activation that can be captured; `taps`: those that a module of the target computes too.
    """

    rules: tuple[Rule, ...]
    ignores: tuple[Ignore, ...]
    absent: tuple[Ignore, ...]
    source_taps: tuple[SourceTap, ...] = ()
    taps: tuple[Tap, ...] = ()

    def reverse(self) -> Bound:
        """The way back: what was absent is what is left out."""
        return Bound(tuple(rule.reverse() for rule in self.rules), self.absent, ())


def bind_rule(
    pointer: str,
    sources: tuple[Pattern, ...],
    targets: tuple[Pattern, ...],
    entry: Mapping[str, Any],
    names: Mapping[str, Value],
) -> Rule:
    bound = sources[0].captures
    for pattern in (*sources[1:], *targets):
        if pattern.captures != bound:
            raise TableError(
                f"{sources[0].text!r} captures {sorted(bound)}, {pattern.text!r} captures "
                f"{sorted(pattern.captures)}; every pattern of a rule must capture the same"
            )
    described = entry.get("ops", ())
    casts = [(op["from"], op["to"]) for op in described if op["op"] == "cast"]
    if len(casts) > 1:
        raise TableError("a rule casts once at most")
    moves = [op for op in described if op["op"] != "cast"]

    def ops(captures: Captures) -> tuple[Op, ...]:
        known = {**names, **captures}
        return tuple(make_op({k: _evaluated(v, known) for k, v in op.items()}) for op in moves)

    if not moves and (len(sources), len(targets)) != (1, 1):
        raise TableError(f"{len(sources)} sources and {len(targets)} targets need an op that joins or splits them")
    sizes = [size for op in moves for value in op.values() if isinstance(value, list) for size in value]
    cost = len(sources) + len(targets) + sum(1 + len(str(size)) // 5 for size in sizes)
    return Rule(pointer, sources, targets, casts[0] if casts else None, entry.get("optional"), ops, cost)


def bind_ignore(
    pointer: str,
    source: Pattern,
    entry: Mapping[str, Any],
    names: Mapping[str, Value],
    budget: Budget,
    buffers: Budget,
) -> Ignore:
    written: list[dict[str, int]] = []
    if "written" in entry:
        if entry["rebuild"] is None or source.captures != set(entry["written"]):
            raise TableError(f"'written' needs 'rebuild', and the captures of {source.text!r}: no fewer, no more")
        written = [{k: integer(k, c) for k in entry["written"]} for c in each(entry["written"], names, budget)]
        for captures in written:
            if source.match(name := source.format(captures)) != captures:
                raise TableError(f"'written' makes {name!r}, which {source.text!r} does not match")
    rebuild = None
    if entry["rebuild"] is not None:
        make = REBUILDERS[entry["rebuild"]["as"]]
        arguments = {name: expression for name, expression in entry["rebuild"].items() if name != "as"}

        def evaluated(captures: Mapping[str, Value]) -> dict[str, int]:
            return {k: integer(v, {**names, **captures}) for k, v in arguments.items()}

        def rebuild(captures: Mapping[str, Value]) -> Array:
            try:
                return make(**evaluated(captures))
            except TableError as error:
                raise TableError(f"{pointer}/rebuild: {error}") from None

        for captures in written if source.captures else [{}]:
            buffers.take(make.checked(**evaluated(captures)))
    return Ignore(
        pointer, source, entry["reason"], entry.get("optional"), rebuild, tuple(written), entry.get("without")
    )


def _evaluated(value: Any, names: Mapping[str, Value]) -> Any:
    return [integer(item, names) for item in value] if isinstance(value, list) else value


def bind_taps(
    pointer: str, entry: Mapping[str, Any], names: Config, budget: Budget
) -> Iterator[tuple[SourceTap, Tap | None]]:
    counters = entry.get("each", {})
    constants = {k: v for k, v in names.items() if k not in counters}
    origin = entry.get("from", {"module": entry["source"], "output": []})

    def compiled(text: str) -> Pattern:
        pattern = compile_pattern(text, {}, constants)
        if unbound := sorted(pattern.captures - set(counters)):
            raise TableError(f"{text!r} captures {unbound[0]!r}, which 'each' does not count")
        return pattern

    source, module = compiled(entry["source"]), compiled(origin["module"])
    target = compiled(entry["target"]) if entry["target"] else None
    for combination in each(counters, constants, budget):
        captures = {name: integer(name, combination) for name in counters}

        def steps(output: Sequence[str | int], captures: Mapping[str, int] = captures) -> tuple[str | int, ...]:
            return tuple(captures.get(step, step) if isinstance(step, str) else step for step in output)

        name = source.format(captures)
        yield (
            SourceTap(pointer, name, module.format(captures), steps(origin["output"])),
            None
            if entry["target"] is None
            else Tap(name, target.format(captures) if target else "", steps(entry["output"])),
        )
