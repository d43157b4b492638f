"""Fusion, against the textbook order: project every cell and every token, then attend in both directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from converter.glip.model import tiles
from converter.glip.model.fusion import Fused, Fusion
from tests.support.small_glip import small_glip

HEADS = 4
SIZES = ((5, 3), (3, 2), (1, 1))


def textbook(
    fusion: Fusion, levels: list[Tensor], text: Tensor, attended: Tensor, padding: float = -9e15
) -> tuple[Tensor, Tensor]:
    """Bidirectional attention with the clamps, the subtracted maximum and the masks of the official code."""

    def heads(x: Tensor) -> Tensor:  # (B, N, nh*hd) -> (B, nh, N, hd)
        return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)

    def merged(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    image = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
    image, text = fusion.image_norm(image), fusion.text_norm(text)
    query = heads(fusion.image_query(image)) * (fusion.image_query.out_features // HEADS) ** -0.5
    logits = (query @ heads(fusion.text_key(text)).transpose(2, 3)).clamp(-50000, 50000)  # (B, nh, N, T)
    turned = logits.transpose(2, 3)
    turned = (turned - turned.amax(-1, keepdim=True)).clamp(-50000, 50000)
    for_text = merged(turned.softmax(-1) @ heads(fusion.image_value(image)))
    # the official mask: 1 for real tokens, -9e15 for padding, added
    mask = torch.where(attended, 1.0, padding)[:, None, None, :]
    for_image = merged((logits + mask).softmax(-1) @ heads(fusion.text_value(text)))
    return (
        image + fusion.image_layer_scale * fusion.image_output(for_image),
        text + fusion.text_layer_scale * fusion.text_output(for_text),
    )


def inputs(scale: float = 1.0) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    levels = [scale * torch.randn(2, 32, *size, dtype=torch.float64, generator=generator) for size in SIZES]
    text = torch.randn(2, 7, 24, dtype=torch.float64, generator=generator)
    attended = torch.ones(2, 7, dtype=torch.bool)
    attended[1, 4:] = False
    return levels, text, attended


def assert_textbook(
    fusion: Fusion, levels: list[Tensor], text: Tensor, attended: Tensor, padding: float = -9e15
) -> None:
    fused: Fused = fusion(tuple(levels), text, attended)
    image, expected_text = textbook(fusion, levels, text, attended, padding)
    found = torch.cat([level.flatten(2).transpose(1, 2) for level in fused.levels], dim=1)
    assert [level.shape for level in fused.levels] == [level.shape for level in levels]
    torch.testing.assert_close(found, image)
    torch.testing.assert_close(fused.text, expected_text)


@torch.no_grad()
def test_both_directions_are_the_textbooks() -> None:
    assert_textbook(small_glip().head.blocks[0].fusion, *inputs())


@torch.no_grad()
def test_a_caption_of_padding_alone_is_attended_evenly() -> None:
    levels, text, attended = inputs()
    attended[1] = False
    # In float32 logits vanish beside -9e15, which leaves padding all the same weight; float64 needs more for that.
    assert_textbook(small_glip().head.blocks[0].fusion, levels, text, attended, padding=-1e30)


@pytest.mark.parametrize("factor", [1e3, 1e7])
@torch.no_grad()
def test_logits_are_clamped(factor: float) -> None:
    fusion = small_glip().head.blocks[0].fusion
    fusion.text_key.weight.mul_(factor)
    assert_textbook(fusion, *inputs())


@torch.no_grad()
def test_where_the_clamp_cuts_several_logits_their_tokens_share() -> None:
    fusion = small_glip().head.blocks[0].fusion
    for part in (fusion.image_query, fusion.text_key):
        part.weight.zero_()
        part.bias.fill_(1e4)  # every logit is far above the limit, and so all are equal
    levels, text, attended = inputs()
    fusion.text_key.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert_textbook(fusion, levels, text, attended)


@torch.no_grad()
def test_the_text_attends_to_cells_that_are_padding() -> None:
    fusion = small_glip().head.blocks[0].fusion
    levels, text, attended = inputs()
    before = fusion(tuple(levels), text, attended).text
    levels[0][:, :, -1, -1] = 0
    assert not torch.allclose(fusion(tuple(levels), text, attended).text, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_a_sum_over_many_cells_is_in_range(dtype: torch.dtype) -> None:
    fusion = small_glip().head.blocks[0].fusion
    fusion.image_norm.bias.fill_(4)  # of 24 thousand cells: more than float16 holds
    fusion.image_query.weight.mul_(0.1)
    levels = (torch.randn(1, 32, 150, 160, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)
    _, text, attended = inputs()
    expected = fusion(levels, text[:1], attended[:1]).text
    with torch.autocast("cpu", dtype=dtype):
        mixed = fusion.float()((levels[0].float(),), text[:1].float(), attended[:1]).text
    found = fusion.to(dtype)((levels[0].to(dtype),), text[:1].to(dtype), attended[:1]).text
    for x in (found, mixed):
        torch.testing.assert_close(x.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("factor", [1, 1e3, 1e5])
@pytest.mark.parametrize("bytes_", [1000, 2**20])
def test_gradients_are_the_textbooks(factor: float, bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`factor` spreads the logits: with the largest the clamp cuts most of them, and no gradient passes there."""
    monkeypatch.setattr(tiles, "TILE", bytes_)
    fusion = small_glip().head.blocks[0].fusion
    with torch.no_grad():
        fusion.text_key.weight.mul_(factor)
    levels, text, attended = inputs()
    attended[0, 2:] = False
    variables = [*(level.requires_grad_() for level in levels), text.requires_grad_(), *fusion.parameters()]
    fused: Fused = fusion(tuple(levels), text, attended)
    found = torch.cat([level.flatten(2).transpose(1, 2) for level in fused.levels], dim=1)
    gradients = []
    for image, words in ((found, fused.text), textbook(fusion, levels, text, attended)):
        total = image.square().sum() + words.square().sum()
        gradients.append(torch.autograd.grad(total, variables))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7 * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_in_16_bits_are_those_of_float64(dtype: torch.dtype) -> None:
    fusion = small_glip().head.blocks[0].fusion
    levels, text, attended = inputs()
    gradients = []
    for precision in (torch.float64, dtype):
        given = [x.detach().to(precision).requires_grad_() for x in (*levels, text)]
        fused: Fused = fusion.to(precision)(tuple(given[:-1]), given[-1], attended)
        gradients.append(torch.autograd.grad(fused.text.square().sum(), given))
    for expected, found in zip(*gradients, strict=True):
        assert (found.double() - expected).norm() < 8 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize(("dtype", "scores"), [(torch.float32, 3), (torch.bfloat16, 4)])
@pytest.mark.parametrize("bytes_", [2**18, 2**30])
def test_three_tensors_of_the_size_of_the_scores_are_kept_for_gradients(
    dtype: torch.dtype, scores: int, bytes_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits and the shares of both directions; in 16 bits the shares once more, in these."""
    monkeypatch.setattr(tiles, "TILE", bytes_)
    fusion = small_glip().head.blocks[0].fusion.to(dtype)
    levels = (torch.randn(1, 32, 50, 60, dtype=dtype, requires_grad=True),)
    text = torch.randn(1, 200, 24, dtype=dtype, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        fused = fusion(levels, text, torch.ones(1, 200, dtype=torch.bool))
    assert fused.text.requires_grad
    score = 50 * 60 * HEADS * 200 * 4  # bytes, in float32
    assert scores * score <= sum(kept.values()) < (scores + 0.5) * score
