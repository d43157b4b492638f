"""Pictures as the official code makes them, beside transformers' own image processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import GroundingDinoImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio

from converter.errors import ModelError
from converter.grounding.images import to_tensor
from converter.grounding_dino.detect.preprocessing import (
    PREPROCESSOR,
    PROCESSOR,
    folder_settings,
    image_processor,
    released_preprocessing,
)
from converter.grounding_dino.task.task import rounded_late

SETTINGS = released_preprocessing()
SIDES = st.integers(20, 3000)


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (800, 800), (1280, 720), (37, 53)])
def test_pixels_are_those_of_transformers_bit_for_bit(size: tuple[int, int]) -> None:
    image = Image.fromarray(skimage.data.chelsea()).resize(size)
    (theirs,) = GroundingDinoImageProcessor()(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(to_tensor(image, SETTINGS), theirs)


@given(SIDES, SIDES)
def test_where_the_shorter_side_decides_sizes_are_those_of_transformers(width: int, height: int) -> None:
    late = rounded_late(width, height, SETTINGS)
    assert late[::-1] == get_size_with_aspect_ratio((height, width), 800, 1333)
    if max(width, height) / min(width, height) * 800 <= 1333:
        assert SETTINGS.resized(width, height) == late


def test_where_the_longer_side_decides_the_official_code_rounds_the_shorter_one_first() -> None:
    """groundingdino/datasets/transforms.py, get_size_with_aspect_ratio."""
    assert (SETTINGS.resized(20, 692), rounded_late(20, 692, SETTINGS)) == ((39, 1349), (39, 1333))
    assert (SETTINGS.resized(20, 41), rounded_late(20, 41, SETTINGS)) == ((650, 1332), (650, 1333))


def written(folder: Path, **changes: Any) -> Path:
    (folder / PREPROCESSOR).write_text(json.dumps(image_processor(SETTINGS) | changes))
    return folder


def test_a_folder_says_sizes_mean_and_deviation(tmp_path: Path) -> None:
    assert folder_settings(tmp_path) == folder_settings(written(tmp_path)) == SETTINGS
    sizes = {"shortest_edge": 96, "longest_edge": 160}
    found = folder_settings(written(tmp_path, size=sizes, image_mean=[0.5, 0.5, 0.5]))
    assert (found.shorter_side, found.longer_side, found.mean, found.std) == (96, 160, (0.5, 0.5, 0.5), SETTINGS.std)


def test_release_5_keeps_them_elsewhere(tmp_path: Path) -> None:
    stated = image_processor(SETTINGS) | {"size": {"shortest_edge": 96, "longest_edge": 160}}
    (tmp_path / PROCESSOR).write_text(json.dumps({"image_processor": stated}))
    assert folder_settings(tmp_path).shorter_side == 96


@pytest.mark.parametrize(
    "change",
    [
        {"do_resize": False}, {"resample": 3}, {"rescale_factor": 1}, {"size": {"height": 5, "width": 5}},
        {"size": {"shortest_edge": 0, "longest_edge": 5}}, {"image_mean": [0]}, {"image_std": 5},
        {"do_normalize": "no"},
    ],
)  # fmt: skip
def test_what_is_not_carried_out_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"{PREPROCESSOR}: "):
        folder_settings(written(tmp_path, **change))
    (tmp_path / PREPROCESSOR).write_text("[")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        folder_settings(tmp_path)
