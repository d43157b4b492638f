"""The spec of a target: its variants, and the name and shape of every tensor as expressions of the config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from converter.errors import TableError
from converter.mapping.documents import find_document
from converter.mapping.expression import Value, evaluate, integer
from converter.mapping.ops import Shape
from converter.mapping.pattern import compile_pattern

Config: TypeAlias = Mapping[str, Value]


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
    """What a target is made of. `tensors(config)` gives every tensor with its shape, in order."""

    name: str
    title: str
    sha256: str
    variants: tuple[Variant, ...]
    options: tuple[Option, ...]
    _tensors: tuple[Mapping[str, Any], ...]

    def variant(self, name: str) -> Variant:
        """The variant called `name`, also by the name of a model of the same architecture."""
        for variant in self.variants:
            if name == variant.name or name in variant.also:
                return variant
        known = [n for variant in self.variants for n in (variant.name, *variant.also)]
        raise TableError(f"{self.name} has no variant {name!r}; known: {', '.join(known)}")

    def tensors(self, config: Config) -> dict[str, Shape]:
        """Name -> shape of every tensor under `config`. Raises TableError for a name made twice."""
        result: dict[str, Shape] = {}
        for entry in self._tensors:
            try:
                for name, shape in _expand(entry, config):
                    if name in result:
                        raise TableError(f"tensor {name!r} is made twice")
                    result[name] = shape
            except TableError as error:
                raise TableError(f"{self.name}, {entry['name']!r}: {error}") from None
        return result


def _expand(entry: Mapping[str, Any], config: Config) -> Iterator[tuple[str, Shape]]:
    pattern = compile_pattern(entry["name"], {}, {})
    for names in each(entry.get("each", {}), config):
        for name, expression in entry.get("let", {}).items():
            names[name] = evaluate(expression, names)
        if not evaluate(entry.get("when", 1), names):
            continue
        stem = pattern.format({name: integer(name, names) for name in pattern.captures})
        for suffix, key in (("", "shape"), (".weight", "weight"), (".bias", "bias")):
            if key in entry:
                yield stem + suffix, tuple(integer(size, names) for size in entry[key])


def each(counters: Mapping[str, str | int], config: Config) -> Iterator[dict[str, Value]]:
    """The config, extended by every combination of the counters; later counts may depend on earlier counters."""
    combinations: list[dict[str, Value]] = [dict(config)]
    for name, expression in counters.items():
        combinations = [{**c, name: i} for c in combinations for i in range(integer(expression, c))]
    yield from combinations


def load_spec(name_or_path: str | Path) -> Spec:
    """Read a spec by name or path. Raises TableError for a config that lacks a field or has one too many."""
    document = find_document(name_or_path, "spec")
    content = document.content
    variants = []
    problems = []
    options = tuple(
        Option(field, o["tensor"], o["axis"], o["absent"]) for field, o in content.get("options", {}).items()
    )
    for name, variant in content["variants"].items():
        raw = {**content.get("common", {}), **{o.field: o.absent for o in options}, **variant["config"]}
        if set(raw) != set(content["config"]):
            wrong = sorted(set(raw) ^ set(content["config"]))
            problems.append(f"/variants/{name}/config: fields without a value or a meaning: {', '.join(wrong)}")
        config = {field: _frozen(raw[field]) for field in content["config"] if field in raw}
        variants.append(Variant(name, variant["title"], tuple(variant.get("also", ())), config))
    if problems:
        raise TableError(f"{document.path} has wrong variants", problems)
    return Spec(document.name, content["title"], document.sha256, tuple(variants), options, tuple(content["tensors"]))


def _frozen(value: Any) -> Value:
    return tuple(value) if isinstance(value, list) else value
