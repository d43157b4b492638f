"""A mapping table: rules between source and target keys, what is left out, and pairs of activations (taps).

A table is independent of any checkpoint. Together with the target's config it expands, read backwards from the
target, into every tensor that a checkpoint must hold: `Table.transfers`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import TableError
from converter.mapping.documents import pointer_to
from converter.mapping.entries import Bound, Ignore, Rule, SourceTap, Tap, Transfer, bind_ignore, bind_rule, bind_taps
from converter.mapping.expression import Value, evaluate
from converter.mapping.ops import chain_shapes, invert_ops
from converter.mapping.pattern import Pattern, compile_pattern
from converter.mapping.spec import MOST_NAMES, Budget, Config, Spec

# what a table may ask for under all variants together; the largest of `mappings/` needs a tenth of each
_MOST_COMPARISONS = 20_000_000
_MOST_WORK = 1_000_000
_MOST_REBUILT = 1 << 28
_ENOUGH = 1000  # problems of one variant
_LONGEST_KEY = 4096


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
                rules.append(bind_rule(pointer, patterns(entry["source"]), patterns(entry["target"]), entry, names))
            except TableError as error:
                problems.append(f"{pointer}: {error}")
        for pointer, entry in active("ignore"):
            try:
                (source,) = patterns(entry["source"])
                ignores.append(bind_ignore(pointer, source, entry, names, budget, buffers))
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
                for source_tap, tap in bind_taps(pointer, entry, names, budget):
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
