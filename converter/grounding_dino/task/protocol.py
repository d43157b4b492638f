"""By which rules a data set is evaluated: every choice is data, in protocols.json, beside its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from converter.grounding.choices import (
    FILTER,
    METRIC,
    ORDER,
    PER_CAPTION,
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

    order                   of classes in captions: by id, by name, or by id from the last to the first
    names_cleaned           whether brackets and underscores are taken out of names
    lowercase               whether captions are made lower case before the tokenizer does so
    separator, caption_end  what stands between two classes in a caption, and after the last
    per_caption             the most classes of a caption; None for as many as fit
    shorter_side, longer_side, size_rounding
                            pixels of a picture as the model sees it, and how the sides are rounded: as the official
                            code does, as transformers' image processor, or both down
    filter                  by which it is resized: one of Pillow's, or bilinear without averaging, as of tensors
    upright                 whether it is turned as its EXIF says
    token_scores            the score of a class for a box: the mean of those of its tokens, or the largest (max)
    most                    boxes of a picture, of each caption: the best pairs of a box and a class
    boxes_cut               whether boxes end where the picture does
    metric                  'coco', 'lvis', or 'lvis-fixed'
    """

    order: str
    names_cleaned: bool
    lowercase: bool
    separator: str
    caption_end: str
    per_caption: int | None
    shorter_side: int
    longer_side: int
    size_rounding: str
    filter: str
    upright: bool
    token_scores: str
    most: int
    boxes_cut: bool
    metric: str

    def preprocessing(self, settings: Preprocessing) -> Preprocessing:
        """The settings of a model, with what the protocol says of sizes and captions."""
        return replace(
            settings,
            shorter_side=self.shorter_side,
            longer_side=self.longer_side,
            phrase_separator=self.separator,
            caption_end=self.caption_end,
            lowercase=self.lowercase,
        )

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
    "lowercase": TRUTH,
    "separator": SHORT,
    "caption_end": SHORT,
    "per_caption": PER_CAPTION,
    "shorter_side": SIDE,
    "longer_side": SIDE,
    "size_rounding": one_of(("official", "transformers", "down")),
    "filter": FILTER,
    "upright": TRUTH,
    "token_scores": one_of(("mean", "max")),
    "most": whole(1, 10_000),
    "boxes_cut": TRUTH,
    "metric": METRIC,
}
