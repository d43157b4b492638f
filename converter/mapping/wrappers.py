"""What stands around a model's own names: wrappers, whose names are segments of names, and counters among the weights.

Both are data, `mappings/wrappers.json`, and the same for every table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

from converter.mapping.documents import WRAPPERS, read_wrappers
from converter.mapping.ops import Shape


@dataclass(frozen=True, slots=True)
class Counter:
    """A number that a trainer keeps. `pointer` is its place in the JSON."""

    pointer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wrappers:
    """`segments`: names of wrappers. `counters`: by the last segment of their names."""

    segments: frozenset[str]
    counters: Mapping[str, Counter]

    def counter(self, name: str, shape: Shape) -> Counter | None:
        """The counter that a tensor is: one number, under a name that ends so."""
        return self.counters.get(name.rpartition(".")[2]) if prod(shape) == 1 else None


@cache
def load_wrappers() -> Wrappers:
    """Those of `mappings/`. Raises TableError if the file cannot be read."""
    content = read_wrappers()
    counters = {
        entry["name"]: Counter(f"{WRAPPERS}:/counters/{position}", entry["reason"])
        for position, entry in enumerate(content["counters"])
    }
    return Wrappers(frozenset(entry["name"] for entry in content["wrappers"]), counters)
