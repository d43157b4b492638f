"""Swin, against the same thing said token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from converter.glip.model import swin
from converter.glip.model.swin import PatchMerging, SwinBlock, from_windows, to_windows
from tests.support.small_glip import small_glip

WINDOW = 3


def block_by_tokens(block: SwinBlock, x: Tensor, height: int, width: int, shift: int) -> Tensor:
    """Every token attends to the tokens that lie in the same window of a grid moved by `shift`, and to nothing else.

    The grid covers the map and what it lacks to whole windows, where tokens are zero. No rolling, no mask.
    """
    normed = block.norm1(x).view(len(x), height, width, -1)
    padded = F.pad(normed, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
    rows, columns = padded.shape[1:3]
    qkv = block.attention.qkv(padded)
    heads = block.attention.heads
    table = block.attention.relative_position_bias_table.view(2 * WINDOW - 1, 2 * WINDOW - 1, heads)

    def window(i: int, j: int) -> tuple[int, int]:
        return (i - shift) // WINDOW, (j - shift) // WINDOW

    out = torch.zeros_like(x).view(len(x), height, width, -1)
    places = [(i, j) for i in range(rows) for j in range(columns)]
    for i, j in places:
        if i >= height or j >= width:
            continue
        others = [place for place in places if window(*place) == window(i, j)]
        for b in range(len(x)):
            q, _, _ = qkv[b, i, j].view(3, heads, -1)
            k = torch.stack([qkv[b, r, c].view(3, heads, -1)[1] for r, c in others])
            v = torch.stack([qkv[b, r, c].view(3, heads, -1)[2] for r, c in others])
            bias = torch.stack([table[i - r + WINDOW - 1, j - c + WINDOW - 1] for r, c in others])
            logits = (k * q).sum(-1) / q.shape[-1] ** 0.5 + bias  # (others, nh)
            out[b, i, j] = (logits.softmax(0)[..., None] * v).sum(0).flatten()
    y = x + block.attention.projection(out).view_as(x)
    return y + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(y))))


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (3, 3), (2, 4), (1, 1)])
@pytest.mark.parametrize("index", [0, 1])
def test_a_block_attends_within_its_windows(size: tuple[int, int], index: int) -> None:
    stage = small_glip().backbone.stages[2]
    blocks: list[SwinBlock] = []
    inputs: list[Tensor] = []
    for block in stage.blocks:
        block.register_forward_hook(lambda module, args, out: inputs.append(args[0]))
        blocks.append(block)
    x = torch.randn(2, size[0] * size[1], 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out, _ = stage(x, size)
        entering, leaving = [*inputs, out][index : index + 2]
        expected = block_by_tokens(blocks[index], entering, *size, shift=index * (WINDOW // 2))
    torch.testing.assert_close(leaving, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 4), (3, 5), (6, 6), (7, 5), (8, 3), (9, 9), (10, 7), (11, 4), (25, 6)])
@pytest.mark.parametrize("tokens", [1, 40, 90])
@pytest.mark.parametrize("window", [3, 5])
def test_a_map_in_strips_is_the_map_at_once(
    size: tuple[int, int], window: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = small_glip(window_size=window).backbone.stages[2]
    x = torch.randn(2, size[0] * size[1], 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    computed: list[int] = []

    def run() -> tuple[Tensor, Tensor, list[int]]:
        entering = x.clone().requires_grad_()
        computed.clear()
        out: Tensor = stage(entering, size)[0]
        (gradient,) = torch.autograd.grad(out.square().sum(), entering)
        return out, gradient, [*computed]

    for block in stage.blocks:
        block.mlp.register_forward_hook(lambda module, args, out: computed.append(out.shape[1]))
    whole, gradient, once = run()
    monkeypatch.setattr(swin, "STRIP", tokens)
    parts, other, rows = run()
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(other, gradient, rtol=1e-12, atol=1e-12)
    assert once == [size[0]] * len(stage.blocks)
    assert sum(rows) == sum(once)
    if tokens == 1:
        assert max(rows) < 3 * window  # the ends: a row of windows, the rows before the first, and padding


def test_windows_are_put_back_where_they_were() -> None:
    x = torch.arange(2 * 6 * 9 * 4.0).view(2, 6, 9, 4)
    windows = to_windows(x, WINDOW)
    assert torch.equal(windows[1], x[0, 0:3, 3:6].reshape(9, 4))
    assert torch.equal(from_windows(windows, WINDOW, (6, 9)), x)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
def test_patch_merging_concatenates_down_first_and_pads_with_zeros(size: tuple[int, int]) -> None:
    height, width = size
    merging = PatchMerging(4).double()
    x = torch.randn(2, height * width, 4, dtype=torch.float64)

    def token(b: int, i: int, j: int) -> Tensor:
        return x[b, i * width + j] if i < height and j < width else torch.zeros(4, dtype=torch.float64)

    expected = [
        torch.cat([token(b, 2 * i + down, 2 * j + right) for down, right in ((0, 0), (1, 0), (0, 1), (1, 1))])
        for b in range(2)
        for i in range((height + 1) // 2)
        for j in range((width + 1) // 2)
    ]
    merged = torch.stack(expected).view(2, -1, 16)
    torch.testing.assert_close(merging(x, size), merging.reduction(merging.norm(merged)))


@pytest.mark.parametrize("size", [(8, 12), (9, 13), (1, 3)])
def test_patches_are_projected_one_by_one(size: tuple[int, int]) -> None:
    height, width = size
    patch_embed = small_glip().backbone.patch_embed
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    padded = torch.zeros(2, 3, height + 3, width + 3, dtype=torch.float64)
    padded[:, :, :height, :width] = images
    weight = patch_embed.projection.weight.flatten(1)
    with torch.no_grad():
        out = patch_embed(images)
        assert out.shape == (2, 8, -(-height // 4), -(-width // 4))
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                patch = padded[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(1)
                expected = patch_embed.norm(patch @ weight.T + patch_embed.projection.bias)
                torch.testing.assert_close(out[:, :, i, j], expected)


def test_the_norm_of_an_output_does_not_feed_the_next_stage() -> None:
    backbone = small_glip().backbone
    images = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        before = backbone(images)
        backbone.norms[0].weight.mul_(2)
        after = backbone(images)
    assert not torch.equal(before[1], after[1])
    assert all(torch.equal(before[n], after[n]) for n in (0, 2, 3))
