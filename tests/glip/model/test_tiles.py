"""What is computed in tiles is what is computed at once, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from converter.glip import GLIP
from converter.glip.model import tiles
from tests.support.small_glip import random_inputs, small_glip


def test_tiles_are_as_large_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 1000)
    like = torch.empty(0, dtype=torch.float64)
    assert tiles.tiles(10, 31, like) == [4, 4, 2]
    assert tiles.tiles(4, 31, like) == [4]
    assert tiles.tiles(2, 126, like) == [1, 1]
    assert tiles.tiles(10, 31, like.to("meta")) == [10]


def outputs_and_gradients(model: GLIP, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    images, ids, mask = inputs
    images = images.double().requires_grad_()
    outputs = [x for part in model(images, ids, mask) for x in part]
    total = torch.stack([x.square().mean() for x in outputs]).sum()
    return [
        *outputs,
        *torch.autograd.grad(total, [images, *model.parameters()], allow_unused=True, materialize_grads=True),
    ]


@pytest.mark.parametrize("size", [(75, 101), (5, 300), (1, 1)])
@pytest.mark.parametrize("factor", [1, 1000])
@pytest.mark.parametrize("real", [0, 1, 13])
def test_a_model_in_tiles_is_the_model_at_once(
    size: tuple[int, int], factor: float, real: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`factor` spreads the logits of fusion, so that one cell may outweigh all of the tiles before it."""
    model = small_glip(head_blocks=1, depths=[1, 1, 1, 1])
    with torch.no_grad():
        model.head.blocks[0].fusion.text_key.weight.mul_(factor)
    images, ids, mask = random_inputs(2, *size, 13)
    mask[1, real:] = 0
    whole = outputs_and_gradients(model, (images, ids, mask))
    for bytes_ in (1, 20_000):  # a cell at a time, and a few
        monkeypatch.setattr(tiles, "TILE", bytes_)
        for a, b in zip(outputs_and_gradients(model, (images, ids, mask)), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("attended", [[True, True, False], [False, False, False]])
def test_fusion_has_the_gradients_of_finite_differences(attended: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 600)
    fusion = small_glip().head.blocks[0].fusion
    level = torch.randn(1, 32, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def outputs(level: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        fused = fusion((level,), text, torch.tensor([attended]))
        return fused.levels[0], fused.text

    assert torch.autograd.gradcheck(outputs, (level.requires_grad_(), text.requires_grad_()), fast_mode=True)
