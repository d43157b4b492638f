"""What stands around a model's own names: wrappers, whose names are segments of names, and counters among the weights.

Both are data, `mappings/wrappers.json`, and the same for every table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

from converter.checkpoint import DType
from converter.mapping.documents import read_wrappers
from converter.mapping.folders import WRAPPERS
from converter.mapping.ops import Shape


@dataclass(frozen=True, slots=True)
class Counter:
    """A number that a trainer keeps. `pointer` is its place in the JSON."""

    pointer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wrappers:
    """`segments`: names of wrappers; `copies`, those of them that tell one copy of a model from another.

    `counters`: by the last segment of their names.
    """

    segments: frozenset[str]
    copies: frozenset[str]
    counters: Mapping[str, Counter]

    def counter(self, name: str, shape: Shape, dtype: DType) -> Counter | None:
        """The counter that a tensor is: one whole number, or yes or no, under a name that ends so."""
        is_count = prod(shape) == 1 and dtype.kind in ("int", "bool")
        return self.counters.get(name.rpartition(".")[2]) if is_count else None


@cache
def load_wrappers() -> Wrappers:
    """Those of `mappings/`. Raises TableError if the file cannot be read."""
    content = read_wrappers()
    counters = {
        entry["name"]: Counter(f"{WRAPPERS}:/counters/{position}", entry["reason"])
        for position, entry in enumerate(content["counters"])
    }
    segments = {entry["name"]: entry.get("copy", False) for entry in content["wrappers"]}
    return Wrappers(frozenset(segments), frozenset(name for name, is_copy in segments.items() if is_copy), counters)
