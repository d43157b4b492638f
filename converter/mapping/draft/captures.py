"""Patterns for units: counted numbers become captures, `layers.{stage + 1}.downsample.{param}`."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from converter.mapping.draft.names import Named, Unit, take_apart
from converter.mapping.draft.words import meaning
from converter.mapping.pattern import compile_pattern

# what the schema allows in a pattern, less what a pattern gives a meaning of its own
_WRITABLE = re.compile(r"[A-Za-z0-9_.*+/ -]{1,360}")
# spellings of drafted config fields, which a capture must not be taken for
RESERVED = ("num_", "size_")
# words whose number is a counter although it stands right behind them: layer1, block3
_COUNTED = ("layer", "block", "stage", "level", "group", "head")


def is_writable(name: str) -> bool:
    """Whether a table can name it: braces, other scripts and control characters have no place in a pattern."""
    return _WRITABLE.fullmatch(name) is not None


def capture_names(template: str, slots: Sequence[int], taken: Collection[str]) -> list[str]:
    """A name for each slot, from the word before its number: `layers.#` is a `layer`."""
    before = [(match[1], match[2]) for match in re.finditer(r"([A-Za-z_]*)([^A-Za-z#]*)#", template)]
    chosen: list[str] = []
    for slot in slots:
        text, between = before[slot]
        word = text.strip("_").lower()
        word = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
        word = "layer" if word == "h" else word
        if not between and word not in _COUNTED:  # the 1 of fc1 is part of the name
            word = "item"
        plain = re.fullmatch(r"[a-z][a-z0-9_]*", word) and not keyword.iskeyword(word) and word != "len"
        base = word if plain and not word.startswith(RESERVED) and len(meaning(word)) > 1 else "item"
        name, number = base, 1
        while name in taken or name in chosen:
            number += 1
            name = f"{base}_{number}"
        chosen.append(name)
    return chosen


def affine(name: str, start: int, step: int) -> str:
    """`{name}`, `{name + 1}`, `{3*name + 1}`."""
    scaled = name if step == 1 else f"{step}*{name}"
    return f"{{{scaled} + {start}}}" if start else f"{{{scaled}}}"


def pattern_of(unit: Unit, numbers: Mapping[int, str], parameter: str) -> str:
    """The unit's name with `numbers` (slot -> text) for its counted numbers, and `parameter` at its end."""
    texts = {slot: str(number) for slot, number in unit.fixed} | dict(numbers)
    pieces = unit.template.split("#")
    return "".join(piece + texts.get(slot, "") for slot, piece in enumerate(pieces)) + parameter


class Names:
    """All names of one side, to check that a pattern stands for what it should and nothing else."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_template: dict[str, list[str]] = {}
        for name in names:
            for by_module in (True, False):
                template, _, parameter = take_apart(name, by_module)
                if by_module and not parameter:
                    continue
                self._by_template.setdefault(template, []).append(name)

    def is_exactly(self, pattern: str, unit: Unit, words: Mapping[str, Sequence[str]]) -> bool:
        """Whether `pattern` matches the unit's tensors and no other of this side."""
        compiled = compile_pattern(pattern, words, {})
        matched = {name for name in self._by_template[unit.template] if compiled.match(name) is not None}
        return matched == unit.names


def restrict(unit: Unit, parameters: Collection[str], fix: Mapping[int, int]) -> Unit:
    """The part of a unit with these parameters, and the free slots at these positions fixed at these indices."""
    keep = [i for i in range(len(unit.free)) if i not in fix]
    members: dict[tuple[int, ...], dict[str, Named]] = {}
    for index, params in unit.members.items():
        chosen = {p: tensor for p, tensor in params.items() if p in parameters}
        if chosen and all(index[i] == value for i, value in fix.items()):
            members[tuple(index[i] for i in keep)] = chosen
    held = {unit.free[i]: unit.progressions[i][0] + unit.progressions[i][1] * value for i, value in fix.items()} | dict(
        unit.fixed
    )
    return replace(
        unit,
        free=tuple(unit.free[i] for i in keep),
        progressions=tuple(unit.progressions[i] for i in keep),
        fixed=tuple(sorted(held.items())),
        members=members,
    )
