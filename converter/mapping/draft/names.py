"""Names of tensors as templates with numbers, and the units that such names fold into.

`layers.3.norm1.weight` is the number tuple (3, 1) and the parameter `weight` of the template `layers.#.norm#.`. All
tensors of one template are a family. A unit is a family, or the part of it in which some of the numbers are fixed,
whose other numbers count in equal steps: what one rule with captures can stand for. Its signature is the shape and
kind of every tensor by counted position; only units of equal signature can be the same part of two models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from typing import TypeAlias

from converter.mapping.draft.words import PARAMETERS
from converter.mapping.ops import Shape

Numbers: TypeAlias = tuple[int, ...]
Signature: TypeAlias = tuple[tuple[Numbers, str, Shape, str], ...]

# what a capture can stand for: no leading zero, at most nine digits
_NUMBER = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]{0,8})(?![0-9])")
_PARAMETER = re.compile(rf"(.*[._])({'|'.join(PARAMETERS)})")
# a family with more varying numbers than this is split in few ways only: the ways double with each
_SPLIT_FREELY = 4
# and one of more modules than this is matched as a whole, or one by one
_LARGE = 20_000


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor of a checkpoint or spec: `kind` is empty for floating point, else the dtype's name.

    `numbers` is the same text for tensors that are known to hold the same numbers, and empty for all others.
    """

    name: str
    shape: Shape
    kind: str = ""
    numbers: str = ""


@dataclass(frozen=True)
class Unit:
    """Part of a family. `free` are the counted slots, `progressions` the start and step of each.

    `members`: index of each free slot -> parameter -> tensor. `fixed`: the numbers of the other slots.
    """

    template: str
    free: tuple[int, ...]
    fixed: tuple[tuple[int, int], ...]
    progressions: tuple[tuple[int, int], ...]
    members: Mapping[Numbers, Mapping[str, Named]]

    @cached_property
    def signature(self) -> Signature:
        """Shape and kind of every tensor, by its indices and parameter."""
        return tuple(
            sorted((index, p, t.shape, t.kind) for index, params in self.members.items() for p, t in params.items())
        )

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(tensor.name for params in self.members.values() for tensor in params.values())

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Parameters of all members, in the order of the first that has them."""
        return tuple(dict.fromkeys(p for params in self.members.values() for p in params))

    @cached_property
    def label(self) -> str:
        """The name with `#` for counted numbers, and the numbers that are fixed."""
        fixed = dict(self.fixed)
        slot = -1

        def number(_: re.Match[str]) -> str:
            nonlocal slot
            slot += 1
            return str(fixed.get(slot, "#"))

        return re.sub("#", number, self.template)

    def __str__(self) -> str:
        return self.label.rstrip("._") or next(iter(self.names))


def take_apart(name: str, by_module: bool = True) -> tuple[str, Numbers, str]:
    """(template, numbers, parameter). Without `by_module`, the parameter stays in the template and is ''."""
    found = _PARAMETER.fullmatch(name) if by_module else None
    stem, parameter = (found[1], found[2]) if found else (name, "")
    return _NUMBER.sub("#", stem), tuple(map(int, _NUMBER.findall(stem))), parameter


def families(tensors: Iterable[Named], by_module: bool = True) -> dict[str, dict[Numbers, dict[str, Named]]]:
    """template -> numbers -> parameter -> tensor."""
    found: dict[str, dict[Numbers, dict[str, Named]]] = {}
    for tensor in tensors:
        template, numbers, parameter = take_apart(tensor.name, by_module)
        found.setdefault(template, {}).setdefault(numbers, {})[parameter] = tensor
    return found


def units(tensors: Iterable[Named], by_module: bool = True) -> list[Unit]:
    """Every unit of every family, whole families first."""
    return [unit for template, members in families(tensors, by_module).items() for unit in _split(template, members)]


def _split(template: str, members: Mapping[Numbers, Mapping[str, Named]]) -> Iterator[Unit]:
    count = len(next(iter(members)))
    varying = [slot for slot in range(count) if len({numbers[slot] for numbers in members}) > 1]
    sizes: Iterable[int] = range(len(varying) + 1)
    if len(varying) > _SPLIT_FREELY:
        sizes = (0, 1, len(varying))
    if len(members) > _LARGE:
        sizes = sorted({0, len(varying)})
    for size in sizes:
        for chosen in combinations(varying, size):
            free = tuple(slot for slot in varying if slot not in chosen)
            parts: dict[Numbers, dict[Numbers, Mapping[str, Named]]] = {}
            for numbers, params in members.items():
                key = tuple(numbers[slot] for slot in range(count) if slot not in free)
                parts.setdefault(key, {})[tuple(numbers[slot] for slot in free)] = params
            held = [slot for slot in range(count) if slot not in free]
            for key, part in parts.items():
                steps = [progression({numbers[i] for numbers in part}) for i in range(len(free))]
                progressions = tuple(step for step in steps if step is not None)
                # a number that does not vary within the part is found again where it is fixed
                if len(progressions) == len(free):
                    yield Unit(
                        template,
                        free,
                        tuple(zip(held, key, strict=True)),
                        progressions,
                        {
                            tuple((n - a) // b for n, (a, b) in zip(numbers, progressions, strict=True)): params
                            for numbers, params in part.items()
                        },
                    )


def progression(values: set[int]) -> tuple[int, int] | None:
    """(start, step) of two or more numbers in equal steps, else None."""
    ordered = sorted(values)
    if len(ordered) < 2:
        return None
    start, step = ordered[0], ordered[1] - ordered[0]
    return (start, step) if ordered[-1] == start + step * (len(ordered) - 1) and _even(ordered, step) else None


def _even(ordered: list[int], step: int) -> bool:
    return all(b - a == step for a, b in pairwise(ordered))
