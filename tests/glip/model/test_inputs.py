"""What the model refuses, and that it says what it found and what it expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from converter.errors import ConverterWarning, ModelError
from converter.glip import GLIP
from tests.support.small_glip import random_inputs, small_glip

MODEL = small_glip(torch.float32)
IMAGES, IDS, MASK = random_inputs(2, 40, 60)
with torch.no_grad():
    OUT = MODEL(IMAGES, IDS, MASK)
SIZES = [(40, 60), (40, 60)]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([1.0], "found list, expected a tensor.*Detector"),
        (IMAGES.permute(0, 2, 3, 1), r"found shape \(2, 40, 60, 3\), .*images\.permute\(0, 3, 1, 2\)"),
        (IMAGES[0].permute(1, 2, 0), r"found shape \(40, 60, 3\), .*images\.permute\(2, 0, 1\)\.unsqueeze\(0\)"),
        (IMAGES[0], r"found shape \(3, 40, 60\), expected \(B, 3, H, W\).*unsqueeze"),
        (IMAGES[:, :2], r"found shape \(2, 2, 40, 60\)"),
        (IMAGES[:0], ".*none of them 0"),
        (IMAGES[..., :0], ".*none of them 0"),
        (IMAGES.byte(), r"found uint8, expected floating point: BGR in 0\.\.255, minus \(103\.53"),
        (IMAGES.to("meta"), r"found on meta, expected on cpu.*images\.to\('cpu'\)"),
    ],
)
def test_images_that_are_none(images: Any, message: str) -> None:
    with pytest.raises(ModelError, match=f"images: {message}"):
        MODEL(images, IDS, MASK)
    with pytest.raises(ModelError, match=f"images: {message}"):
        MODEL.extract_feat(images)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ("person", MASK, "input_ids: found str"),
        (IDS, [1], r"attention_mask: found list.*torch\.tensor\(lists\)"),
        (IDS, MASK.float(), "attention_mask: found float32, expected bool or integers, 1 for tokens"),
        (IDS[0], MASK[0], r"input_ids: found shape \(13,\), expected \(B, T\)"),
        (IDS[:, :0], MASK[:, :0], "none of them 0"),
        (IDS.float(), MASK, "input_ids: found float32, expected int64"),
        (IDS, MASK[:, :-1], r"attention_mask: found shape \(2, 12\), expected that of input_ids, \(2, 13\)"),
        (
            IDS.repeat(2, 1),
            MASK.repeat(2, 1),
            "text: found 4 captions for 2 images, expected one caption for each image",
        ),
        (IDS.to("meta"), MASK, "input_ids: found on meta"),
        (IDS, MASK.to("meta"), "attention_mask: found on meta"),
        (IDS.repeat(1, 20), MASK.repeat(1, 20), "at most 256 tokens: the model has 256 positions.*several captions"),
        (IDS - 1 - IDS.min(), MASK, "found values from -1 .*vocabulary"),
        (IDS + 50, MASK, "expected 0 to 49"),
    ],
)
def test_text_that_does_not_fit(ids: Any, mask: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MODEL(IMAGES, ids, mask)


def test_pixels_that_were_not_normalised_are_a_warning() -> None:
    with pytest.warns(ConverterWarning, match=r"images: the largest value is 255, of normalised images 2\.7") as said:
        MODEL(IMAGES.clamp(0, 1) * 0 + 255, IDS, MASK)
    assert said[0].filename == __file__  # where the mistake is, not within torch


def test_labels_may_be_numpy_s() -> None:
    assert len(MODEL.detect(OUT, SIZES, {np.int64(1): [1]})) == 2  # type: ignore[dict-item]


def test_text_longer_than_a_prompt_is_refused() -> None:
    with pytest.raises(ModelError, match="at most 5 tokens: the model has 5 rows of the prompt"):
        small_glip(torch.float32, prompt_length=5)(IMAGES, IDS, MASK)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(40, 60)], "for each of 2 images"),
        ([40, 60], "for each of 2 images"),
        ([(40, 60), (40.5, 60)], "in whole pixels"),
        ([(40, 60), (float("nan"), 60)], "in whole pixels"),
        ([(40, 60), (60, 40)], r"image_sizes\[1\]: found \(60, 40\).* from 1 to \(40, 64\).*swapped"),
        ([(0, 60), (40, 60)], r"image_sizes\[0\]"),
        (None, "for each of 2 images"),
    ],
)
def test_image_sizes_that_do_not_fit(sizes: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MODEL.detect(OUT, sizes, {1: [1]})


@pytest.mark.parametrize(
    ("positive_map", "message"),
    [
        ({}, "expected at least one"),
        ([[1]], "expected at least one"),
        ({"person": [1]}, "found the label 'person', expected an integer"),
        ({True: [1]}, "found the label True"),
        ({0: [1]}, "found the label 0, expected integers from 1: 0 is the background"),
        ({1.5: [1]}, "found the label 1.5, expected an integer"),
        ({1: []}, "found no token positions"),
        ({1: 3}, "expected a list of token positions"),
        ({1: [0], 2: [13]}, r"positive_map\[2\]: found token positions \[13\], expected 0 to 12.*not ids"),
        ({1: [-1]}, r"found token positions \[-1\]"),
    ],
)
def test_positive_maps_that_do_not_fit(positive_map: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MODEL.detect(OUT, SIZES, positive_map)


@pytest.mark.parametrize("out", [None, (OUT.token_logits,), OUT._replace(centerness=OUT.centerness[:3])])
def test_outputs_of_something_else(out: Any) -> None:
    with pytest.raises(ModelError, match=r"out: found .*expected the Output"):
        MODEL.detect(out, SIZES, {1: [1]})


def test_a_model_without_memory_is_no_place_for_images() -> None:
    with torch.device("meta"):
        model = GLIP(MODEL.config)
    with pytest.raises(ModelError, match="found on cpu, expected on meta"):
        model(IMAGES, IDS, MASK)
