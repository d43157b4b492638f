"""What scripts/benchmark_model.py compares with computes the same: a comparison of times is one of equals."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from converter.glip import GLIP
from converter.glip.model.head import HeadBlock
from scripts import usual_ways
from tests.support.small_glip import random_inputs, small_glip

LIMIT = 1e-10  # relative Frobenius, float64
TOKENS = 13


@pytest.fixture(scope="module")
def model() -> GLIP:
    return small_glip().requires_grad_(False)


@pytest.fixture(scope="module")
def given(model: GLIP) -> tuple[Tensor, Tensor, Tensor]:
    """Two images; two captions, of which one has three padded tokens at the end."""
    images, ids, mask = random_inputs(height=149, width=203, tokens=TOKENS)
    return images.double(), ids, mask != 0


@pytest.fixture(scope="module")
def levels(model: GLIP, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = model.fpn(model.backbone(given[0])[1:])
    return found


def block(model: GLIP) -> HeadBlock:
    found = model.head.blocks[1]
    assert isinstance(found, HeadBlock)
    return found


def error(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    pairs = list(zip(found, expected, strict=True))
    assert all(a.shape == b.shape and a.dtype == b.dtype == torch.float64 for a, b in pairs)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def test_transformers_swin_gives_the_maps(model: GLIP, given: tuple[Tensor, Tensor, Tensor]) -> None:
    theirs = usual_ways.swin(model)(given[0]).feature_maps
    assert error(theirs, model.backbone(given[0])[1:]) <= LIMIT


def test_transformers_bert_gives_the_hidden_states(model: GLIP, given: tuple[Tensor, Tensor, Tensor]) -> None:
    ids, attended = usual_ways.padded(*given[1:], model.config)
    assert ids.shape == (2, 256)
    theirs = usual_ways.bert(model)(ids, attention_mask=attended.long()).last_hidden_state
    assert error([theirs[:, :TOKENS]], [model.text_encoder(*given[1:]).hidden]) <= LIMIT


def test_the_pyramid(model: GLIP, given: tuple[Tensor, Tensor, Tensor]) -> None:
    maps = model.backbone(given[0])[1:]
    assert error(usual_ways.fpn(model.fpn, maps), model.fpn(maps)) <= LIMIT


@pytest.mark.parametrize("padding", [0, 40])
def test_fusion(padding: int, model: GLIP, levels: tuple[Tensor, ...], given: tuple[Tensor, Tensor, Tensor]) -> None:
    text = 3 * torch.randn(2, TOKENS + padding, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    attended = torch.nn.functional.pad(given[2], (0, padding))
    fusion = block(model).fusion
    assert fusion is not None
    their_levels, their_text = usual_ways.fusion(fusion, levels, text, attended)
    ours = fusion(levels, text[:, :TOKENS], attended[:, :TOKENS])
    assert error([*their_levels, their_text[:, :TOKENS]], [*ours.levels, ours.text]) <= LIMIT


def test_the_text_layer(model: GLIP, given: tuple[Tensor, Tensor, Tensor]) -> None:
    text = torch.randn(2, TOKENS, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    layer = block(model).text_layer
    assert layer is not None
    assert error([usual_ways.text_layer(layer, text, given[2])], [layer(text, given[2])]) <= LIMIT


def test_dynamic_convolution(model: GLIP, levels: tuple[Tensor, ...]) -> None:
    module = block(model).dynamic_conv
    assert error(usual_ways.dynamic_conv(module, levels, usual_ways.plain_deform), module(levels)) <= LIMIT


def test_dynamic_convolution_by_torchvision(model: GLIP, levels: tuple[Tensor, ...]) -> None:
    pytest.importorskip("torchvision")
    module = block(model).dynamic_conv
    deform = usual_ways.torchvision_deform()
    assert error(usual_ways.dynamic_conv(module, levels, deform), module(levels)) <= LIMIT


@pytest.mark.parametrize(
    "changes", [{}, {"fusion": False}, {"prompt_length": 256}], ids=["fusion", "without", "prompt"]
)
def test_the_whole(changes: dict[str, int], given: tuple[Tensor, Tensor, Tensor]) -> None:
    model = small_glip(**changes).requires_grad_(False)
    usual = usual_ways.UsualGLIP(model, usual_ways.swin(model), usual_ways.bert(model), usual_ways.plain_deform)
    theirs, ours = usual(*given), model(*given)
    assert error((x[:, :, :TOKENS] for x in theirs.token_logits), ours.token_logits) <= LIMIT
    assert error(theirs.box_deltas + theirs.centerness, ours.box_deltas + ours.centerness) <= LIMIT
