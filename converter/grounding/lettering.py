"""The text of a label, in a font that has its letters, cut to the room that there is."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Pillow's own font has the letters of English only; these are looked for where the system keeps its fonts
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "LiberationSans-Regular.ttf", "arial.ttf")
_ABSENT = "\U0010fffe"  # no character, so that fonts show their sign for what they lack
_CUT = "..."
_LONGEST = 200  # letters of a phrase that are looked at


@dataclass(frozen=True, slots=True)
class Lettering:
    """One line of text. `width`, `height`: of its label, in pixels; `offset`: from that to where the text is put."""

    text: str
    font: Font
    width: int
    height: int
    offset: tuple[int, int]


def lettering(phrase: str, label: int, score: float, size: int, room: float) -> Lettering | None:
    """`phrase 0.87` in letters of `size` pixels, the phrase cut where the label would be wider than `room`.

    A phrase in letters that no font here has is written without its accents, or else as the number of its label. None
    where not even the score has room.
    """
    phrase, font = _readable(phrase[:_LONGEST], label, size)
    pad = max(1, size // 6)
    for kept in range(len(phrase), -1, -1):
        text = phrase if kept == len(phrase) else phrase[:kept].rstrip() + _CUT if kept else ""
        # two spaces: one is narrow in small letters, and a name may end with a number
        line = f"{text}  {score:.2f}".strip()
        width = math.ceil(font.getlength(line)) + 2 * pad
        if width <= room:
            # as high as usual letters are, so that labels of one font are of one height
            boxes = font.getbbox("Ag|"), font.getbbox(line)
            top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
            return Lettering(line, font, width, math.ceil(bottom - top) + 2 * pad, (pad, pad - math.floor(top)))
    return None


def _readable(phrase: str, label: int, size: int) -> tuple[str, Font]:
    line = " ".join("".join(letter for letter in phrase if letter.isprintable() or letter.isspace()).split())
    plain = unicodedata.normalize("NFKD", line).encode("ascii", "ignore").decode().strip()
    for text in (line, plain if len(plain) > len(line) / 2 else ""):
        for name in ("", *FONTS):
            font = _font(name, size)
            if text and font is not None and all(_has(name, letter) for letter in text):
                return text, font
    return f"#{label}", ImageFont.load_default(size)


@cache
def _font(name: str, size: int) -> Font | None:
    """Pillow's own for no name; None where there is no such font."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


@cache
def _has(name: str, letter: str) -> bool:
    """Whether a font, which is there, can draw the letter."""
    font = _font(name, 20)
    assert font is not None
    absent, mask = font.getmask(_ABSENT), font.getmask(letter)
    return letter == " " or (mask.size, bytes(mask)) != (absent.size, bytes(absent))
