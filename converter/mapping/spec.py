"""The spec of a target: its variants, and the name and shape of every tensor as expressions of the config.

A spec may name parts of itself that others hold alone: an image encoder, a text encoder. A part is a
spec too, of the tensors below one module, with variants of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from converter.errors import TableError
from converter.mapping.documents import Document, find_document, names_of
from converter.mapping.expression import Value, evaluate, integer
from converter.mapping.ops import Shape
from converter.mapping.pattern import compile_pattern

Config: TypeAlias = Mapping[str, Value]

# an entry names one tensor by its shape, or the weight and bias of a module by theirs
SUFFIXES = (("", "shape"), (".weight", "weight"), (".bias", "bias"))
FILES = ("words", "aliases", "saved_as", "ignore")
MOST_NAMES = 100_000  # of all variants together: the largest models have as many tensors


@dataclass(frozen=True, slots=True)
class Variant:
    """A released architecture. `also` names other models that no key or shape tells apart from it."""

    name: str
    title: str
    also: tuple[str, ...]
    config: Config


@dataclass(frozen=True, slots=True)
class Option:
    """A config field that the checkpoint decides: the size along `axis` of `tensor`, or `absent` without it."""

    field: str
    tensor: str
    axis: int
    absent: int


@dataclass(frozen=True, slots=True)
class Spec:
    """What a target is made of. `tensors(config)` gives every tensor with its shape, in order.

    `part` is the module whose tensors these are, empty for the whole; `parts` are those that have a name. `optional`
    says of some entries why a checkpoint may lack them; `family` names the code that runs such models, if there is any.
    `files` is what a table says of files in a format, of those that the model's own library writes: sections by name.
    """

    name: str
    title: str
    sha256: str
    variants: tuple[Variant, ...]
    options: tuple[Option, ...]
    entries: tuple[Mapping[str, Any], ...]
    family: str | None = None
    part: str = ""
    parts: Mapping[str, Spec] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`NAME`, or `NAME PART` of a part."""
        return f"{self.name} {self.part}".rstrip()

    def variant(self, name: str) -> Variant:
        """The variant called `name`, also by the name of a model of the same architecture."""
        for variant in self.variants:
            if name == variant.name or name in variant.also:
                return variant
        known = [n for variant in self.variants for n in (variant.name, *variant.also)]
        raise TableError(f"{self.name} has no variant {name!r}; known: {', '.join(known)}")

    def variant_of(self, config: Config) -> Variant:
        """The variant of that config, whatever its options say; one called `custom` for other sizes."""
        free = {option.field for option in self.options}
        for variant in self.variants:
            if all(config.get(name) == value for name, value in variant.config.items() if name not in free):
                return variant
        return Variant("custom", f"{self.title}, of other sizes than those released", (), config)

    def share(self, total: int) -> int:
        """The share of the limit `total` that one config gets: a variant as it is, or with one of the options."""
        return max(1, total // (len(self.variants) * (1 + len(self.options))))

    def tensors(self, config: Config) -> dict[str, Shape]:
        """Name -> shape of every tensor under `config`. Raises TableError for a name made twice."""
        result: dict[str, Shape] = {}
        budget = Budget(self.share(MOST_NAMES))
        for entry in self.entries:
            try:
                for name, shape in _expand(entry, config, budget):
                    if name in result:
                        raise TableError(f"tensor {name!r} is made twice")
                    if min(shape, default=0) < 0:
                        raise TableError(f"tensor {name!r} has the shape {shape}; no size can be negative")
                    if math.prod(size or 1 for size in shape) >= 1 << 63:  # even of no element: no file can hold it
                        raise TableError(f"tensor {name!r} has the shape {shape}, which is beyond what can be counted")
                    result[name] = shape
            except TableError as error:
                at = entry.get("pointer", "")
                raise TableError(f"{self.name}{at and ', '}{at}, {entry['name']!r}: {error}") from None
        return result

    def dtypes(self, config: Config) -> dict[str, str]:
        """Name -> dtype of the tensors that must have just that one; all others are of some floating-point type."""
        budget = Budget(self.share(MOST_NAMES))
        exact = [entry for entry in self.entries if "dtype" in entry]
        return {name: entry["dtype"] for entry in exact for name, _ in _expand(entry, config, budget)}

    def holds(self, name: str) -> bool:
        """Whether a tensor of that name is among those of this part; the whole holds everything."""
        return not self.part or name.startswith(f"{self.part}.")


class Budget:
    """A limit on what a table or spec may ask for, and what is left of it; anybody may have written the document."""

    def __init__(self, left: int, what: str = "names and patterns") -> None:
        self._limit = self._left = left
        self._what = what

    def take(self, count: int) -> None:
        """Raises TableError where less than `count` is left."""
        self._left -= max(count, 0)
        if self._left < 0:
            raise TableError(f"more than {self._limit} {self._what} for one variant; check the counts, or split it up")


def _expand(entry: Mapping[str, Any], config: Config, budget: Budget) -> Iterator[tuple[str, Shape]]:
    pattern = compile_pattern(entry["name"], {}, {})
    expressions = [entry.get("when", 1), *entry.get("let", {}).values()]
    expressions += [size for key in ("shape", "weight", "bias") for size in entry.get(key, ())]
    effort = sum(len(str(expression)) for expression in expressions) // 100
    for names in each(entry.get("each", {}), config, budget):
        budget.take(effort)
        for name, expression in entry.get("let", {}).items():
            names[name] = evaluate(expression, names)
        if not evaluate(entry.get("when", 1), names):
            continue
        stem = pattern.format({name: integer(name, names) for name in pattern.captures})
        for suffix, key in SUFFIXES:
            if key in entry:
                yield stem + suffix, tuple(integer(size, names) for size in entry[key])


def each(counters: Mapping[str, str | int], config: Config, budget: Budget) -> Iterator[dict[str, Value]]:
    """The config, extended by every combination of the counters; later counts may depend on earlier counters."""
    budget.take(1)
    combinations: list[dict[str, Value]] = [{}]
    for name, expression in counters.items():
        more = []
        for found in combinations:
            count = integer(expression, {**config, **found})
            budget.take(count)
            more += [{**found, name: i} for i in range(count)]
        combinations = more
    for found in combinations:
        yield {**config, **found}


def load_spec(name_or_path: str | Path) -> Spec:
    """Read a spec by name or path. Raises TableError for a config that lacks a field or has one too many."""
    document = find_document(name_or_path, "spec")
    if str(name_or_path).endswith(".json"):
        document = _as_known(document)
    content = document.content
    options = tuple(
        Option(field, o["tensor"], o["axis"], o["absent"]) for field, o in content.get("options", {}).items()
    )
    common = {**content.get("common", {}), **{o.field: o.absent for o in options}}
    entries = tuple({**entry, "pointer": f"/tensors/{i}"} for i, entry in enumerate(content["tensors"]))
    problems: list[str] = []
    variants = _variants("", content["variants"], common, content["config"], problems)
    parts = {}
    for name, part in content.get("parts", {}).items():
        shared = {field: value for field, value in common.items() if field in part["config"]}
        parts[name] = Spec(
            document.name,
            part["title"],
            document.sha256,
            _variants(f"/parts/{name}", part["variants"], shared, part["config"], problems),
            tuple(option for option in options if option.tensor.startswith(f"{name}.")),
            tuple(entry for entry in entries if entry["name"].startswith(f"{name}.")),
            part=name,
            optional=part.get("optional", {}),
        )
        if unknown := set(parts[name].optional) - {entry["name"] for entry in parts[name].entries}:
            problems.append(f"/parts/{name}/optional: no tensor entry is called {sorted(unknown)[0]!r}")
    if problems:
        raise TableError(f"{document.path} has wrong variants", problems)
    family = content.get("family")
    files = {section: content[section] for section in FILES if section in content}
    return Spec(
        document.name, content["title"], document.sha256, variants, options, entries, family, parts=parts, files=files
    )


def _as_known(document: Document) -> Document:
    """The document; for a copy of the spec that is known by its name, that one. TableError for another of that name."""
    if document.name not in names_of("spec"):
        return document
    known = find_document(document.name, "spec")
    if document.content != known.content:
        raise TableError(
            f"{document.path}: /name is {document.name!r}, which is another spec, a built-in one. Choose another "
            "name, here and as 'target' of its tables"
        )
    return known


def _variants(
    pointer: str,
    variants: Mapping[str, Any],
    common: Mapping[str, Any],
    fields: Sequence[str],
    problems: list[str],
) -> tuple[Variant, ...]:
    found = []
    for name, variant in variants.items():
        raw = {**common, **variant["config"]}
        if set(raw) != set(fields):
            wrong = sorted(set(raw) ^ set(fields))
            problems.append(
                f"{pointer}/variants/{name}/config: fields without a value or a meaning: {', '.join(wrong)}"
            )
        config = as_config({field: raw[field] for field in fields if field in raw})
        found.append(Variant(name, variant["title"], tuple(variant.get("also", ())), config))
    return tuple(found)


def as_config(sizes: Mapping[str, Any]) -> Config:
    """Sizes as JSON has them, comparable with those of a variant: tuples for lists."""
    return {field: tuple(value) if isinstance(value, list) else value for field, value in sizes.items()}
