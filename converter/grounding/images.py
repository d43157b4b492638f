"""Reading picture files, and making the model's input of them. Only the latter needs torch."""

from __future__ import annotations

import os
import re
import stat
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from converter.display import file_name, plain
from converter.errors import ModelError
from converter.grounding.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

# formats that Pillow decodes by itself; it would hand EPS and the like to other programs
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
Picture: TypeAlias = str | os.PathLike[str] | NDArray[np.uint8] | Image.Image
PIXEL_LIMIT = 89_478_485  # Pillow's own: a quarter of a gigabyte of RGB; larger ones are mostly decompression bombs


def read_image(path: Path, *, upright: bool = True) -> Image.Image:
    """The picture as 8-bit RGB, upright as its EXIF says, or as it is stored; the first frame of several.

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
                return to_rgb(image, upright=upright)
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


def as_image(picture: Picture, where: str = "image") -> Image.Image:
    """The picture as upright 8-bit RGB: a file's path, a Pillow picture, or an array (H, W, 3) of uint8, RGB.

    `where`: what the picture is called in messages. ModelError if it cannot be used.
    """
    if isinstance(picture, str) and re.match("https?://", picture):
        raise ModelError(f"{where}: {plain(picture)} is an address, not a file. Download it first.")
    if isinstance(picture, str | os.PathLike):
        return read_image(Path(picture))
    if isinstance(picture, np.ndarray):
        if hints := _array_hints(picture):
            what = f"found an array {picture.shape} of {picture.dtype}, expected (H, W, 3) of uint8, RGB"
            raise ModelError(f"{where}: {what}. {' '.join(hints)}")
        return Image.fromarray(np.ascontiguousarray(picture))
    if not isinstance(picture, Image.Image):
        raise ModelError(f"{where}: {_other(picture)}")
    try:
        return to_rgb(picture)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    except Exception as error:  # of a file that Pillow has not read yet, or that is closed
        reason = plain(str(error) or type(error).__name__, 200)
        raise ModelError(f"{where}: Pillow cannot read it: {reason}. Open it again.") from None


def read_for(picture: Picture, settings: Preprocessing, where: str = "image") -> Image.Image:
    """As `as_image`; ModelError also if the picture is too long and thin to be resized so."""
    image = as_image(picture, where)
    try:
        settings.resized(image.width, image.height)
    except ModelError as error:
        where = file_name(Path(picture)) if isinstance(picture, str | os.PathLike) else where
        raise ModelError(f"{where}: {error}") from None
    return image


def to_rgb(image: Image.Image, *, upright: bool = True) -> Image.Image:
    """8-bit RGB of a picture of any mode that has a scale, turned as its EXIF says. ModelError for other modes."""
    if image.width == 0 or image.height == 0:
        raise ModelError(f"has {image.width}x{image.height} pixels. Give a picture that has some.")
    if upright:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # `convert` would clip at 255 and make nearly everything white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ModelError(f"its values (Pillow's mode {image.mode!r}) have no known maximum. Save it with 8 or 16 bits.")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # converting directly gives the same, with a warning
    return image.convert("RGB")


def _array_hints(array: NDArray[Any]) -> list[str]:
    """What makes a picture (H, W, 3) of uint8 of an array; nothing where it is one."""
    shape, hints = array.shape, []
    if len(shape) == 4:
        return ["Give several as a list: list(array)."]
    if len(shape) == 2 and 0 not in shape:
        hints.append("Of grey values give three equal channels: np.stack([array] * 3, axis=-1).")
    elif len(shape) != 3 or 0 in shape:
        return ["Give one picture that has pixels."]
    elif shape[2] == 4:
        hints.append("Drop the transparency: array[:, :, :3].")
    elif shape[2] == 1:
        hints.append("Of grey values give three equal channels: np.repeat(array, 3, axis=2).")
    elif shape[2] != 3:
        hints.append("The channels come last: array.transpose(1, 2, 0)." if shape[0] == 3 else "Give three channels.")
    if array.dtype.kind == "f":
        hints.append("Of values from 0 to 1: (array * 255).round().astype(np.uint8).")
    elif array.dtype == np.uint16:
        hints.append("Of values from 0 to 65535: (array >> 8).astype(np.uint8).")
    elif array.dtype != np.uint8:
        hints.append("Of values from 0 to 255: array.astype(np.uint8).")
    return hints


def _other(picture: object) -> str:
    """What was found in place of a picture, and what to do."""
    found, hint = type(picture).__name__, "Several pictures are given as a list."
    torch = sys.modules.get("torch")  # without it there is no tensor
    if torch is not None and isinstance(picture, torch.Tensor):
        found = f"a tensor {tuple(picture.shape)}"
        hint = "Give the picture as it was before it became a tensor, or tensor.cpu().numpy() where it is (H, W, 3)."
    elif isinstance(picture, bytes | bytearray | memoryview):
        hint = "Of a file's bytes: PIL.Image.open(io.BytesIO(data))."
    return f"found {found}, expected a path, a Pillow picture, or an array (H, W, 3) of uint8, RGB. {hint}"


def to_tensor(image: Image.Image, settings: Preprocessing) -> Tensor:
    """(3, H, W) float32 of an RGB picture: resized, its channels in the settings' order, normalised.

    Resized by Pillow's bilinear filter, which averages where it shrinks. For a PIL image, torchvision's `F.resize` in
    the reference calls the same filter. Interpolating a tensor without antialiasing gives other pixels.
    """
    import torch

    resized = image.resize(settings.resized(image.width, image.height), Image.Resampling.BILINEAR)
    return normalised(torch.from_numpy(np.asarray(resized).copy()), settings)


def normalised(pixels: Tensor, settings: Preprocessing) -> Tensor:
    """(3, H, W) float32 of RGB pixels (H, W, 3) of uint8, on their device: minus the mean, over the deviation."""
    values = (pixels.flip(-1) if settings.channel_order == "bgr" else pixels).permute(2, 0, 1).float()
    if settings.value_range == (0, 1):
        values = values / 255
    mean, std = (values.new_tensor(v)[:, None, None] for v in (settings.mean, settings.std))
    return ((values - mean) / std).contiguous()


def batch(images: Sequence[Tensor], multiple: int) -> Tensor:
    """(B, 3, H, W) of images (3, h, w): zeros below and to the right, up to the largest of them and to a multiple."""
    import torch
    from torch.nn import functional as F

    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    height, width = height + -height % multiple, width + -width % multiple
    return torch.stack([F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images])
