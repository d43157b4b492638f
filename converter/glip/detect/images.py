"""Reading picture files, and making the model's input of them."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from converter.display import file_name, plain
from converter.errors import ModelError
from converter.glip.detect.preprocessing import Preprocessing

# formats that Pillow decodes by itself; it would hand EPS and the like to other programs
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
PIXEL_LIMIT = 89_478_485  # Pillow's own: a quarter of a gigabyte of RGB; larger ones are mostly decompression bombs


def read_image(path: Path) -> Image.Image:
    """The picture as 8-bit RGB, upright as its EXIF says; the first frame where a file holds several.

    Transparency is dropped, not blended, and CMYK converted without a profile, as the reference's
    `Image.open(path).convert("RGB")` does; of 16 bits the upper 8 are taken. ModelError if the file is not a
    picture, is damaged or cut off, has more than `PIXEL_LIMIT` pixels, or values without a scale (32-bit integers,
    floats).
    """
    where = file_name(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError(f"{where}: is not a file. Give a picture.")
    except (OSError, ValueError) as error:
        raise ModelError(f"{where}: can't be read: {getattr(error, 'strerror', None) or error}.") from None
    try:
        # Pillow only warns of pictures that are a little too large, and of odd metadata
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > PIXEL_LIMIT:
                    raise Image.DecompressionBombError
                image.load()
                return to_rgb(image)
    except Image.DecompressionBombError:
        raise ModelError(
            f"{where}: has more than {PIXEL_LIMIT / 1e6:.0f} million pixels. Make a smaller copy of it."
        ) from None
    except UnidentifiedImageError:
        raise ModelError(f"{where}: is not a picture of a known kind ({', '.join(FORMATS)}).") from None
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    except Exception as error:  # decoders raise exceptions of many kinds
        reason = plain(str(error) or type(error).__name__, 200)
        raise ModelError(f"{where}: is damaged or cut off: {reason}. Get it again.") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB of a picture of any mode that has a scale. ModelError for the others."""
    if image.width == 0 or image.height == 0:
        raise ModelError(f"has {image.width}x{image.height} pixels. Give a picture that has some.")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # `convert` would clip at 255 and make nearly everything white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ModelError(f"its values (Pillow's mode {image.mode!r}) have no known maximum. Save it with 8 or 16 bits.")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # converting directly gives the same, with a warning
    return image.convert("RGB")


def to_tensor(image: Image.Image, settings: Preprocessing) -> Tensor:
    """(3, H, W) float32 of an RGB picture: resized, BGR, normalised.

    Resized by Pillow's bilinear filter, which averages where it shrinks. For a PIL image, torchvision's `F.resize` in
    the reference calls the same filter. Interpolating a tensor without antialiasing gives other pixels.
    """
    resized = image.resize(settings.resized(image.width, image.height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)[:, :, ::-1].copy())  # (H, W, 3), BGR
    values = pixels.permute(2, 0, 1).to(torch.float32)
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (settings.mean, settings.std))
    return ((values - mean) / std).contiguous()


def pad(image: Tensor, multiple: int) -> Tensor:
    """(1, 3, H', W'): zeros below and to the right, up to a multiple."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple))[None]
