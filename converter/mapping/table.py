"""A mapping table: rules between source and target keys, what is left out, and pairs of activations (taps).

A table is independent of any checkpoint. Together with the target's config it expands, read backwards from the
target, into every tensor that a checkpoint must hold: `Table.transfers`. Rules, transfers and bound tables can all be
reversed, so that one table serves to read a format and to write it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.errors import TableError
from converter.mapping.documents import find_document, names_of, pointer_to
from converter.mapping.expression import Value, evaluate, integer
from converter.mapping.ops import Array, Op, Shape, chain_shapes, invert_ops, make_op
from converter.mapping.pattern import Captures, Pattern, compile_pattern
from converter.mapping.rebuild import REBUILDERS
from converter.mapping.spec import MOST_NAMES, Budget, Config, Spec, each, load_spec

# what a table may ask for under all variants together; the largest of `mappings/` needs a tenth of each
_MOST_COMPARISONS = 20_000_000
_MOST_WORK = 1_000_000
_MOST_REBUILT = 1 << 28
_ENOUGH = 1000  # problems of one variant
_LONGEST_KEY = 4096


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


@dataclass(frozen=True, slots=True)
class SavedAs:
    """How a format's own tools save it: under which key of a .pth (empty: none), with what before every key, and the
    config.json that they read, whose text may be an expression of the config and of the weights' dtype after '='."""

    root: str = ""
    prefix: str = ""
    config: Mapping[str, Any] | None = None


Entries = tuple[tuple[str, Mapping[str, Any]], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A checked table and the spec of its target, or of the part of it that the format holds.

    `entries` are those of each section with their pointers, those of included tables first. `is_hub`: it is the spec's
    own naming, made by `hub_table`.
    """

    name: str
    title: str
    sha256: str
    path: Path
    spec: Spec
    prefixes: tuple[str, ...]
    aliases: Mapping[str, str]
    saved_as: SavedAs
    words: Mapping[str, Sequence[str]]
    constants: Mapping[str, str | int]
    entries: Mapping[str, Entries]
    is_hub: bool = False

    @property
    def label(self) -> str:
        """What a message calls the format."""
        return self.spec.label if self.is_hub else self.name

    def pointers(self, section: str) -> list[str]:
        """JSON pointers of the entries of `section`, bound or not."""
        return [pointer for pointer, _ in self.entries.get(section, ())]

    def unused_names(self) -> list[str]:
        """Pointers of the words and constants that no pattern or op mentions."""
        sections = [[entry for _, entry in self.entries.get(s, ())] for s in ("rules", "ignore", "absent")]
        used = set(re.findall(r"[a-z][a-z0-9_]*", json.dumps(sections)))
        return [
            f"/{section}/{name}"
            for section, names in (("words", self.words), ("constants", self.constants))
            for name in names
            if name not in used
        ]

    def source_forms(self) -> set[str]:
        """All source patterns with `*` for numbers: what a key looks like, whatever the variant."""
        forms = set()
        for section in ("rules", "ignore"):
            for _, entry in self.entries.get(section, ()):
                texts = [entry["source"]] if isinstance(entry["source"], str) else entry["source"]
                for name, words in self.words.items():
                    texts = [t.replace(f"{{{name}}}", word) for t in texts for word in words]
                forms |= {re.sub(r"\{[^{}]*\}|[0-9]+", "*", text) for text in texts}
        return forms

    def doubts(self) -> list[str]:
        """What a person has to decide before the table is used."""
        return [
            f"{pointer} is in doubt: {entry['doubt']}. Decide, and take 'doubt' out"
            for section in ("rules", "ignore")
            for pointer, entry in self.entries.get(section, ())
            if "doubt" in entry
        ]

    def prefix(self, name: str) -> str:
        """The prefixes of wrappers that `name` begins with."""
        end = 0
        while prefix := next((p for p in self.prefixes if name.startswith(p, end)), None):
            end += len(prefix)
        return name[:end]

    def short(self, name: str) -> str:
        """`name` without the prefixes of wrappers, and with old or other names of parts as the rules call them."""
        name = name.removeprefix(self.prefix(name))
        longest = max(_LONGEST_KEY, len(name))
        for other, ours in self.aliases.items():
            name = name.replace(other, ours)
            if len(name) > longest:  # each can make it a hundred times as long
                raise TableError(f"{self.path}: /aliases make a key of more than {longest} characters")
        return name

    def config_document(self, config: Config, dtypes: set[str]) -> dict[str, Any] | None:
        """The config.json that the format's own tools read, if they read one; `dtypes` are those of the weights."""
        if self.saved_as.config is None:
            return None
        (dtype,) = dtypes if len(dtypes) == 1 else {""}
        stated = {k: v for k, v in self.saved_as.config.items() if dtype or v != "=dtype"}
        names = {"dtype": dtype, **self._names(config)}
        try:
            filled: dict[str, Any] = _filled(stated, names, ("saved_as", "config"))
        except TableError as error:
            raise TableError(f"{self.path}: {error}") from None
        return filled

    def _names(self, config: Config) -> dict[str, Value]:
        """What an expression of the table may name: the fields of the config, and the constants."""
        names: dict[str, Value] = {}
        for name, value in self.constants.items():
            try:
                names[name] = evaluate(value, config)
            except TableError as error:
                raise TableError(f"{self.path}: /constants/{name}: {error}") from None
        return {**config, **names}

    def bind(self, config: Config) -> Bound:
        """The table under `config`. Raises TableError with every rule that cannot be bound."""
        names = self._names(config)
        problems: list[str] = []
        budget = Budget(self.spec.share(MOST_NAMES))
        buffers = Budget(self.spec.share(_MOST_REBUILT), "elements of buffers")

        def active(section: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
            for pointer, entry in self.entries.get(section, ()):
                try:
                    budget.take(1)
                    if evaluate(entry.get("when", 1), names):
                        yield pointer, entry
                except TableError as error:
                    problems.append(f"{pointer}: {error}")

        def patterns(texts: str | Sequence[str]) -> tuple[Pattern, ...]:
            compiled = [compile_pattern(t, self.words, names) for t in ([texts] if isinstance(texts, str) else texts)]
            budget.take(sum(pattern.cost for pattern in compiled))
            return tuple(compiled)

        rules: list[Rule] = []
        ignores: list[Ignore] = []
        absent: list[Ignore] = []
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
                ignores.append(_ignore(pointer, source, entry, names, budget, buffers))
            except TableError as error:
                problems.append(f"{pointer}: {error}")
        for pointer, entry in active("absent"):
            try:
                (target,) = patterns(entry["target"])
                reason, refused = entry["reason"], entry.get("refused", False)
                absent.append(Ignore(pointer, target, reason, reason, None, refused=refused))
            except TableError as error:
                problems.append(f"{pointer}: {error}")
        for pointer, entry in active("taps"):
            try:
                for source_tap, tap in _taps(pointer, entry, names, budget):
                    source_taps.append(source_tap)
                    taps += [] if tap is None else [tap]
            except TableError as error:
                problems.append(f"{pointer}: {error}")
        if problems:
            raise TableError(f"{self.path}: {len(problems)} entries are wrong", problems)
        return Bound(tuple(rules), tuple(ignores), tuple(absent), tuple(source_taps), tuple(taps))

    def transfers(self, bound: Bound, config: Config) -> tuple[list[Transfer], list[str]]:
        """Every application of every rule that makes the target, and what is wrong with them.

        Problems are static: a target that no rule makes, or two; a rule that makes nothing of this target, or only
        part of what it must; a source key used twice; ops that do not fit the target's shapes.
        """
        wanted = self.spec.tensors(config)
        dtypes = self.spec.dtypes(config)
        transfers: list[Transfer] = []
        problems: list[str] = []
        made: dict[str, str] = {}
        used: dict[str, str] = {}
        claiming = [pattern for rule in bound.rules for pattern in rule.targets[:1]]
        claiming += [entry.source for entry in bound.absent]
        self.check_cost(claiming, wanted)
        budget = Budget(self.spec.share(_MOST_WORK), "tensors and sizes of ops")
        for rule in bound.rules:
            seen = 0
            for name, captures in rule.targets[0].among(wanted.keys()):
                if len(problems) > _ENOUGH:
                    return transfers, [*problems, f"{rule.pointer}: and more of the kind"]
                seen += 1
                try:
                    budget.take(rule.cost)
                    targets = [pattern.format(captures) for pattern in rule.targets]
                    sources = [pattern.format(captures) for pattern in rule.sources]
                    ops = rule.ops(captures)
                except TableError as error:
                    problems.append(f"{rule.pointer}: making {name!r} {wanted[name]}: {error}")
                    continue
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
                    shapes = chain_shapes(invert_ops(ops), [wanted[target] for target in targets])
                except TableError as error:
                    problems.append(f"{rule.pointer}: making {targets[0]!r} {wanted[targets[0]]}: {error}")
                    continue
                if len(shapes) != len(sources):
                    problems.append(f"{rule.pointer}: the ops take {len(shapes)} tensors, {len(sources)} are named")
                    continue
                exact = {dtypes.get(target) for target in targets}
                if len(exact) > 1 or (rule.cast and exact != {None}):
                    problems.append(f"{rule.pointer}: makes {targets[0]!r}, whose dtype is fixed, together with others")
                    continue
                transfers.append(
                    Transfer(
                        rule,
                        tuple(zip(sources, shapes, strict=True)),
                        tuple((target, wanted[target]) for target in targets),
                        ops,
                        exact.pop(),
                    )
                )
            if not seen and not self.is_hub:  # which has a rule for whatever any variant has
                problems.append(f"{rule.pointer}: makes nothing; {rule.targets[0].text!r} fits no tensor of the target")
        unused = {entry.pointer: entry.source.text for entry in bound.absent}
        absent: dict[str, str] = {}
        for entry in bound.absent:
            for name, _ in entry.source.among(wanted.keys()):
                unused.pop(entry.pointer, None)
                absent.setdefault(name, entry.pointer)
        for name in wanted:
            if name in made and name in absent:
                problems.append(f"{name!r} is made by {made[name]}, yet absent by {absent[name]}")
            elif name not in made and name not in absent:
                problems.append(f"{name!r} {wanted[name]} is made by no rule")
        problems += [f"{pointer}: {text!r} fits no tensor of the target" for pointer, text in unused.items()]
        return transfers, problems

    def check_cost(self, patterns: Collection[Pattern], names: Collection[str]) -> None:
        """Raises TableError where comparing all the `patterns` with all the `names` would take minutes."""
        comparisons = sum(1 for pattern in patterns if pattern.captures) * len(names)
        if comparisons > self.spec.share(_MOST_COMPARISONS):
            raise TableError(
                f"{self.path}: /rules: {len(patterns)} patterns and {len(names)} tensors are too many; write fewer "
                "rules, each for more tensors"
            )


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


def _ignore(
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


def _taps(
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


def _filled(value: Any, names: Mapping[str, Value], path: tuple[str | int, ...]) -> Any:
    """`value`, which stands at `path`, with every text that begins with '=' evaluated."""
    if isinstance(value, dict):
        return {key: _filled(item, names, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, names, (*path, i)) for i, item in enumerate(value)]
    if isinstance(value, str) and value.startswith("="):
        try:
            found = evaluate(value[1:], names)
        except TableError as error:
            raise TableError(f"{pointer_to(path)}: {error}") from None
        return list(found) if isinstance(found, tuple) else found
    return value


def load_table(name_or_path: str | Path) -> Table:
    """Read a table by name (`glip-official`) or path (`my-table.json`), with the spec of its target.

    A table at a path may name a spec at a path beside it: `target` is looked up there first.
    Raises TableError.
    """
    document = find_document(name_or_path, "table")
    content = document.content
    spec = load_target(content["target"], document.path)
    if document.name == spec.name:
        raise TableError(
            f"{document.path}: /name is {document.name!r}, which is the target's own naming. Choose another name"
        )
    if (part := content.get("part")) is not None:
        if part not in spec.parts:
            raise TableError(f"{document.path}: {spec.name} has no part {part!r}; known: {', '.join(spec.parts)}")
        spec = spec.parts[part]
    merged = _Merged()
    merged.add(content, "", "", (document.name,))
    hashes = [document.sha256, *merged.included]
    return Table(
        document.name,
        content["title"],
        hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
        document.path,
        spec,
        tuple(content.get("prefixes", ())),
        merged.names["aliases"],
        SavedAs(**content.get("saved_as", {})),
        merged.names["words"],
        merged.names["constants"],
        {section: tuple(entries) for section, entries in merged.entries.items()},
    )


def load_target(name: str, path: Path) -> Spec:
    """The whole spec that a table at `path` names: beside it, or built in."""
    beside = path.parent / f"{name}.json"
    return load_spec(beside if beside.is_file() else name)


class _Merged:
    """What a table and those that it includes say together; `included` are the hashes of the latter."""

    def __init__(self) -> None:
        self.entries: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        self.names: dict[str, dict[str, Any]] = {"words": {}, "constants": {}, "aliases": {}}
        self.included: list[str] = []

    def add(self, content: Mapping[str, Any], at: str, origin: str, path: tuple[str, ...]) -> None:
        """Take over `content`, whose keys stand behind `at` here; `path` are the tables that led to it."""
        for include in content.get("include", ()):
            if include["table"] in path:
                raise TableError(f"{path[0]}: /include: {' includes '.join([*path, include['table']])}")
            kind = "table" if include["table"] in names_of("table") else "fragment"
            document = find_document(include["table"], kind)
            self.included.append(document.sha256)
            name = document.name
            self.add(document.content, at + include["at"], f"{name}:", (*path, name))
        for section, known in self.names.items():
            for name, value in content.get(section, {}).items():
                if known.setdefault(name, value) != value:
                    raise TableError(f"{path[0]}: included tables disagree on /{section}/{name}")
        for section in ("rules", "ignore", "absent"):
            for position, entry in enumerate(content.get(section, ())):
                moved = {**entry, "source": _behind(at, entry["source"])} if at and "source" in entry else entry
                self.entries.setdefault(section, []).append((f"{origin}/{section}/{position}", moved))
        if not origin:  # the modules of an included format are elsewhere here
            self.entries["taps"] = [(f"/taps/{i}", entry) for i, entry in enumerate(content.get("taps", ()))]


def _behind(at: str, patterns: str | list[str]) -> str | list[str]:
    return at + patterns if isinstance(patterns, str) else [at + pattern for pattern in patterns]


def hub_table(spec: Spec) -> Table:
    """The table of the spec's own naming, by which a converted file is read and written like any other format."""
    rules: dict[str, dict[str, Any]] = {}
    for entry in spec.entries:
        for suffix, key in (("", "shape"), (".weight", "weight"), (".bias", "bias")):
            if key in entry:
                name = entry["name"] + suffix
                optional = {"optional": spec.optional[entry["name"]]} if entry["name"] in spec.optional else {}
                rules[name] = {"source": name, "target": name, **optional}
    entries = {"rules": tuple((f"/{name}", rule) for name, rule in rules.items())}
    return Table(spec.name, spec.title, spec.sha256, Path(spec.name), spec, (), {}, SavedAs(), {}, {}, entries, True)
