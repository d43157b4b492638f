"""A mapping table: rules between source and target keys, what is left out, and pairs of activations (taps).

A table is independent of any checkpoint. Under the config of a target it is bound: numbers for expressions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from converter.checkpoint.dtypes import DTYPES
from converter.errors import TableError
from converter.mapping.documents import pointer_to
from converter.mapping.doubts import in_doubt
from converter.mapping.entries import Binder, Bound
from converter.mapping.expression import Value, evaluate
from converter.mapping.names import Names, form_of
from converter.mapping.spec import MOST_NAMES, Budget, Config, Spec
from converter.mapping.wrappers import load_wrappers

_MOST_REBUILT = 1 << 28  # elements of buffers, under all variants together; the largest of `mappings/` needs a tenth


@dataclass(frozen=True, slots=True)
class SavedAs:
    """How a format's own tools save it. `root`: key of the state dict in a .pth, if any. `prefix`: what precedes every
    name. `config`: their config.json; text after '=' in it is an expression of the config and of the weights' dtype.
    `unread`: keys of it, at any depth, that what a model computes does not depend on."""

    root: str = ""
    prefix: str = ""
    config: Mapping[str, Any] | None = None
    unread: tuple[str, ...] = ()


Entries = tuple[tuple[str, Mapping[str, Any]], ...]


@dataclass(frozen=True)
class Table:
    """A checked table and the spec of its target, or of the part of it that the format holds.

    `entries` are those of each section with their pointers, those of included tables first. `is_hub`: it is the spec's
    own naming, made by `hub_table`. `parts_of_others`: why a checkpoint with such parts of keys is of another model.
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
    parts_of_others: Mapping[str, str] = field(default_factory=dict)

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

    @cached_property
    def names(self) -> Names:
        """How the keys of a file are read."""
        try:
            return Names(self._source_forms(), self.prefixes, self.aliases, load_wrappers().segments)
        except TableError as error:
            raise TableError(f"{self.path}: {error}") from None

    def _source_forms(self) -> set[str]:
        """The form of every source pattern, with each word where it has one of several."""
        forms: set[str] = set()
        for section in ("rules", "ignore"):
            for pointer, entry in self.entries.get(section, ()):
                texts = [entry["source"]] if isinstance(entry["source"], str) else entry["source"]
                for name, words in self.words.items():
                    hole = f"{{{name}}}"
                    texts = [
                        made for t in texts for made in ([t.replace(hole, w) for w in words] if hole in t else [t])
                    ]
                    if len(texts) > MOST_NAMES:
                        raise TableError(f"{pointer}: /words make more than {MOST_NAMES} keys of it")
                forms |= {form_of(re.sub(r"\{[^{}]*\}", "*", text)) for text in texts}
        return forms

    def doubts(self) -> list[str]:
        """What a person has to decide before the table is used."""
        return [f"{pointer} is in doubt: {entry['doubt']}" for pointer, entry in in_doubt(self.entries).items()]

    def short(self, name: str) -> str:
        """`name` without wrappers, and with old or other names of parts as the rules call them."""
        try:
            return self.names.short(name)
        except TableError as error:
            raise TableError(f"{self.path}: {error}") from None

    def foreign(self, name: str) -> str | None:
        """Why a checkpoint with a key of this name is of another model, if the table says so."""
        return next((reason for part, reason in self.parts_of_others.items() if part in name), None)

    def config_document(self, config: Config, dtypes: set[str]) -> dict[str, Any] | None:
        """The config.json that the format's own tools read, if they read one. `dtypes`: those of all tensors, of
        which the floating-point ones are those of the weights."""
        if self.saved_as.config is None:
            return None
        floats = {name for name in dtypes if DTYPES[name].kind == "float"}
        (dtype,) = floats if len(floats) == 1 else {""}
        stated = {k: v for k, v in self.saved_as.config.items() if dtype or v != "=dtype"}
        names = {"dtype": dtype, **self._names(config)}
        try:
            filled: dict[str, Any] = _filled(stated, names, ("saved_as", "config"))
        except TableError as error:
            raise TableError(f"{self.path}: {error}") from None
        return filled

    def _rules_for(self, target: str) -> Entries:
        """The rules of which a target begins as `target` does."""
        return tuple(
            (pointer, rule)
            for pointer, rule in self.entries.get("rules", ())
            for texts in [[rule["target"]] if isinstance(rule["target"], str) else rule["target"]]
            if any(target.startswith(text.partition("{")[0]) for text in texts)
        )

    def _names(self, config: Config) -> dict[str, Value]:
        """What an expression of the table may name: the fields of the config, and the constants."""
        names: dict[str, Value] = {}
        for name, value in self.constants.items():
            try:
                names[name] = evaluate(value, config)
            except TableError as error:
                raise TableError(f"{self.path}: /constants/{name}: {error}") from None
        return {**config, **names}

    def bind(self, config: Config, making: str | None = None) -> Bound:
        """The table under `config`, or of its rules those alone that may be `making` the target of that name.

        Raises TableError with every rule that cannot be bound.
        """
        binder = Binder(
            self._names(config),
            self.words,
            Budget(self.spec.share(MOST_NAMES)),
            Budget(self.spec.share(_MOST_REBUILT), "elements of buffers"),
        )
        bound = binder.bind(self.entries if making is None else {"rules": self._rules_for(making)})
        if binder.problems:
            raise TableError(f"{self.path}: {len(binder.problems)} entries are wrong", binder.problems)
        return bound


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
