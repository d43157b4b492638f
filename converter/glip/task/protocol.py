"""By which rules a data set is evaluated: every choice is data, in protocols.json, beside its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from converter.glip.model.config import Rules
from converter.grounding.choices import (
    FILTER,
    METRIC,
    ORDER,
    PER_CAPTION,
    SHARE,
    SHORT,
    SIDE,
    TRUTH,
    Reader,
    one_of,
    read_choices,
    whole,
)
from converter.grounding.preprocessing import Preprocessing
from converter.parity.family import Asked


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
    return Protocol(**read_choices(Path(__file__).with_name("protocols.json"), asked, data, _READERS))


_READERS: Mapping[str, Reader] = {
    "order": ORDER,
    "names_cleaned": TRUTH,
    "separator": SHORT,
    "per_caption": PER_CAPTION,
    "shorter_side": SIDE,
    "longer_side": SIDE,
    "size_rounding": one_of(("official", "down")),
    "filter": FILTER,
    "upright": TRUTH,
    "score_threshold": SHARE,
    "candidates_per_level": whole(1, 100_000),
    "ranked_by_centerness": TRUTH,
    "shrinking_limited": TRUTH,
    "nms_threshold": SHARE,
    "last_pixel_included": TRUTH,
    "empty_dropped": TRUTH,
    "most": whole(1, 10_000),
    "ties_kept": TRUTH,
    "box_extent": whole(0, 1),
    "metric": METRIC,
}
