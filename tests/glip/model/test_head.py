"""The pyramid and the predictions, against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from converter.glip import GLIP
from converter.glip.model.bert import TextFeatures
from tests.support.small_glip import small_glip

SIZES = ((5, 7), (3, 4), (2, 2), (1, 1), (1, 1))


def features(seed: int = 7) -> tuple[tuple[Tensor, ...], TextFeatures, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(torch.randn(2, 32, *size, dtype=torch.float64, generator=generator) for size in SIZES)
    attended = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    hidden = torch.randn(2, 6, 24, dtype=torch.float64, generator=generator)
    return levels, TextFeatures(hidden, hidden * attended[..., None]), attended


@torch.no_grad()
def test_the_pyramid_adds_upsampled_levels_and_two_more_of_stride_two() -> None:
    fpn = small_glip().fpn
    generator = torch.Generator().manual_seed(8)
    c3, c4, c5 = (
        torch.randn(2, dim, *size, dtype=torch.float64, generator=generator)
        for dim, size in ((16, (5, 7)), (32, (3, 4)), (64, (2, 2)))
    )

    def upsampled(x: Tensor, height: int, width: int) -> Tensor:
        """The nearest cell, counted from the upper left."""
        rows = torch.arange(height) * x.shape[2] // height
        columns = torch.arange(width) * x.shape[3] // width
        return x[:, :, rows][:, :, :, columns]

    lateral = fpn.lateral
    m5 = lateral[2](c5)
    m4 = lateral[1](c4) + upsampled(m5, 3, 4)
    m3 = lateral[0](c3) + upsampled(m4, 5, 7)
    p5 = fpn.output[2](m5)
    p6 = fpn.p6(p5)
    expected = [fpn.output[0](m3), fpn.output[1](m4), p5, p6, fpn.p7(p6.relu())]
    for level, wanted in zip(fpn((c3, c4, c5)), expected, strict=True):
        torch.testing.assert_close(level, wanted)
    assert (p6 < 0).any()  # the relu in front of P7 is not in P6


def logits_of(model: GLIP, cell: Tensor, token: Tensor) -> Tensor:
    """One cell's feature (C,) and one token's embedding (text_dim,) -> its alignment."""
    unit = token / token.norm()
    projected = model.head.text_projection(unit / 2)
    logit = cell @ projected / model.head.log_scale.exp() + unit @ model.head.text_bias + model.head.bias
    return logit.clamp(-50000, 50000)[0]


@pytest.mark.parametrize("fusion", [True, False])
@torch.no_grad()
def test_predictions_are_read_off_the_last_features(fusion: bool) -> None:
    model = small_glip(fusion=fusion)
    seen: list[tuple[tuple[Tensor, ...], Tensor]] = []
    model.head.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    levels, text, attended = features()
    out = model.head(model.head.before_text(levels), text, attended)
    last, hidden = seen[0]
    tokens = hidden if fusion else text.embedded  # model A aligns with BERT's own embedding, padding zeroed
    if fusion:
        for b, cell, t in ((0, 3, 0), (1, 9, 3), (1, 34, 5)):
            expected = logits_of(model, last[0][b].flatten(1)[:, cell], tokens[b, t])
            torch.testing.assert_close(out.token_logits[0][b, cell, t], expected)
    else:
        expected = logits_of(model, last[0][0].flatten(1)[:, 9], tokens[0, 3])
        torch.testing.assert_close(out.token_logits[0][0, 9, 3], expected)
        nothing = last[0][1].flatten(1)[:, 9] @ model.head.text_projection.bias / model.head.log_scale.exp()
        torch.testing.assert_close(out.token_logits[0][1, 9, 5], (nothing + model.head.bias)[0])
    for level, feature in enumerate(last):
        deltas = F.conv2d(feature, model.head.box.weight, model.head.box.bias) * model.head.box_scale[level]
        torch.testing.assert_close(out.box_deltas[level], deltas)
        torch.testing.assert_close(out.centerness[level], model.head.centerness(feature))


@torch.no_grad()
def test_token_logits_are_clamped() -> None:
    model = small_glip()
    model.head.log_scale.fill_(-30)
    out = model.head(*features())
    assert {float(logits.abs().max()) for logits in out.token_logits} == {50000.0}


@pytest.mark.parametrize("fusion", [True, False])
@torch.no_grad()
def test_the_prompts_first_rows_are_added_to_the_text(fusion: bool) -> None:
    model = small_glip(fusion=fusion, prompt_length=10)
    levels, text, attended = features()
    found = model.head(levels, text, attended)
    rows = model.head.prompt.weight[:6]
    model.head.prompt = None
    expected = model.head(levels, TextFeatures(text.hidden + rows, text.embedded + rows), attended)
    for a, b in zip(found.token_logits, expected.token_logits, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_a_block_fuses_then_refines_the_text_then_mixes_levels() -> None:
    block = small_glip().head.blocks[0]
    levels, text, attended = features()
    fused = block.fusion(levels, text.hidden, attended)
    found_levels, found_text = block(levels, text.hidden, attended)
    torch.testing.assert_close(found_text, block.text_layer(fused.text, attended))
    for a, b in zip(found_levels, block.dynamic_conv(fused.levels), strict=True):
        torch.testing.assert_close(a, b)
