"""A picture of a data set, read and resized by a worker for the process that has the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converter.display import file_name
from converter.errors import ModelError
from converter.grounding.preprocessing import Preprocessing
from converter.parity.family import Prepared

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_ORIENTATION = 0x0112  # in EXIF


def prepare(
    path: Path, size: Callable[[int, int], tuple[int, int]], how: str, multiple: int, upright: bool
) -> Prepared:
    """The picture in a file.

    size: (width, height) to which one of a width and a height is resized; how: the filter, one of `choices.FILTER`;
    multiple: of what the model sees; upright: turned as its EXIF says. ModelError if it is no picture, damaged, or so
    long and thin that a side would vanish.
    """
    from converter.grounding.images import read_image

    image = read_image(path, upright=upright)
    try:
        width, height = size(image.width, image.height)
    except ModelError as error:
        raise ModelError(f"{file_name(path)}: {error}") from None
    pixels = _resized(image, (width, height), how)
    seen = height + -height % multiple, width + -width % multiple
    is_unturned = image.getexif().get(_ORIENTATION, 1) != 1  # of what was turned this is taken out
    return Prepared(pixels, image.width, image.height, seen, is_unturned)


def both_down(width: int, height: int, settings: Preprocessing) -> tuple[int, int]:
    """(width, height) as MMDetection resizes: both sides rounded down. ModelError where one would vanish."""
    shorter, longer = settings.shorter_side, settings.longer_side
    scale = min(longer / max(width, height), shorter / min(width, height))
    size = int(width * scale), int(height * scale)
    if 0 in size:
        raise ModelError(f"found {width}x{height} pixels: a side would vanish. Crop the picture.")
    return size


def _resized(image: Image.Image, size: tuple[int, int], how: str) -> NDArray[np.uint8]:
    """(H, W, 3) RGB. Pillow's filters average where they shrink; 'bilinear-tensor' takes four pixels, as tensors do."""
    from PIL import Image

    if how != "bilinear-tensor":
        return np.asarray(image.resize(size, Image.Resampling[how.upper()])).copy()
    import torch
    from torch.nn import functional as F

    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(pixels, (size[1], size[0]), mode="bilinear", align_corners=False)
    rounded: NDArray[np.uint8] = scaled[0].round().byte().permute(1, 2, 0).contiguous().numpy()
    return rounded
