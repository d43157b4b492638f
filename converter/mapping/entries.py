"""The entries of a table under one config: patterns compiled, conditions decided, ops with numbers.

Rules, transfers and bound tables can be reversed, so that one table serves to read a format and to write it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from converter.errors import TableError
from converter.mapping.expression import Value, evaluate, integer
from converter.mapping.ops import Array, Branches, Op, Reshape, Shape, invert_ops, make_op
from converter.mapping.pattern import ByPattern, Captures, Pattern, compile_pattern
from converter.mapping.rebuild import REBUILDERS
from converter.mapping.spec import Budget, each

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rule:
    """Source patterns -> ops (and a cast) -> target patterns, under one config. `pointer` is its place in the JSON.

    `ops` gives the chain for the captures of one application: sizes may differ from stage to stage. `also_shape` gives
    another shape that each source may have. `cost`: how many names and sizes one application takes.
    """

    pointer: str
    sources: tuple[Pattern, ...]
    targets: tuple[Pattern, ...]
    cast: tuple[str, str] | None
    optional: str | None
    ops: Callable[[Captures], tuple[Op, ...]]
    also_shape: Callable[[Captures], Shape] | None = None
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

    `accepts` says whether it may have certain values, where not only the rebuilt ones are right. `copy_of` is the
    source key whose numbers it has, too: another name of a shared weight. `written` are the captures for which it is
    rebuilt where this format is written; `without` says what the format's own tools do where it is missing. `refused`:
    leaving it out would change what the model computes.
    """

    pointer: str
    source: Pattern
    reason: str
    optional: str | None
    rebuild: Callable[[Mapping[str, Value]], Array] | None
    written: tuple[Mapping[str, int], ...] = ()
    without: str | None = None
    refused: bool = False
    accepts: Callable[[Mapping[str, Value], Array], bool] | None = None
    copy_of: Pattern | None = None

    @property
    def is_rebuilt(self) -> bool:
        """Whether its value follows from the config or from another tensor."""
        return self.rebuild is not None or self.copy_of is not None


@dataclass(frozen=True, slots=True)
class SourceTap:
    """Where the source model computes the activation `name`: what `module` returns, `output` leading to the tensor.

    `axes`: the order in which the target has the tensor's axes, where it is another one.
    """

    pointer: str
    name: str
    module: str
    output: tuple[str | int, ...]
    axes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tap:
    """The same activation on both sides: `target` is a module path, `output` leads from its output to the tensor."""

    source: str
    target: str
    output: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One application of a rule: names and shapes on both sides, and the dtype that the spec demands, if any.

    `also` is another shape that each source may have.
    """

    rule: Rule
    sources: tuple[tuple[str, Shape], ...]
    targets: tuple[tuple[str, Shape], ...]
    ops: tuple[Op, ...]
    dtype: str | None = None
    also: Shape | None = None

    def of_stored(self, shapes: Mapping[str, Shape]) -> Transfer:
        """From sources of these shapes: those that have the other shape are reshaped first."""
        if self.also is None:
            return self
        also = self.also
        first = [Reshape(also, shape) if shapes.get(name) == also else None for name, shape in self.sources]
        if not any(first):
            return self
        sources = tuple((name, also if op else shape) for op, (name, shape) in zip(first, self.sources, strict=True))
        alike = first[0] if len(set(first)) == 1 else None
        reshaped = alike or Branches(tuple((1, 1, (op,) if op else ()) for op in first))
        return replace(self, sources=sources, ops=(reshaped, *self.ops))

    def reverse(self) -> Transfer:
        """From the targets back to the sources."""
        return Transfer(self.rule.reverse(), self.targets, self.sources, invert_ops(self.ops), self.dtype)


@dataclass(frozen=True)
class Bound:
    """A table under one config: patterns compiled, conditions decided, ops with numbers.

    `absent`: target keys that the format lacks, as `Ignore` entries for the reverse direction. `source_taps`: every
    activation that can be captured; `taps`: those that a module of the target computes, too.
    """

    rules: tuple[Rule, ...]
    ignores: tuple[Ignore, ...]
    absent: tuple[Ignore, ...]
    source_taps: tuple[SourceTap, ...] = ()
    taps: tuple[Tap, ...] = ()

    @cached_property
    def takers(self) -> ByPattern[Rule]:
        """The rules, by the source keys that they take."""
        return ByPattern((pattern, rule) for rule in self.rules for pattern in rule.sources)

    @cached_property
    def claims(self) -> ByPattern[Ignore]:
        """The entries by which source keys are left out: of a sound table, one at most for a key."""
        return ByPattern((ignore.source, ignore) for ignore in self.ignores)

    def reverse(self) -> Bound:
        """The way back: what was absent is what is left out."""
        return Bound(tuple(rule.reverse() for rule in self.rules), self.absent, ())


@dataclass(frozen=True, slots=True, eq=False)
class Binder:
    """Binds the entries of a table under one config.

    `names`: what expressions may use, the config's fields among them. `words`: what a pattern's `{word}` stands for.
    `budget` limits names and patterns, `buffers` the elements of rebuilt buffers. `problems` collects what is wrong
    with entries.
    """

    names: Mapping[str, Value]
    words: Mapping[str, Sequence[str]]
    budget: Budget
    buffers: Budget
    problems: list[str] = field(default_factory=list)

    def bind(self, entries: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]) -> Bound:
        """Bind `entries`: pairs of pointer and entry, by section. Those whose `when` does not hold are left out."""

        def each_of(section: str, bind: Callable[[str, Mapping[str, Any]], T]) -> list[T]:
            bound = []
            for pointer, entry in entries.get(section, ()):
                try:
                    self.budget.take(1)
                    if evaluate(entry.get("when", 1), self.names):
                        bound.append(bind(pointer, entry))
                except TableError as error:
                    self.problems.append(f"{pointer}: {error}")
            return bound

        rules = each_of("rules", self._rule)
        ignores = each_of("ignore", self._ignore)
        absent = each_of("absent", self._absent)
        taps = [pair for pairs in each_of("taps", self._taps) for pair in pairs]
        return Bound(
            tuple(rules),
            tuple(ignores),
            tuple(absent),
            tuple(source for source, _ in taps),
            tuple(tap for _, tap in taps if tap is not None),
        )

    def _patterns(self, texts: str | Sequence[str]) -> tuple[Pattern, ...]:
        texts = [texts] if isinstance(texts, str) else texts
        compiled = tuple(compile_pattern(text, self.words, self.names) for text in texts)
        self.budget.take(sum(pattern.cost for pattern in compiled))
        return compiled

    def _rule(self, pointer: str, entry: Mapping[str, Any]) -> Rule:
        sources, targets = self._patterns(entry["source"]), self._patterns(entry["target"])
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
            known = {**self.names, **captures}
            return tuple(make_op({k: _evaluated(v, known) for k, v in op.items()}) for op in moves)

        def also_shape(captures: Captures) -> Shape:
            return tuple(_evaluated(entry["also_shape"], {**self.names, **captures}))

        if not moves and (len(sources), len(targets)) != (1, 1):
            raise TableError(f"{len(sources)} sources and {len(targets)} targets need an op that joins or splits them")
        sizes = [size for op in moves for value in op.values() if isinstance(value, list) for size in value]
        cost = len(sources) + len(targets) + sum(1 + len(str(size)) // 5 for size in sizes)
        return Rule(
            pointer,
            sources,
            targets,
            casts[0] if casts else None,
            entry.get("optional"),
            ops,
            also_shape if "also_shape" in entry else None,
            cost,
        )

    def _ignore(self, pointer: str, entry: Mapping[str, Any]) -> Ignore:
        (source,) = self._patterns(entry["source"])
        written = self._written(source, entry) if "written" in entry else ()
        about = (entry["reason"], entry.get("optional"))
        if entry["rebuild"] is not None and entry["rebuild"]["as"] == "copy":
            (original,) = self._patterns(entry["rebuild"]["of"])
            if unbound := sorted(original.captures - source.captures):
                raise TableError(f"{original.text!r} captures {unbound[0]!r}, and {source.text!r} does not")
            return Ignore(pointer, source, *about, None, written, entry.get("without"), copy_of=original)
        rebuild = accepts = None
        if entry["rebuild"] is not None:
            make = REBUILDERS[entry["rebuild"]["as"]]
            arguments = {name: expression for name, expression in entry["rebuild"].items() if name != "as"}

            def evaluated(captures: Mapping[str, Value]) -> dict[str, int]:
                return {k: integer(v, {**self.names, **captures}) for k, v in arguments.items()}

            def rebuild(captures: Mapping[str, Value]) -> Array:
                try:
                    return make(**evaluated(captures))
                except TableError as error:
                    raise TableError(f"{pointer}/rebuild: {error}") from None

            if (accepted := make.accepts) is not None:

                def accepts(captures: Mapping[str, Value], values: Array) -> bool:
                    make.checked(**evaluated(captures))
                    return accepted(values, **evaluated(captures))

            for captures in written if source.captures else [{}]:
                self.buffers.take(make.checked(**evaluated(captures)))
        return Ignore(pointer, source, *about, rebuild, written, entry.get("without"), accepts=accepts)

    def _written(self, source: Pattern, entry: Mapping[str, Any]) -> tuple[Mapping[str, int], ...]:
        if entry["rebuild"] is None or source.captures != set(entry["written"]):
            raise TableError(f"'written' needs 'rebuild', and the captures of {source.text!r}: no fewer, no more")
        combinations = each(entry["written"], self.names, self.budget)
        written = tuple({name: integer(name, known) for name in entry["written"]} for known in combinations)
        for captures in written:
            if source.match(name := source.format(captures)) != captures:
                raise TableError(f"'written' makes {name!r}, which {source.text!r} does not match")
        return written

    def _absent(self, pointer: str, entry: Mapping[str, Any]) -> Ignore:
        (target,) = self._patterns(entry["target"])
        reason = entry["reason"]
        return Ignore(pointer, target, reason, reason, None, refused=entry.get("refused", False))

    def _taps(self, pointer: str, entry: Mapping[str, Any]) -> list[tuple[SourceTap, Tap | None]]:
        counters = entry.get("each", {})
        constants = {k: v for k, v in self.names.items() if k not in counters}
        origin = entry.get("from", {"module": entry["source"], "output": []})

        def compiled(text: str) -> Pattern:
            pattern = compile_pattern(text, {}, constants)
            if unbound := sorted(pattern.captures - set(counters)):
                raise TableError(f"{text!r} captures {unbound[0]!r}, which 'each' does not count")
            return pattern

        def steps(output: Sequence[str | int], captures: Mapping[str, int]) -> tuple[str | int, ...]:
            return tuple(captures.get(step, step) if isinstance(step, str) else step for step in output)

        axes = tuple(entry.get("axes", ()))
        if sorted(axes) != list(range(len(axes))):
            raise TableError(f"axes {list(axes)} are not each of 0 to {len(axes) - 1} once")
        source = compiled(entry["source"])
        # an empty one is the model itself
        module = compiled(origin["module"]) if origin["module"] else None
        target = compiled(entry["target"]) if entry["target"] else None
        taps: list[tuple[SourceTap, Tap | None]] = []
        for known in each(counters, constants, self.budget):
            captures = {name: integer(name, known) for name in counters}
            name = source.format(captures)
            tap = None
            if entry["target"] is not None:
                tap = Tap(name, target.format(captures) if target else "", steps(entry["output"], captures))
            place = (module.format(captures) if module else "", steps(origin["output"], captures))
            taps.append((SourceTap(pointer, name, *place, axes), tap))
        return taps


def _evaluated(value: Any, names: Mapping[str, Value]) -> Any:
    return [integer(item, names) for item in value] if isinstance(value, list) else value
