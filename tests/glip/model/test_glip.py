"""The whole model: what may change around it without changing what it says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from converter.glip import GLIP, Output
from tests.support.small_glip import CONFIG, random_inputs, small_config, small_glip


def tensors(out: Output) -> Iterator[Tensor]:
    for part in out:
        yield from part


def assert_same(found: Output, expected: Output, **tolerance: float) -> None:
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@torch.inference_mode()
def test_shapes_are_the_contract() -> None:
    out = small_glip()(*random_inputs(2, 75, 101, 13))
    sizes = [(10, 13), (5, 7), (3, 4), (2, 2), (1, 1)]
    assert [tuple(x.shape) for x in out.token_logits] == [(2, h * w, 13) for h, w in sizes]
    assert [tuple(x.shape) for x in out.box_deltas] == [(2, 4, h, w) for h, w in sizes]
    assert [tuple(x.shape) for x in out.centerness] == [(2, 1, h, w) for h, w in sizes]
    assert all(x.dtype == torch.float64 for x in tensors(out))


@torch.inference_mode()
def test_extract_feat_gives_the_three_maps_of_the_backbone() -> None:
    model = small_glip()
    images = random_inputs(2, 75, 101)[0]
    maps = model.extract_feat(images)
    assert [tuple(x.shape) for x in maps] == [(2, 16, 10, 13), (2, 32, 5, 7), (2, 64, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(maps, model.backbone(images.double())[1:], strict=True))


@pytest.mark.parametrize("fusion", [True, False])
@pytest.mark.parametrize("tokens", [64, 70, 200])
@torch.inference_mode()
def test_padded_tokens_change_nothing(tokens: int, fusion: bool) -> None:
    model = small_glip(fusion=fusion)
    images, ids, mask = random_inputs(2, 40, 60, 30)
    padded_ids, padded_mask = torch.zeros(2, tokens, dtype=torch.int64), torch.zeros(2, tokens, dtype=torch.int64)
    padded_ids[:, :30], padded_mask[:, :30] = ids, mask
    short, long = model(images, ids, mask), model(images, padded_ids, padded_mask)
    cut = long._replace(token_logits=tuple(logits[..., :30] for logits in long.token_logits))
    assert_same(cut, short)
    assert all(logits.shape[-1] == tokens for logits in long.token_logits)
    assert all((logits[..., 32:] == -50000).all() for logits in long.token_logits)


@torch.inference_mode()
def test_padded_tokens_are_not_computed() -> None:
    model = small_glip()
    seen: list[int] = []
    model.text_encoder.register_forward_hook(lambda module, args, out: seen.append(out.hidden.shape[1]))
    images, ids, mask = random_inputs(2, 40, 60, 200)
    mask[:, 20:] = 0
    model(images, ids, mask)
    mask[0, 40] = 1
    model(images, ids, mask)
    assert seen == [32, 64]


@torch.inference_mode()
def test_padding_before_a_token_is_computed_like_any_other() -> None:
    model = small_glip()
    images, ids, mask = random_inputs(1, 40, 60, 10, padding=0)
    mask[0, 2] = 0
    changed = ids.clone()
    changed[0, 2] = 49 - ids[0, 2]
    first, second = model(images, ids, mask), model(images, changed, mask)
    keep = [token for token in range(10) if token != 2]
    for a, b in zip(first.token_logits, second.token_logits, strict=True):
        torch.testing.assert_close(a[..., keep], b[..., keep])


@pytest.mark.parametrize("fusion", [True, False])
@torch.inference_mode()
def test_images_of_a_batch_do_not_meet(fusion: bool) -> None:
    model = small_glip(fusion=fusion)
    images, ids, mask = random_inputs(3, 75, 101, 30, padding=12)
    together = model(images, ids, mask)
    for image in range(3):
        part = slice(image, image + 1)
        alone = model(images[part], ids[part], mask[part])
        assert_same(Output(*(tuple(x[part] for x in values) for values in together)), alone)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 300), (33, 65), (32, 32)])
@torch.inference_mode()
def test_any_size_of_image_runs(size: tuple[int, int]) -> None:
    out = small_glip()(*random_inputs(1, *size))
    assert out.box_deltas[0].shape[-2:] == (-(-size[0] // 8), -(-size[1] // 8))
    assert all(x.isfinite().all() for x in tensors(out))


@torch.inference_mode()
def test_a_caption_of_padding_alone_is_finite() -> None:
    images, ids, mask = random_inputs()
    assert all(x.isfinite().all() for x in tensors(small_glip()(images, ids, torch.zeros_like(mask))))


def relative_error(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Of all levels together: the coarsest are one cell here, whose GroupNorm over two numbers is all or nothing."""
    a, b = (torch.cat([level.double().flatten() for level in levels]) for levels in (found, expected))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.float16, 0.03), (torch.bfloat16, 0.2)])
@torch.inference_mode()
def test_narrow_formats_stay_near_float64(dtype: torch.dtype, error: float) -> None:
    inputs = random_inputs(2, 75, 101, 20)
    found = small_glip(torch.float32).to(dtype)(*inputs)
    for narrow, exact in zip(found, small_glip()(*inputs), strict=True):
        assert {level.dtype for level in narrow} == {dtype}
        assert relative_error(narrow, exact) < error


@torch.inference_mode()
def test_images_are_cast_to_the_models_format() -> None:
    images, ids, mask = random_inputs()
    assert_same(small_glip()(images, ids, mask), small_glip()(images.double(), ids.int(), mask.bool()))


def test_gradients_reach_every_parameter() -> None:
    model = small_glip(torch.float32, prompt_length=20).train()
    out = model(*random_inputs(1, 40, 60))
    sum(x.square().mean() for x in tensors(out)).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert without == set()


def test_the_model_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = GLIP(small_config()).eval()
    shapes = [tuple(x.shape) for x in tensors(small_glip()(*random_inputs(1, 40, 60)))]
    with torch.device("meta"):
        images, ids, mask = torch.empty(1, 3, 40, 60), torch.ones(1, 13).long(), torch.ones(1, 13).long()
    levels = model.fpn(model.backbone(images)[1:])
    out = model.head(levels, model.text_encoder(ids, mask != 0), mask != 0)
    assert [tuple(x.shape) for x in tensors(out)] == shapes


def test_training_mode_changes_nothing() -> None:
    inputs = random_inputs(1, 40, 60)
    with torch.no_grad():
        assert_same(small_glip().train()(*inputs), small_glip()(*inputs), rtol=0, atol=0)


@torch.no_grad()
def test_an_exported_model_says_the_same_for_other_batches_and_captions() -> None:
    model = small_glip()
    batch, tokens = Dim("batch", max=8), Dim("tokens", max=256)
    text = {0: batch, 1: tokens}
    exported = torch.export.export(model, random_inputs(2, 75, 101, 40), dynamic_shapes=({0: batch}, text, text))
    for inputs in (random_inputs(2, 75, 101, 40), random_inputs(3, 75, 101, 13)):
        assert_same(exported.module()(*inputs), model(*inputs))


def test_the_config_stays_with_the_model() -> None:
    assert small_glip().config.to_dict() == CONFIG
