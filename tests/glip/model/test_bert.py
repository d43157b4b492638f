"""The text encoder, against torch's own transformer layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from converter.glip.model.bert import BertLayer, TextEncoder
from tests.support.small_glip import CONFIG, small_config, small_glip

WIDTH, HEADS = CONFIG["text_dim"], CONFIG["text_heads"]


def torch_layer(layer: BertLayer) -> nn.TransformerEncoderLayer:
    """The same weights in torch's post-norm layer."""
    reference = nn.TransformerEncoderLayer(
        WIDTH, HEADS, CONFIG["text_mlp_dim"], 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True, dtype=torch.float64
    )
    reference.load_state_dict(
        {
            "self_attn.in_proj_weight": layer.attention.qkv.weight,
            "self_attn.in_proj_bias": layer.attention.qkv.bias,
            "self_attn.out_proj.weight": layer.attention.projection.weight,
            "self_attn.out_proj.bias": layer.attention.projection.bias,
            "linear1.weight": layer.mlp.fc1.weight,
            "linear1.bias": layer.mlp.fc1.bias,
            "linear2.weight": layer.mlp.fc2.weight,
            "linear2.bias": layer.mlp.fc2.bias,
            "norm1.weight": layer.attention.norm.weight,
            "norm1.bias": layer.attention.norm.bias,
            "norm2.weight": layer.mlp.norm.weight,
            "norm2.bias": layer.mlp.norm.bias,
        }
    )
    return reference


def text_and_mask() -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    attended = torch.ones(2, 9, dtype=torch.bool)
    attended[1, 5:] = False
    return x, attended


def test_a_layer_is_torchs_post_norm_layer() -> None:
    layer = small_glip().text_encoder.layers[0]
    x, attended = text_and_mask()
    expected = torch_layer(layer)(x, src_key_padding_mask=~attended)
    torch.testing.assert_close(layer(x, attended), expected, rtol=1e-12, atol=1e-12)


def test_the_heads_layer_differs_by_a_clamp_alone() -> None:
    layer = small_glip().head.blocks[0].text_layer
    x, attended = text_and_mask()
    torch.testing.assert_close(layer(x, attended), torch_layer(layer)(x, src_key_padding_mask=~attended))


@pytest.mark.parametrize(("limit", "equal"), [(None, False), (50000.0, True)])
@torch.no_grad()
def test_clamped_logits_share_evenly(limit: float | None, equal: bool) -> None:
    layer = BertLayer(small_config(), limit).double()
    layer.attention.qkv.weight.zero_()
    layer.attention.qkv.weight[WIDTH : 2 * WIDTH].normal_(generator=torch.Generator().manual_seed(0))
    # one query for all, and keys that differ by token: all logits are far above the limit
    layer.attention.qkv.bias.copy_(torch.tensor([1e6, 1e4, 0]).repeat_interleave(WIDTH))
    layer.attention.qkv.weight[2 * WIDTH :] = torch.eye(WIDTH)
    layer.attention.projection.weight.copy_(torch.eye(WIDTH))
    layer.attention.projection.bias.zero_()
    x, _ = text_and_mask()
    mean = layer.attention.norm(x + x.mean(1, keepdim=True))
    found = layer.attention(x, torch.ones(2, 9, dtype=torch.bool))
    assert torch.allclose(found, mean) == equal


@torch.no_grad()
def test_a_caption_of_padding_alone_is_finite() -> None:
    x, attended = text_and_mask()
    attended[1] = False
    assert small_glip().text_encoder.layers[0](x, attended).isfinite().all()


@torch.no_grad()
def test_embeddings_are_word_position_and_type_zero() -> None:
    embeddings = small_glip().text_encoder.embeddings
    ids = torch.tensor([[3, 1, 4], [1, 5, 9]])
    for b in range(2):
        for t in range(3):
            x = embeddings.word.weight[ids[b, t]] + embeddings.position.weight[t] + embeddings.token_type.weight[0]
            x = (x - x.mean()) / (x.var(unbiased=False) + 1e-12).sqrt()
            expected = x * embeddings.norm.weight + embeddings.norm.bias
            torch.testing.assert_close(embeddings(ids)[b, t], expected)


@torch.no_grad()
def test_embedded_is_hidden_without_its_padding() -> None:
    encoder: TextEncoder = small_glip().text_encoder
    attended = torch.tensor([[True, True, True, False]])
    features = encoder(torch.tensor([[3, 1, 4, 0]]), attended)
    assert torch.equal(features.embedded[:, :3], features.hidden[:, :3])
    assert not features.embedded[:, 3].any()
    assert features.hidden[:, 3].any()
