"""By which rules a data set is evaluated: every choice is data, in protocols.json, beside its source."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from converter.display import listed, quoted
from converter.errors import ModelError
from converter.glip.model.config import Rules
from converter.grounding.preprocessing import Preprocessing
from converter.parity.family import Asked

ORDERS = ("id", "name", "reversed")
ROUNDINGS = ("official", "down")
FILTERS = ("bilinear", "bilinear-tensor", "bicubic", "nearest", "box")
METRICS = ("coco", "lvis", "lvis-fixed")


@dataclass(frozen=True, slots=True)
class Protocol:
    """The choices of an evaluation; the sources are in protocols.json.

    order                 of classes in captions: by id, by name, or by id from the last to the first
    names_cleaned         whether brackets and underscores are taken out of names
    separator             what stands between two classes in a caption
    per_caption           the most classes of a caption; None for as many as fit
    shorter_side, longer_side, size_rounding
                          pixels of a picture as the model sees it, and how the sides are rounded: both down, or as
                          `Preprocessing.resized` does
    filter                by which it is resized: one of Pillow's, or bilinear without averaging, as of tensors
    upright               whether it is turned as its EXIF says
    score_threshold .. ties_kept
                          which boxes become detections, of each caption: see `Rules`
    box_extent            pixels added to width and height, since the last one belongs to a box
    metric                'coco', 'lvis', or 'lvis-fixed'
    """

    order: str
    names_cleaned: bool
    separator: str
    per_caption: int | None
    shorter_side: int
    longer_side: int
    size_rounding: str
    filter: str
    upright: bool
    score_threshold: float
    candidates_per_level: int
    ranked_by_centerness: bool
    shrinking_limited: bool
    nms_threshold: float
    last_pixel_included: bool
    empty_dropped: bool
    most: int
    ties_kept: bool
    box_extent: int
    metric: str

    @property
    def rules(self) -> Rules:
        """Which boxes become detections."""
        return Rules(**{field.name: getattr(self, field.name) for field in fields(Rules)})

    def preprocessing(self, settings: Preprocessing) -> Preprocessing:
        """The settings of a model, with what the protocol says of sizes and captions."""
        names = ("shorter_side", "longer_side")
        changes = {name: getattr(self, name) for name in names}
        return replace(settings, **changes, phrase_separator=self.separator)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def load_protocol(asked: Asked, data: str) -> Protocol:
    """The protocol of that name for 'coco', 'lvis' or another data set, with the changes that are asked for.

    ModelError for an unknown name or setting, or a value that it cannot have.
    """
    known = json.loads(Path(__file__).with_name("protocols.json").read_text(encoding="utf-8"))["protocols"]
    if asked.name not in known:
        raise ModelError(f"protocol: found {quoted(asked.name, 40)}, expected one of {', '.join(known)}.")
    parts = known[asked.name]
    stated = {name: value for part in ("all", data) for name, (value, _) in parts.get(part, {}).items()}
    names = [field.name for field in fields(Protocol)]
    for name, text in asked.changed.items():
        if name not in names:
            raise ModelError(f"setting: found {quoted(name, 40)}, expected one of {', '.join(names)}.")
        stated[name] = _value(name, text)
    return Protocol(**stated)


def _value(name: str, text: str) -> Any:
    """The value that a setting is given as text. ModelError."""
    expected, read = _EXPECTED[name]
    try:
        return read(text)
    except (ValueError, KeyError):
        raise ModelError(f"setting: {name} is {quoted(text, 40)}, expected {expected}.") from None


def _one_of(values: tuple[str, ...]) -> tuple[str, Callable[[str], str]]:
    def read(text: str) -> str:
        return {value: value for value in values}[text]

    return f"one of {listed(values)}", read


def _whole(least: int, most: int) -> tuple[str, Callable[[str], int]]:
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
    return None if text == "none" else _whole(1, 10_000)[1](text)


_TRUTH = ("true or false", _truth)
_SHARE = ("a number from 0 to 1", _share)
_EXPECTED: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "order": _one_of(ORDERS),
    "names_cleaned": _TRUTH,
    "separator": ("text of up to 100 characters", _short),
    "per_caption": ("none, or an integer from 1 to 10000", _per_caption),
    "shorter_side": _whole(1, 1 << 12),
    "longer_side": _whole(1, 1 << 12),
    "size_rounding": _one_of(ROUNDINGS),
    "filter": _one_of(FILTERS),
    "upright": _TRUTH,
    "score_threshold": _SHARE,
    "candidates_per_level": _whole(1, 100_000),
    "ranked_by_centerness": _TRUTH,
    "shrinking_limited": _TRUTH,
    "nms_threshold": _SHARE,
    "last_pixel_included": _TRUTH,
    "empty_dropped": _TRUTH,
    "most": _whole(1, 10_000),
    "ties_kept": _TRUTH,
    "box_extent": _whole(0, 1),
    "metric": _one_of(METRICS),
}
