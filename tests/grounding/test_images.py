"""Pictures: preprocessing beside another one written from its definition, and every kind of file there is."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from converter.errors import ModelError
from converter.glip.detect.preprocessing import glip_preprocessing
from converter.grounding.images import PIXEL_LIMIT, as_image, batch, read_image, to_tensor
from converter.grounding.preprocessing import Preprocessing

SETTINGS = glip_preprocessing()
MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)


def triangle(old: int, new: int) -> NDArray[np.float64]:
    """(new, old): weights of a triangle filter as wide as one new pixel, or one old one where these are wider."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old)[None] + 0.5 - centres[:, None]) / reach
    weights = np.clip(1 - distance, 0, None)
    # Pillow's arithmetic is of integers, 22 bits after the point: else ties round the other way here and there
    return np.asarray(np.round(weights / weights.sum(axis=1, keepdims=True) * 2**22) / 2**22)


def independent(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.float64]:
    """The tensor from its definition: columns first and rounded to 8 bits, then rows, BGR, normalised."""
    values = rgb.astype(np.float64)
    values = np.floor(0.5 + np.einsum("wx,yxc->ywc", triangle(rgb.shape[1], width), values, optimize=True))
    values = np.floor(0.5 + np.einsum("hy,ywc->hwc", triangle(rgb.shape[0], height), values, optimize=True))
    planes = [(values[:, :, 2 - c] - MEAN[c]) / STD[c] for c in range(3)]
    return np.stack(planes)


@pytest.mark.parametrize(
    ("name", "size"),
    [("astronaut", (800, 800)), ("coffee", (1200, 800)), ("chelsea", (1202, 800)), ("rocket", (1199, 800))],
)
def test_a_photograph_becomes_what_the_definition_says(name: str, size: tuple[int, int]) -> None:
    rgb = getattr(skimage.data, name)()
    tensor = to_tensor(Image.fromarray(rgb), SETTINGS).numpy()
    assert tensor.shape == (3, size[1], size[0])
    levels = np.abs(tensor - independent(rgb, *size)) * np.array(STD)[:, None, None]
    assert levels.max() < 1e-4


def test_shrinking_averages() -> None:
    rgb = np.tile(skimage.data.astronaut(), (4, 6, 1))  # (2048, 3072, 3)
    tensor = to_tensor(Image.fromarray(rgb), SETTINGS).numpy()
    levels = np.abs(tensor - independent(rgb, 1200, 800)) * np.array(STD)[:, None, None]
    assert levels.max() < 1e-4
    plain = torch.nn.functional.interpolate(
        torch.from_numpy(rgb).permute(2, 0, 1)[None].float(), (800, 1200), mode="bilinear"
    )
    assert (plain[0].flip(0) - torch.from_numpy(tensor * np.array(STD)[:, None, None])).abs().max() > 100


def test_channels_are_blue_green_red() -> None:
    tensor = to_tensor(Image.new("RGB", (800, 800), (255, 128, 0)), SETTINGS)
    expected = [(0 - 103.53) / 57.375, (128 - 116.28) / 57.12, (255 - 123.675) / 58.395]
    torch.testing.assert_close(tensor[:, 0, 0], torch.tensor(expected))


def test_padding_is_zero_below_and_to_the_right() -> None:
    padded = batch([torch.ones(3, 33, 64)], 32)
    assert padded.shape == (1, 3, 64, 64)
    assert padded[0, :, :33].min() == 1
    assert padded[0, :, 33:].abs().max() == 0
    assert batch([torch.ones(3, 32, 64)], 32).shape == (1, 3, 32, 64)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (1066, 800)),  # 1066.67 is cut, not rounded
        ((480, 640), (800, 1066)),
        ((800, 800), (800, 800)),
        ((2000, 1000), (1332, 666)),  # 666.5 to the even number, as Python rounds
        ((1000, 3000), (444, 1332)),
        ((1333, 800), (1333, 800)),
        ((1, 1), (800, 800)),
        ((5000, 10), (1500, 3)),  # the longer side follows the rounded shorter one
    ],
)
def test_sizes_are_the_references(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert SETTINGS.resized(*size) == expected


@given(width=st.integers(1, 100_000), height=st.integers(1, 100_000))
def test_no_size_is_large(width: int, height: int) -> None:
    try:
        new = SETTINGS.resized(width, height)
    except ModelError:
        assert max(width, height) >= 2 * 1333 * min(width, height)
        return
    assert 1 <= min(new) <= 800
    assert max(new) <= 2 * 1333
    assert (new[0] <= new[1]) == (width <= height) or abs(width - height) / max(width, height) < 0.01


def test_a_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the other would vanish"):
        to_tensor(Image.new("RGB", (4000, 1)), SETTINGS)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


RAMP = np.arange(0, 252, 4, dtype=np.uint8).reshape(7, 9)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp", "a.gif"])
def test_lossless_files_are_read(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name == "a.webp" else {}
    image = Image.fromarray(COLOURS)
    image = image.quantize(64) if name == "a.gif" else image
    read = read_image(saved(tmp_path, image, name, **options))
    assert read.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(read), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    """A camera that lies on its side stores what it sees, and how to turn it."""
    turned = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: np.rot90,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_image(saved(tmp_path, Image.fromarray(COLOURS), exif=exif))
    np.testing.assert_array_equal(np.asarray(read), turned[orientation](COLOURS))


def test_damaged_exif_is_left_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(COLOURS), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(np.asarray(read_image(path)), COLOURS)


def gray(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([values] * 3, axis=-1)


WIDE = RAMP.astype(np.uint16) * 256 + 77
MODES: dict[str, tuple[Callable[[], Image.Image], NDArray[np.uint8]]] = {
    "gray": (lambda: Image.fromarray(RAMP), gray(RAMP)),
    "gray with alpha": (lambda: Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (9, 7), 9)]), gray(RAMP)),
    "one bit": (lambda: Image.fromarray(RAMP > 128), gray((RAMP > 128).astype(np.uint8) * 255)),
    "16 bits": (lambda: Image.fromarray(WIDE), gray(RAMP)),
    "alpha": (lambda: Image.fromarray(np.dstack([COLOURS, RAMP])), COLOURS),
    "palette": (lambda: Image.fromarray(RAMP).convert("P"), gray(RAMP)),
}


@pytest.mark.parametrize("name", MODES)
def test_modes_become_colours(name: str, tmp_path: Path) -> None:
    make, expected = MODES[name]
    np.testing.assert_array_equal(np.asarray(read_image(saved(tmp_path, make()))), expected)


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(COLOURS).quantize(16), transparency=bytes(range(16)))
    with Image.open(path) as image:
        assert image.info["transparency"]
    expected = Image.fromarray(COLOURS).quantize(16).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(expected))


def test_cmyk_becomes_colours(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    read = read_image(saved(tmp_path, image, "a.jpg", quality=100))
    assert np.abs(np.asarray(read).astype(int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_without_a_scale_are_refused(mode: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"a.tif: .*mode '{mode}'.*8 or 16 bits"):
        read_image(saved(tmp_path, Image.new(mode, (4, 4)), "a.tif"))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(PIXEL_LIMIT, 1), (10_000, 8_947)])
def test_the_limit_itself_is_no_bomb(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(*size))
    with pytest.raises(ModelError, match="damaged or cut off"):
        read_image(path)


@pytest.mark.parametrize("size", [(10_000, 8_948), (20_000, 20_000), (1 << 30, 1 << 30)])
def test_a_decompression_bomb_is_refused(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*size, zlib.compress(bytes(100))))
    with pytest.raises(ModelError, match="more than 89 million pixels"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.bmp"])
def test_a_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    whole = saved(tmp_path, Image.fromarray(skimage.data.astronaut()[:64, :64]), name).read_bytes()
    for share in (0.3, 0.6, 0.9):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ModelError, match=name):
            read_image(tmp_path / name)


def test_a_damaged_file_is_read_or_refused(tmp_path: Path) -> None:
    """Whatever is wrong with a file, nothing but a ModelError comes out of it."""
    generator = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "a.webp", "a.tif", "a.gif"):
        whole = saved(tmp_path, Image.fromarray(skimage.data.astronaut()[:32, :32]), name).read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            for at in generator.integers(0, len(whole), 4):
                damaged[at] = generator.integers(0, 256)
            (tmp_path / name).write_bytes(damaged)
            with contextlib.suppress(ModelError):
                assert read_image(tmp_path / name).mode == "RGB"


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"<html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.jpg: is (not a picture|damaged)"):
        read_image(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path, "not a file"), (tmp_path / "fifo", "not a file"),
        (tmp_path / "absent.png", "No such file"), (tmp_path / ("x" * 300), "too long"), (Path("a\0b"), "null"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=message):
            read_image(path)


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    first, second = Image.fromarray(COLOURS).quantize(64), Image.new("P", (9, 7))
    path = saved(tmp_path, first, "a.gif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(first.convert("RGB")))


def test_settings_survive_json() -> None:
    assert Preprocessing.from_dict(SETTINGS.to_dict()) == SETTINGS


@pytest.mark.parametrize(
    "change",
    [
        {"channel_order": "grb"}, {"interpolation": "bicubic"}, {"shorter_side": 0}, {"longer_side": "1333"},
        {"size_multiple": True}, {"std": [0, 1, 1]}, {"mean": [1, 2]}, {"mean": [1, 2, float("nan")]}, {"more": 1},
        {"phrase_separator": None}, {"caption_end": 1}, {"lowercase": 1}, {"value_range": [0, 2]},
    ],
)  # fmt: skip
def test_settings_that_are_not_carried_out_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="preprocessing"):
        Preprocessing.from_dict(SETTINGS.to_dict() | change)


def test_pictures_from_memory_look_the_same(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "PNG")
    path = tmp_path / "a"
    path.write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(np.asarray(read_image(path)), COLOURS)


def test_odd_metadata_is_no_matter_of_the_user(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    as_image(read_image(tmp_path / "a.jpg"))
    assert not recwarn.list
