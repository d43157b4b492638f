"""The choices of an evaluation: data in a file, each beside its source, and what they may be changed to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from converter.display import listed, quoted
from converter.errors import ModelError
from converter.parity.family import Asked, Class

Reader: TypeAlias = tuple[str, Callable[[str], Any]]  # what is expected, and how its text is read: ValueError, KeyError


def read_choices(path: Path, asked: Asked, data: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The choices of the protocol of that name for 'coco', 'lvis' or another data set, with the changes asked for.

    path: a file whose `protocols` have for `all` data sets, and for some of them in its place, a value and its source.
    readers: of every choice, in their order. ModelError for an unknown protocol or choice, or a value that it cannot
    have.
    """
    known = json.loads(path.read_text(encoding="utf-8"))["protocols"]
    if asked.name not in known:
        raise ModelError(f"protocol: found {quoted(asked.name, 40)}, expected one of {', '.join(known)}.")
    parts = known[asked.name]
    stated = {name: value for part in ("all", data) for name, (value, _) in parts.get(part, {}).items()}
    for name, text in asked.changed.items():
        if name not in readers:
            raise ModelError(f"setting: found {quoted(name, 40)}, expected one of {', '.join(readers)}.")
        expected, read = readers[name]
        try:
            stated[name] = read(text)
        except (ValueError, KeyError):
            raise ModelError(f"setting: {name} is {quoted(text, 40)}, expected {expected}.") from None
    return stated


def told(name: str, known: Mapping[str, Any], used: Mapping[str, Any], data: str, classes: Sequence[Class]) -> str:
    """The name of a protocol, and what of it was changed: such a figure is none of the protocol itself."""
    changed = [f"{choice}={value}" for choice, value in used.items() if value != known[choice]]
    if data != "own" and any(each.prefix or each.text or each.suffix for each in classes):
        changed.append("other captions")
    return f"{name} with {', '.join(changed)}" if changed else name


def one_of(values: tuple[str, ...]) -> Reader:
    """A reader of these texts alone."""

    def read(text: str) -> str:
        return {value: value for value in values}[text]

    return f"one of {listed(values)}", read


def whole(least: int, most: int) -> Reader:
    """A reader of integers."""

    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise ValueError
        return value

    return f"an integer from {least} to {most}", read


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _share(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError
    return value


def _short(text: str) -> str:
    if len(text) > 100:
        raise ValueError
    return text


def _per_caption(text: str) -> int | None:
    return None if text == "none" else whole(1, 10_000)[1](text)


TRUTH: Reader = ("true or false", _truth)
SHARE: Reader = ("a number from 0 to 1", _share)
SHORT: Reader = ("text of up to 100 characters", _short)
PER_CAPTION: Reader = ("none, or an integer from 1 to 10000", _per_caption)
SIDE: Reader = whole(1, 1 << 12)
ORDER: Reader = one_of(("id", "name", "reversed"))  # of classes in captions
FILTER: Reader = one_of(("bilinear", "bilinear-tensor", "bicubic", "nearest", "box"))  # by which pictures are resized
METRIC: Reader = one_of(("coco", "lvis", "lvis-fixed"))
