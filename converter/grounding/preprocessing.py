"""What is done to a picture and a caption before the model sees them, as a frozen value and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from converter.display import listed, plain, quoted
from converter.errors import ModelError

_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "channel_order": ("bgr", "rgb"),
    "interpolation": ("bilinear",),
    "value_range": ((0, 255), (0, 1)),
}
# The largest values. The reference tests at up to 2,500 pixels (TEST.MAX_SIZE, maskrcnn_benchmark/config/defaults.py),
# pads to a multiple of 32, and has 256 tokens.
_SIZES = {"shorter_side": 1 << 12, "longer_side": 1 << 12, "size_multiple": 1 << 10, "caption_tokens": 1 << 16}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Settings of one model.

    shorter_side, longer_side   pixels: the first is reached unless the second would be exceeded
    size_multiple               zeros are added below and to the right up to a multiple of this
    mean, std                   per channel, in the order of `channel_order`, on the scale of `value_range`
    caption_tokens              the longest caption, with [CLS] and [SEP]
    phrase_separator            what stands between class names in a caption
    caption_end                 what every caption ends with
    lowercase                   whether captions are made lower case before the tokenizer does so

    The last two are left out of JSON where they are as by default.
    ModelError for a value of another type or range, or one that this program does not support.
    """

    caption_tokens: int
    channel_order: str
    interpolation: str
    longer_side: int
    mean: tuple[float, ...]
    phrase_separator: str
    size_multiple: int
    shorter_side: int
    source: str
    std: tuple[float, ...]
    value_range: tuple[int, ...]
    caption_end: str = ""
    lowercase: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                expected = " or ".join(map(repr, choices))
                raise ModelError(f"preprocessing: {name} is {plain(repr(getattr(self, name)))}, expected {expected}.")
        for name, most in _SIZES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
                raise ModelError(
                    f"preprocessing: {name} is {plain(repr(value))}, expected an integer from 1 to {most}."
                )
        for name, least in (("mean", 0.0), ("std", 1e-3)):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else ()
            if len(numbers) != 3 or not all(isinstance(v, int | float) and least <= v <= 1e3 for v in numbers):
                raise ModelError(
                    f"preprocessing: {name} is {plain(repr(value))}, expected three numbers from {least} to 1000."
                )
        if not all(isinstance(text, str) for text in (self.phrase_separator, self.caption_end, self.source)):
            raise ModelError("preprocessing: phrase_separator, caption_end and source must all be text.")
        if not isinstance(self.lowercase, bool):
            raise ModelError(f"preprocessing: lowercase is {plain(repr(self.lowercase))}, expected true or false.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The settings that `to_dict` wrote. ModelError names every field that is unknown or missing."""
        names = {field.name for field in fields(cls)} - _DEFAULTS.keys()
        is_mapping = isinstance(values, Mapping)
        if not is_mapping or set(values) - _DEFAULTS.keys() != names:
            others = sorted(names ^ (set(values) - _DEFAULTS.keys())) if is_mapping else []
            differing = listed(map(quoted, others)) if is_mapping else type(values).__name__
            raise ModelError(f"preprocessing: expected exactly {', '.join(sorted(names))}; differing: {differing}.")
        fitted: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fitted)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; tuples become lists."""
        stated = {name: value for name, value in asdict(self).items() if value != _DEFAULTS.get(name)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in stated.items()}

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a picture after resizing, aspect ratio kept.

        Rounds as the reference does (`Resize.get_size`): the shorter side to the nearest integer where the longer
        limits it, the other side down. With a shorter side of one or two pixels the longer one can exceed its limit,
        up to twofold. ModelError where the shorter side would be 0.
        """
        shorter, longer = min(width, height), max(width, height)
        size = self.shorter_side
        if longer / shorter * size > self.longer_side:
            size = round(self.longer_side * shorter / longer)
        if size == 0:
            raise ModelError(
                f"found {width}x{height} pixels: at a longer side of {self.longer_side} the other would vanish. "
                "Crop the picture."
            )
        if width < height:
            return size, int(size * height / width)
        return int(size * width / height), size

    def padded(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of what the model sees of a picture by itself. ModelError as `resized`."""
        width, height = self.resized(width, height)
        return height + -height % self.size_multiple, width + -width % self.size_multiple


_DEFAULTS = {field.name: field.default for field in fields(Preprocessing) if field.default is not MISSING}
