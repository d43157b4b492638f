"""Whether a file is a picture with boxes drawn into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def is_drawn(drawing: Path, picture: Path) -> bool:
    """Whether it is the picture but for some lines, each of one colour: a JPEG's own noise does not count."""
    with Image.open(drawing) as one, Image.open(picture) as other:
        if one.size != other.size:
            return False
        drawn, plain = (np.asarray(image.convert("RGB")).astype(int) for image in (one, other))
    changed = np.abs(drawn - plain).max(axis=2) > 60
    return bool(20 < changed.sum() < 0.5 * changed.size)
