"""A mapping table: rules between source and target keys, what is left out, and pairs of activations (taps).

A table is independent of any checkpoint. Together with the target's config it expands, read backwards from the
target, into every tensor that a checkpoint must hold: `Table.transfers`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import TableError
from converter.mapping.documents import find_document
from converter.mapping.expression import Value, evaluate, integer
from converter.mapping.ops import Array, Op, Shape, chain_shapes, invert_ops, make_op
from converter.mapping.pattern import Pattern, compile_pattern
from converter.mapping.rebuild import REBUILDERS
from converter.mapping.spec import Config, Spec, each, load_spec


@dataclass(frozen=True, slots=True)
class Rule:
    """Source patterns -> ops (and a cast) -> target patterns, under one config. `pointer` is its place in the JSON."""

    pointer: str
    sources: tuple[Pattern, ...]
    targets: tuple[Pattern, ...]
    ops: tuple[Op, ...]
    cast: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Ignore:
    """Source keys that are left out on purpose. `rebuild` gives the value that the config implies, or None."""

    pointer: str
    source: Pattern
    reason: str
    optional: str | None
    rebuild: Callable[[Mapping[str, Value]], Array] | None


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
    """One application of a rule: names and shapes on both sides."""

    rule: Rule
    sources: tuple[tuple[str, Shape], ...]
    targets: tuple[tuple[str, Shape], ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """A table under one config: patterns compiled, conditions decided, ops with numbers.

    `source_taps`: every activation that can be captured; `taps`: those that a module of the target computes too.
    """

    rules: tuple[Rule, ...]
    ignores: tuple[Ignore, ...]
    source_taps: tuple[SourceTap, ...]
    taps: tuple[Tap, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A checked table and the spec of its target."""

    name: str
    title: str
    sha256: str
    path: Path
    spec: Spec
    prefixes: tuple[str, ...]
    _content: Mapping[str, Any]

    def pointers(self, section: str) -> list[str]:
        """JSON pointers of the entries of `section`, bound or not."""
        return [f"/{section}/{position}" for position in range(len(self._content.get(section, ())))]

    def unused_names(self) -> list[str]:
        """Pointers of the words and constants that no pattern or op mentions."""
        used = set(re.findall(r"[a-z][a-z0-9_]*", json.dumps([self._content["rules"], self._content.get("ignore")])))
        return [
            f"/{section}/{name}"
            for section in ("words", "constants")
            for name in self._content.get(section, {})
            if name not in used
        ]

    def bind(self, config: Config) -> Bound:
        """The table under `config`. Raises TableError with every rule that cannot be bound."""
        constants = {k: evaluate(v, config) for k, v in self._content.get("constants", {}).items()}
        names: dict[str, Value] = {**config, **constants}
        words = self._content.get("words", {})
        problems: list[str] = []

        def active(section: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
            for position, entry in enumerate(self._content.get(section, ())):
                try:
                    if evaluate(entry.get("when", 1), names):
                        yield f"/{section}/{position}", entry
                except TableError as error:
                    problems.append(f"/{section}/{position}: {error}")

        def patterns(texts: str | Sequence[str]) -> tuple[Pattern, ...]:
            return tuple(compile_pattern(t, words, names) for t in ([texts] if isinstance(texts, str) else texts))

        rules: list[Rule] = []
        ignores: list[Ignore] = []
        source_taps: list[SourceTap] = []
        taps: list[Tap] = []
        for pointer, entry in active("rules"):
            try:
                rules.append(_rule(pointer, patterns(entry["source"]), patterns(entry["target"]), entry, names))
            except TableError as error:
                problems.append(f"{pointer}: {error}")
        for pointer, entry in active("ignore"):
            try:
                (source,) = patterns(entry["source"])
                ignores.append(
                    Ignore(pointer, source, entry["reason"], entry.get("optional"), _rebuilder(entry["rebuild"], names))
                )
            except TableError as error:
                problems.append(f"{pointer}: {error}")
        for pointer, entry in active("taps"):
            try:
                for source_tap, tap in _taps(pointer, entry, names):
                    source_taps.append(source_tap)
                    taps += [] if tap is None else [tap]
            except TableError as error:
                problems.append(f"{pointer}: {error}")
        if problems:
            raise TableError(f"{self.path}: {len(problems)} entries are wrong", problems)
        return Bound(tuple(rules), tuple(ignores), tuple(source_taps), tuple(taps))

    def transfers(self, bound: Bound, config: Config) -> tuple[list[Transfer], list[str]]:
        """Every application of every rule that makes the target, and what is wrong with them.

        Problems are static: a target that no rule makes, or two; a rule that makes nothing of this target, or only
        part of what it must; a source key used twice; ops that do not fit the target's shapes.
        """
        wanted = self.spec.tensors(config)
        transfers: list[Transfer] = []
        problems: list[str] = []
        made: dict[str, str] = {}
        used: dict[str, str] = {}
        for rule in bound.rules:
            seen = 0
            for name in wanted:
                captures = rule.targets[0].match(name)
                if captures is None:
                    continue
                seen += 1
                targets = [pattern.format(captures) for pattern in rule.targets]
                sources = [pattern.format(captures) for pattern in rule.sources]
                if missing := [target for target in targets if target not in wanted]:
                    problems.append(f"{rule.pointer}: makes {missing[0]!r}, which {self.spec.name} does not have")
                    continue
                for target in targets:
                    if target in made:
                        problems.append(f"{target!r} is made twice, by {made[target]} and {rule.pointer}")
                    made[target] = rule.pointer
                for source in sources:
                    if source in used:
                        problems.append(f"source {source!r} is used twice, by {used[source]} and {rule.pointer}")
                    used[source] = rule.pointer
                try:
                    shapes = chain_shapes(invert_ops(rule.ops), [wanted[target] for target in targets])
                except TableError as error:
                    problems.append(f"{rule.pointer}: making {targets[0]!r} {wanted[targets[0]]}: {error}")
                    continue
                if len(shapes) != len(sources):
                    problems.append(f"{rule.pointer}: the ops take {len(shapes)} tensors, {len(sources)} are named")
                    continue
                transfers.append(
                    Transfer(
                        rule,
                        tuple(zip(sources, shapes, strict=True)),
                        tuple((target, wanted[target]) for target in targets),
                    )
                )
            if not seen:
                problems.append(f"{rule.pointer}: makes nothing; {rule.targets[0].text!r} fits no tensor of the target")
        problems += [f"{name!r} {wanted[name]} is made by no rule" for name in wanted if name not in made]
        return transfers, problems


def _rule(
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
    described = [{k: _evaluated(v, names) for k, v in op.items()} for op in entry.get("ops", ())]
    casts = [(op["from"], op["to"]) for op in described if op["op"] == "cast"]
    if len(casts) > 1:
        raise TableError("a rule casts once at most")
    ops = tuple(make_op(op) for op in described if op["op"] != "cast")
    if not ops and (len(sources), len(targets)) != (1, 1):
        raise TableError(f"{len(sources)} sources and {len(targets)} targets need an op that joins or splits them")
    return Rule(pointer, sources, targets, ops, casts[0] if casts else None)


def _rebuilder(
    entry: Mapping[str, Any] | None, names: Mapping[str, Value]
) -> Callable[[Mapping[str, Value]], Array] | None:
    if entry is None:
        return None
    make = REBUILDERS[entry["as"]]
    arguments = {name: expression for name, expression in entry.items() if name != "as"}
    return lambda captures: make(**{k: integer(v, {**names, **captures}) for k, v in arguments.items()})


def _evaluated(value: Any, names: Mapping[str, Value]) -> Any:
    return [integer(item, names) for item in value] if isinstance(value, list) else value


def _taps(pointer: str, entry: Mapping[str, Any], names: Config) -> Iterator[tuple[SourceTap, Tap | None]]:
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
    for combination in each(counters, constants):
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


def load_table(name_or_path: str | Path) -> Table:
    """Read a table by name (`glip-official`) or path (`my-table.json`), with the spec of its target.

    A table at a path may name a spec at a path beside it: `target` is looked up there first.
    """
    document = find_document(name_or_path, "table")
    content = document.content
    beside = document.path.parent / f"{content['target']}.json"
    spec = load_spec(beside if beside.is_file() else content["target"])
    return Table(
        document.name,
        content["title"],
        document.sha256,
        document.path,
        spec,
        tuple(content.get("prefixes", ())),
        content,
    )
