"""A spec for a target that is known by a checkpoint only: its tensors, folded into entries with counters.

Numbers that count become counters of `each`; a count that depends on an earlier counter (blocks in each stage) and a
size that does (channels of each stage) become lists of the config. What fits neither is written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converter.mapping.draft.captures import affine, capture_names
from converter.mapping.draft.names import Named, Numbers, families, progression
from converter.mapping.draft.words import PARAMETERS

Entry = dict[str, Any]
_FACTORS = (1, 2, 3, 4, 8)


@dataclass(slots=True)
class _Config:
    """Fields of the drafted config: counts and lists, each by a name of its own."""

    values: dict[str, int | list[int]] = field(default_factory=dict)
    meaning: dict[str, str] = field(default_factory=dict)

    def count(self, number: int, counter: str) -> int | str:
        counter = _without_number(counter)
        for name, value in self.values.items():
            if name.startswith(f"num_{counter}s") and isinstance(value, int) and value - number in (0, 1):
                return name if value == number else f"{name} - 1"
        return self._new(f"num_{counter}s", number, f"how many there are of {counter!r} in the names")

    def at(self, items: list[int], counter: str, prefix: str, meaning: str) -> str:
        """An expression for `items[counter]`, from a list that is there already if one fits."""
        for name, value in self.values.items():
            if not isinstance(value, list):
                continue
            for factor in _FACTORS:
                for shift in range(len(value) - len(items) + 1):
                    if [factor * v for v in value[shift : shift + len(items)]] == items:
                        scaled = f"{factor}*" if factor > 1 else ""
                        return f"{scaled}{name}[{counter} + {shift}]" if shift else f"{scaled}{name}[{counter}]"
        return f"{self._new(prefix, items, meaning)}[{counter}]"

    def _new(self, base: str, value: int | list[int], meaning: str) -> str:
        name, number = base, 1
        while name in self.values:
            number += 1
            name = f"{base}_{number}"
        self.values[name] = value
        self.meaning[name] = meaning
        return name


def draft_spec(name: str, title: str, tensors: Sequence[Named]) -> dict[str, Any]:
    """The spec, with one variant, whose tensors are exactly `tensors`."""
    config = _Config()
    entries: list[Entry] = []
    for template, members in families(tensors).items():
        found = dict.fromkeys(p for params in members.values() for p in params)
        # a weight before its bias, whatever their order in the file, so that they become one entry
        for parameter in sorted(found, key=lambda p: PARAMETERS.index(p) if p in PARAMETERS else -1):
            part = {numbers: params[parameter] for numbers, params in members.items() if parameter in params}
            entries += _entries(template, part, parameter, config)
    return {
        "kind": "spec",
        "name": name,
        "title": title,
        "config": config.meaning,
        "variants": {name: {"title": "as in the file that it was drafted from", "config": config.values}},
        "tensors": _paired(entries),
    }


def _entries(template: str, members: Mapping[Numbers, Named], parameter: str, config: _Config) -> Iterator[Entry]:
    """One entry for all `members` if counters and lists can say it, else one number fixed after the other."""
    slots = [i for i in range(template.count("#")) if len({numbers[i] for numbers in members}) > 1]
    folded = _fold(slots, members)
    # fc1 and fc2 of different shapes are two things, not a counter
    if folded is not None and not (slots and folded.sized_by(len(slots) - 1) and _is_label(template, slots[-1])):
        yield folded.entry(template, parameter, next(iter(members)), config)
        return
    # the first of a stage often differs from all others
    for slot in reversed(slots):
        least = min(numbers[slot] for numbers in members)
        parts = [
            {numbers: tensor for numbers, tensor in members.items() if (numbers[slot] == least) is first}
            for first in (True, False)
        ]
        halves = [_fold([i for i in slots if len({n[i] for n in part}) > 1], part) for part in parts]
        if folded is None and not _is_label(template, slots[-1]) and all(halves):
            for half, part in zip(halves, parts, strict=True):
                assert half is not None
                yield half.entry(template, parameter, next(iter(part)), config)
            return
    for value in sorted({numbers[slots[-1]] for numbers in members}):
        part = {numbers: tensor for numbers, tensor in members.items() if numbers[slots[-1]] == value}
        yield from _entries(template, part, parameter, config)


def _without_number(counter: str) -> str:
    return counter.rstrip("0123456789").rstrip("_")


def _is_label(template: str, slot: int) -> bool:
    """Whether the number stands right behind a word that it does not count: the 1 of fc1."""
    return template.split("#")[slot][-1:].isalpha() and capture_names(template, [slot], ()) == ["item"]


@dataclass(frozen=True, slots=True)
class _Series:
    """Numbers that follow one counter (a position), or none where they are all the same."""

    counter: int | None
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Folded:
    """Members as counters: slot, (start, step) and how many of each; and the sizes of the shape."""

    slots: Sequence[int]
    steps: Sequence[tuple[int, int]]
    counts: Sequence[_Series]
    sizes: Sequence[_Series]
    kind: str

    def sized_by(self, position: int) -> bool:
        """Whether a size of the shape depends on this counter."""
        return any(size.counter == position for size in self.sizes)

    def entry(self, template: str, parameter: str, example: Numbers, config: _Config) -> Entry:
        counters = capture_names(template, self.slots, ())
        texts = {i: str(number) for i, number in enumerate(example)} | {
            slot: affine(name, *step) for slot, name, step in zip(self.slots, counters, self.steps, strict=True)
        }
        pieces = template.split("#")
        stem = "".join(piece + texts.get(i, "") for i, piece in enumerate(pieces))
        entry: Entry = {"name": stem + parameter}
        if counters:
            entry["each"] = {}
        for name, count in zip(counters, self.counts, strict=True):
            if count.counter is None:
                entry["each"][name] = config.count(count.values[0], name)
            else:
                meaning = f"how many there are of {name!r} in each {counters[count.counter]!r}"
                entry["each"][name] = config.at(
                    list(count.values), counters[count.counter], f"num_{_without_number(name)}s", meaning
                )
        shape: list[int | str] = []
        for size in self.sizes:
            if size.counter is None:
                shape.append(size.values[0])
            else:
                counter = counters[size.counter]
                said = f"a size that differs by {counter!r}, first of {stem.rstrip('._')!r}"
                shape.append(config.at(list(size.values), counter, f"size_of_{_without_number(counter)}", said))
        entry["shape"] = shape
        return entry | ({"dtype": self.kind} if self.kind else {})


def _fold(slots: Sequence[int], members: Mapping[Numbers, Named]) -> _Folded | None:
    found = [progression({numbers[slot] for numbers in members}) for slot in slots]
    steps = [step for step in found if step is not None]
    tensors = list(members.values())
    if len(steps) < len(slots) or len({(len(t.shape), t.kind) for t in tensors}) > 1:
        return None
    indices = [
        tuple((numbers[slot] - start) // step for slot, (start, step) in zip(slots, steps, strict=True))
        for numbers in members
    ]
    counts = []
    for position in range(len(slots)):
        seen: dict[Numbers, set[int]] = {}
        for index in indices:
            seen.setdefault(index[:position], set()).add(index[position])
        if any(values != set(range(len(values))) for values in seen.values()):
            return None
        counts.append(_series([(above, len(values)) for above, values in seen.items()]))
    sizes = [
        _series([(index, tensor.shape[axis]) for index, tensor in zip(indices, tensors, strict=True)])
        for axis in range(len(tensors[0].shape))
    ]
    known = [series for series in (*counts, *sizes) if series is not None]
    if len(known) < len(counts) + len(sizes):
        return None
    return _Folded(slots, steps, known[: len(counts)], known[len(counts) :], tensors[0].kind)


def _series(pairs: Sequence[tuple[Numbers, int]]) -> _Series | None:
    """The numbers as a function of nothing, or of one position of their index."""
    if len({number for _, number in pairs}) == 1:
        return _Series(None, (pairs[0][1],))
    for position in range(len(pairs[0][0])):
        by = dict.fromkeys(sorted({index[position] for index, _ in pairs}), 0)
        by.update({index[position]: number for index, number in pairs})
        if all(by[index[position]] == number for index, number in pairs):
            return _Series(position, tuple(by.values()))
    return None


def _paired(entries: Sequence[Entry]) -> list[Entry]:
    """Entries of a weight and its bias as one."""
    paired: list[Entry] = []
    weights: dict[str, Entry] = {}
    for entry in entries:
        stem, _, parameter = entry["name"].rpartition(".")
        weight = weights.get(stem)
        if stem and parameter == "weight" and "dtype" not in entry:
            weights[stem] = {"name": stem} | ({"each": entry["each"]} if "each" in entry else {})
            weights[stem]["weight"] = entry["shape"]
            paired.append(weights[stem])
        elif parameter == "bias" and weight and "dtype" not in entry and weight.get("each") == entry.get("each"):
            weight["bias"] = entry["shape"]
        else:
            paired.append(entry)
    return paired
