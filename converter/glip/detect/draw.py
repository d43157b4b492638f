"""Boxes drawn into a picture."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from converter.glip.detect.found import Found

GOLDEN = 0.618034  # step on the colour circle by which the first few labels get hues far apart


def draw(image: Image.Image, found: Found, line_width: int | None = None) -> Image.Image:
    """A copy of the picture with a frame and a name for each box, the best on top, a colour for each label."""
    image = image.copy()
    pen = ImageDraw.Draw(image)
    line = line_width or max(2, min(image.size) // 250)
    font = ImageFont.load_default(size=max(10, min(image.size) // 40))
    rows = list(zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.phrases, strict=True))
    for (left, top, right, bottom), score, label, phrase in reversed(rows):
        ink = colour(label)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=ink, width=line)
        text = f"{phrase} {score:.2f}"
        x1, y1, x2, y2 = pen.textbbox((0, 0), text, font=font)
        # above the box where there is room, else inside it
        y = top - (y2 - y1) - 2 * line if top >= (y2 - y1) + 2 * line else top
        left = max(0, min(left, image.width - (x2 - x1) - 2 * line))  # the name stays in the picture
        pen.rectangle((left, y, left + x2 - x1 + 2 * line, y + y2 - y1 + 2 * line), fill=ink)
        pen.text((left + line - x1, y + line - y1), text, fill=(255, 255, 255), font=font)
    return image


def colour(label: int) -> tuple[int, int, int]:
    """RGB of a label: dark enough for white letters."""
    red, green, blue = colorsys.hls_to_rgb(label * GOLDEN % 1, 0.38, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)
