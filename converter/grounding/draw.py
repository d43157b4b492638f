"""Boxes drawn into a picture, each with its phrase and score."""

from __future__ import annotations

import colorsys
import math
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image, ImageDraw

from converter.errors import ModelError
from converter.grounding.lettering import Lettering, lettering
from converter.grounding.placement import place_labels

if TYPE_CHECKING:
    from converter.grounding.found import Found, FoundObject

Colour: TypeAlias = tuple[int, int, int]
GOLDEN = 0.618034  # step on the colour circle by which the first few labels get hues far apart
DARKEST = 0.14  # luminance of a colour
SMALLEST_FONT, USUAL_FONT = 10, 12  # pixels: the least in a crowd, and elsewhere
# share of the picture that labels may cover before they get smaller, and before some are left out
FEW, MOST = 0.15, 0.4


def draw(image: Image.Image, found: Found, line_width: int | None = None) -> Image.Image:
    """A copy of the picture with a frame and a label for each box, the best on top, a colour for each phrase.

    Labels cover no other label, and grow with the picture. Where there is no room for all, the best boxes have theirs,
    and the others a frame alone. ModelError if the picture is not of the size that the boxes were found in, or for an
    unusable `line_width`, in pixels.
    """
    if image.size != (found.width, found.height):
        raise ModelError(
            f"draw: found a picture of {image.width}x{image.height}, but the boxes are of one of "
            f"{found.width}x{found.height}. Give the picture that was searched."
        )
    if line_width is not None and (isinstance(line_width, bool) or not isinstance(line_width, int) or line_width < 1):
        raise ModelError(f"line_width: found {line_width!r}, expected pixels, at least 1.")
    image = image.copy()
    pen = ImageDraw.Draw(image)
    size = math.sqrt(image.width * image.height)
    line = line_width or max(2, round(size * 0.0035))
    for (left, top, right, bottom), label in reversed([(row.box, row.label) for row in found]):
        right, bottom = max(left, right), max(top, bottom)
        width = min(line, max(1, int(min(right - left, bottom - top)) // 4))  # a small box is still seen through
        pen.rectangle((left, top, right, bottom), outline=colour(label), width=width)
    _write(pen, found, max(USUAL_FONT, round(size * 0.022)))
    return image


def _write(pen: ImageDraw.ImageDraw, found: Found, size: int) -> None:
    """The labels in letters of `size` pixels, smaller where they would cover much of the picture."""
    rows, area = list(found), found.width * found.height
    while True:
        letters = [_lettering(row, found.width, size) for row in rows]
        areas = [each.width * each.height if each else 0 for each in letters]
        if sum(areas) <= FEW * area or size == SMALLEST_FONT:
            break
        size = max(SMALLEST_FONT, size * 4 // 5)
    totals = accumulate(areas)
    written = [
        (row, each) for row, each, total in zip(rows, letters, totals, strict=True) if each and total <= MOST * area
    ]
    labels = [(each.width, each.height) for _, each in written]
    places = place_labels([row.box for row, _ in written], labels, (found.width, found.height))
    for (row, each), place in zip(written, places, strict=True):
        if place is not None:
            _label(pen, each, place, colour(row.label))


def _lettering(row: FoundObject, width: int, size: int) -> Lettering | None:
    """A label may be as wide as its box, or half the picture, and always as ten letters."""
    room = min(width, max(width / 2, row.box[2] - row.box[0], 10 * size))
    return lettering(row.phrase, row.label, row.score, size, room)


def _label(pen: ImageDraw.ImageDraw, each: Lettering, place: tuple[int, int], paper: Colour) -> None:
    left, top = place
    pen.rectangle((left, top, left + each.width - 1, top + each.height - 1), fill=paper)
    pen.text((left + each.offset[0], top + each.offset[1]), each.text, fill=ink_on(paper), font=each.font)


@cache
def colour(label: int) -> Colour:
    """RGB of a label: a hue of its own, darker and lighter by turns, but no blue so dark that it is lost on black."""
    shades = (_rgb(label * GOLDEN % 1, step / 100) for step in range((45, 58)[label % 2], 101))
    return next(shade for shade in shades if luminance(shade) >= DARKEST)


def _rgb(hue: float, lightness: float) -> Colour:
    red, green, blue = (round(255 * value) for value in colorsys.hls_to_rgb(hue, lightness, 0.9))
    return red, green, blue


def luminance(colour: Colour) -> float:
    """Relative luminance of sRGB as WCAG 2.1 defines it: 0 is black, 1 is white."""
    linear = [((v / 255 + 0.055) / 1.055) ** 2.4 if v > 10 else v / 255 / 12.92 for v in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(paper: Colour) -> Colour:
    """Black or white, whichever has more contrast to a colour: at least 4.5, as WCAG 2.1 asks for."""
    light = luminance(paper) + 0.05
    return (255, 255, 255) if 1.05 / light > light / 0.05 else (0, 0, 0)
