"""Whether an evaluation agrees with itself: an accident or a careless edit shows, though a forger could avoid it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from converter.display import plain

_VERSION = re.compile(r"[0-9]+(\.[0-9]+)+((a|b|rc|\.post|\.dev)[0-9]+)*(\+[A-Za-z0-9._-]*)?")
_LAST_DIGIT = 1e-4  # a tenth of 0.1 AP, the last digit that is published: classes may be written with fewer digits
_ROUNDING = 1e-9
_FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}


def contradictions(content: Mapping[str, Any]) -> Iterator[str]:
    """A line for each place where an evaluation, which its schema accepts, contradicts itself."""
    if not _VERSION.fullmatch(content["converter"]):
        yield f"converter: {plain(content['converter'])!r} is not a version"
    yield from _dataset(content["dataset"], content["metric"]["style"])
    yield from _figures(content["figures"], content["metric"]["style"])
    yield from _classes(content["classes"])
    yield from _means(content["figures"], content["classes"])


def _dataset(dataset: Mapping[str, Any], style: str) -> Iterator[str]:
    skipped = [entry["picture"] for entry in dataset["skipped"]]
    if len(set(skipped)) < len(skipped):
        yield "dataset: a picture is skipped twice"
    if len(skipped) >= dataset["pictures"]:
        yield f"dataset: {len(skipped)} pictures were skipped of {dataset['pictures']}"
    if style != "coco" and dataset["style"] != "lvis":
        yield f"metric: {style} needs a data set of the style lvis, which says what was looked for in a picture"


def _figures(figures: Mapping[str, float | None], style: str) -> Iterator[str]:
    """A box that counts at a stricter overlap counts at a looser one, and more boxes find no less."""
    for less, more in (("AP", "AP50"), ("AP75", "AP50")):
        yield from _ordered(figures, less, more)
    limits = sorted((name for name in figures if re.fullmatch("AR[0-9]+", name)), key=lambda name: int(name[2:]))
    for fewer, several in pairwise(limits):
        yield from _ordered(figures, fewer, several)
    if style == "coco" and (named := sorted(_FREQUENCIES.keys() & figures.keys())):
        yield f"figures: {named[0]} is none of the metric {style}"


def _ordered(figures: Mapping[str, float | None], less: str, more: str) -> Iterator[str]:
    low, high = figures.get(less), figures.get(more)
    if low is not None and high is not None and low > high + _ROUNDING:
        yield f"figures: {less} {low:g} is more than {more} {high:g}"


def _classes(classes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for number, count in Counter(entry["id"] for entry in classes).items():
        if count > 1:
            yield f"classes: id {number} is there {count} times"
    for entry in classes:
        found = {name: entry[name] for name in ("ap", "ap50", "recall") if entry[name] is not None}
        at = f"classes: id {entry['id']}"
        if found and not entry["annotated"]:
            yield f"{at}: {next(iter(found))} is {next(iter(found.values())):g}, and nothing of it is annotated"
        elif any(found.values()) and not entry["predicted"]:
            yield f"{at}: {max(found, key=lambda name: found[name])} is more than 0, and nothing was predicted"
        elif found.get("ap", 0.0) > found.get("ap50", 1.0) + _LAST_DIGIT:
            yield f"{at}: ap {found['ap']:g} is more than ap50 {found['ap50']:g}"


def _means(figures: Mapping[str, float | None], classes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """AP is the mean over the classes that have one, and so are AP50 and those of rare, common and frequent classes."""
    members = {"AP": ("ap", classes), "AP50": ("ap50", classes)}
    for name, frequency in _FREQUENCIES.items():
        members[name] = ("ap", [entry for entry in classes if entry["frequency"] == frequency])
    for name, (kind, entries) in members.items():
        if name not in figures:
            continue
        numbers = [entry[kind] for entry in entries if entry[kind] is not None]
        mean = math.fsum(numbers) / len(numbers) if numbers else None
        stated = figures[name]
        if (mean is None) != (stated is None) or abs((mean or 0.0) - (stated or 0.0)) > _LAST_DIGIT:
            shown = ["none" if value is None else f"{value:.6g}" for value in (stated, mean)]
            yield f"figures: {name} is {shown[0]}, and the mean of its classes {shown[1]}"
