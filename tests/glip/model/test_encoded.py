"""A caption encoded once for many images, an image once for many captions: what that gives, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from converter.errors import ModelError
from converter.glip import GLIP, EncodedImages, EncodedText, Output
from tests.support.small_glip import random_inputs, small_glip

MODEL = small_glip(torch.float32)
IMAGES, IDS, MASK = random_inputs(2, 40, 60)
with torch.inference_mode():
    ENCODED, TEXT = MODEL.encode_images(IMAGES), MODEL.encode_text(IDS, MASK)


def assert_equal(found: Output, expected: Output) -> None:
    """Bit for bit."""
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def calls(module: torch.nn.Module) -> list[None]:
    """Grows by one with each call."""
    seen: list[None] = []
    module.register_forward_hook(lambda *_: seen.append(None))
    return seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"fusion": False}, {"prompt_length": 200}])
@torch.inference_mode()
def test_what_is_encoded_once_gives_what_the_model_gives(changes: dict[str, Any], dtype: torch.dtype) -> None:
    model = small_glip(torch.float32, **changes).to(dtype)
    batches = [random_inputs(2, 40, 60, tokens) for tokens in (9, 40, 150)]
    expected = [model(images, ids, mask) for images, _, _ in batches for _, ids, mask in batches]
    backbone, reader = calls(model.backbone), calls(model.text_encoder)
    images = [model.encode_images(images) for images, _, _ in batches]
    texts = [model.encode_text(ids, mask) for _, ids, mask in batches]
    found = [model.predict(one, text) for one in images for text in texts]
    assert len(backbone) == len(reader) == 3
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("fusion", [True, False])
@torch.inference_mode()
def test_one_caption_is_for_all_images_and_one_image_for_all_captions(fusion: bool) -> None:
    model = small_glip(fusion=fusion)
    images, ids, mask = random_inputs(3, 40, 60)
    encoded, texts = model.encode_images(images), model.encode_text(ids, mask)
    text, image = model.encode_text(ids[1:2], mask[1:2]), model.encode_images(images[1:2])
    repeated = (encoded.repeated(3), model.encode_text(ids[[1, 1, 1]], mask[[1, 1, 1]]))
    for one, other in (
        (model.predict(encoded, text), model.predict(*repeated)),
        (model.predict(image, texts), model.predict(model.encode_images(images[[1, 1, 1]]), texts)),
        (model(images, ids[1:2], mask[1:2]), model.predict(encoded, text)),
        (model(images[1:2], ids, mask), model.predict(image, texts)),
    ):
        for a, b in zip((x for part in one for x in part), (x for part in other for x in part), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_padded_columns_are_not_kept() -> None:
    ids, mask = torch.ones(1, 250, dtype=torch.int64), torch.zeros(1, 250, dtype=torch.int64)
    mask[:, :20] = 1
    text = MODEL.encode_text(ids, mask)
    assert text.features.hidden.shape[1] < 40
    assert MODEL.predict(ENCODED, text).token_logits[0].shape[-1] == 250


@pytest.mark.parametrize(("fusion", "calls"), [(False, (2, 0)), (True, (0, 2))])
@torch.inference_mode()
def test_a_tower_that_needs_no_text_is_computed_once_for_a_picture(fusion: bool, calls: tuple[int, int]) -> None:
    model = small_glip(head_blocks=2, depths=[1, 1, 1, 1], fusion=fusion)
    images, ids, mask = random_inputs(1, 40, 60, 12)
    called: list[int] = []
    for block in model.head.blocks:
        block.dynamic_conv.register_forward_hook(lambda *_: called.append(1))
    encoded, text = model.encode_images(images), model.encode_text(ids, mask)
    with_picture = len(called)
    model.predict(encoded, text)
    assert (with_picture, len(called) - with_picture) == calls


def encoded_by(move: Callable[[GLIP], GLIP]) -> tuple[GLIP, EncodedImages, EncodedText]:
    """A model that was changed after it had encoded."""
    model = copy.deepcopy(MODEL)
    with torch.inference_mode():
        images, text = model.encode_images(IMAGES), model.encode_text(IDS, MASK)
    return move(model), images, text


def test_what_another_model_encoded_is_refused() -> None:
    twin = copy.deepcopy(MODEL)  # of the same sizes, and soon of other weights
    images, text = twin.encode_images(IMAGES), twin.encode_text(IDS, MASK)
    with pytest.raises(ModelError, match=r"^images: encoded by another model.* Encode with this one\.$"):
        MODEL.predict(images, text)
    with pytest.raises(ModelError, match=r"^text: encoded by another model"):
        MODEL.predict(ENCODED, text)


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda model: model.double(), "images: encoded in float32, but the model is in float64. Encode again"),
        (lambda model: model.bfloat16(), "images: encoded in float32, but the model is in bfloat16. Encode again"),
        (lambda model: model.to("meta"), "images: encoded on cpu, but the model is on meta. Encode again"),
    ],
)
def test_what_the_model_encoded_before_it_was_moved_is_refused(move: Callable[[GLIP], GLIP], message: str) -> None:
    model, images, text = encoded_by(move)
    with pytest.raises(ModelError, match=message):
        model.predict(images, text)


def test_text_encoded_before_a_move_is_refused_too() -> None:
    model, _, text = encoded_by(lambda model: model.double())
    with pytest.raises(ModelError, match="text: encoded in float32, but the model is in float64"):
        model.predict(model.encode_images(IMAGES), text)


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (IMAGES, TEXT, "images: found Tensor, expected what encode_images of the model returned"),
        (ENCODED, IDS, "text: found Tensor, expected what encode_text of the model returned"),
        (TEXT, ENCODED, "images: found EncodedText"),
    ],
)
def test_what_is_not_encoded_is_refused(images: Any, text: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MODEL.predict(images, text)


def test_of_several_images_and_other_captions_no_batch_is_made() -> None:
    ids, mask = IDS.repeat(2, 1)[:3], MASK.repeat(2, 1)[:3]
    with torch.inference_mode(), pytest.raises(ModelError, match="found 3 captions for 2 images, expected one caption"):
        MODEL.predict(ENCODED, MODEL.encode_text(ids, mask))


def test_they_say_what_they_are() -> None:
    assert repr(ENCODED) == "<EncodedImages 2 of 5x8 cells, float32 on cpu>"
    assert repr(TEXT) == "<EncodedText 2 of 13 tokens, float32 on cpu>"


def test_gradients_flow_through_what_is_used_twice() -> None:
    model = small_glip()

    def loss(out: Output) -> Tensor:
        return torch.stack([x.square().mean() for part in out for x in part]).sum()

    images, ids, mask = random_inputs(1, 40, 60)
    encoded, text = model.encode_images(images), model.encode_text(ids, mask)
    (loss(model.predict(encoded, text)) + loss(model.predict(encoded, text))).backward()
    twice = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    loss(model(images, ids, mask)).backward()
    once = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(once) == len(twice) > 100
    for a, b in zip(twice, once, strict=True):
        torch.testing.assert_close(a, 2 * b)


def test_autocast_gives_what_the_model_gives() -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = MODEL.predict(MODEL.encode_images(IMAGES), MODEL.encode_text(IDS, MASK))
        assert_equal(found, MODEL(IMAGES, IDS, MASK))


@torch.inference_mode()
def test_the_model_is_its_parts_bit_for_bit() -> None:
    levels = MODEL.fpn(MODEL.backbone(IMAGES)[1:])
    attended = MASK != 0
    assert_equal(MODEL.predict(ENCODED, TEXT), MODEL.head(levels, MODEL.text_encoder(IDS, attended), attended))
