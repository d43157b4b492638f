"""The usual way to compute each part of GLIP, from the weights of our model: what benchmark_model.py compares with.

The backbone and the text encoder are transformers' own classes. Fusion, text layer, dynamic convolution, pyramid and
predictions are written down in the order of products of the official code (microsoft/GLIP, maskrcnn_benchmark/utils/
fuse_helper.py and modeling/rpn/vldyhead.py), captions padded to 256 tokens as it pads them. Each gives the numbers of
our part: tests/glip/model/test_usual_ways.py holds them together in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converter.glip.model.config import GLIPConfig
from converter.glip.model.glip import GLIP
from converter.glip.model.head import Output

CAPTION = 256  # tokens that the official code pads every caption to
LIMIT = 50000.0
MASKED = -9e15
Levels = tuple[Tensor, ...]
Deform = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]


def padded(ids: Tensor, attended: Tensor, config: GLIPConfig) -> tuple[Tensor, Tensor]:
    """Captions (B, T) int64 and bool, padded to 256 tokens or as many as the text encoder takes."""
    more = min(CAPTION, config.max_positions) - ids.shape[1]
    return F.pad(ids, (0, more)), F.pad(attended, (0, more))


def swin(model: GLIP) -> nn.Module:
    """transformers' SwinBackbone: images -> an object with `feature_maps`, C3 to C5. ImportError if not installed."""
    from transformers import SwinBackbone, SwinConfig

    c = model.config
    config = SwinConfig(
        embed_dim=c.embed_dim, depths=list(c.depths), num_heads=list(c.num_heads), window_size=c.window_size,
        mlp_ratio=c.mlp_ratio, patch_size=c.patch_size, out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    names = {
        "patch_embed.": "swin.embeddings.", "embeddings.projection": "embeddings.patch_embeddings.projection",
        "stages.": "swin.encoder.layers.", "attention.projection": "attention.output.dense",
        "attention.relative": "attention.self.relative", ".norm1": ".layernorm_before", ".norm2": ".layernorm_after",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "norms.2": "hidden_states_norms.stage4",
        "norms.1": "hidden_states_norms.stage3", "norms.0": "hidden_states_norms.stage2",
    }  # fmt: skip
    return _theirs(SwinBackbone, config, model.backbone, names)


def bert(model: GLIP) -> nn.Module:
    """transformers' BertModel: (ids, attention_mask) -> an object with `last_hidden_state`. ImportError likewise."""
    from transformers import BertConfig, BertModel

    c = model.config
    config = BertConfig(
        vocab_size=c.vocab_size, hidden_size=c.text_dim, num_hidden_layers=c.text_layers,
        num_attention_heads=c.text_heads, intermediate_size=c.text_mlp_dim, max_position_embeddings=c.max_positions,
        type_vocab_size=c.type_vocab_size,
    )  # fmt: skip
    names = {
        "embeddings.norm": "embeddings.LayerNorm", "embeddings.word": "embeddings.word_embeddings",
        "embeddings.position": "embeddings.position_embeddings", "layers.": "encoder.layer.",
        "embeddings.token_type": "embeddings.token_type_embeddings", "attention.norm": "attention.output.LayerNorm",
        "attention.projection": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
        "mlp.norm": "output.LayerNorm",
    }  # fmt: skip
    return _theirs(BertModel, config, model.text_encoder, names, add_pooling_layer=False)


def _theirs(kind: Any, config: Any, part: nn.Module, names: dict[str, str], **options: bool) -> nn.Module:
    """transformers' model of `kind` with the weights of our `part`, under the names that transformers gives on disk."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    weights: dict[str, Tensor] = {}
    for name, tensor in part.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if ".qkv." in name:
            for which, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                weights[name.replace(".qkv.", f".self.{which}.")] = third.clone()
        else:
            weights[name] = tensor
    model, found = kind.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True, **options)
    absent = [name for name in found["missing_keys"] if "layernorm." not in name]  # of SwinModel; no map passes it
    if absent or found["unexpected_keys"]:
        raise RuntimeError(f"{kind.__name__}: {absent[:3]} missing, {list(found['unexpected_keys'])[:3]} not known")
    like = next(part.parameters())
    ready: nn.Module = model.to(like.device, like.dtype).eval().requires_grad_(False)
    return ready


def fpn(module: nn.Module, maps: Levels) -> Levels:
    """Lateral 1x1, nearest upsampling to the finer map, 3x3; P6 of P5, P7 of relu(P6)."""
    m: Any = module
    merged: Tensor = m.lateral[-1](maps[-1])
    levels: list[Tensor] = [m.output[-1](merged)]
    for index in range(len(maps) - 2, -1, -1):
        lateral = m.lateral[index](maps[index])
        merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
        levels.insert(0, m.output[index](merged))
    levels.append(m.p6(levels[-1]))
    levels.append(m.p7(F.relu(levels[-1])))
    return tuple(levels)


def fusion(module: nn.Module, levels: Levels, text: Tensor, attended: Tensor) -> tuple[Levels, Tensor]:
    """BiMultiHeadAttention: every cell is projected to the inner width and back; all scores at once, four clamps."""
    m: Any = module
    image = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], dim=1)  # (B, N, C)
    image, text = m.image_norm(image), m.text_norm(text)

    def split(x: Tensor) -> Tensor:  # (B, T, nh*hd) -> (B*nh, T, hd)
        return x.view(*x.shape[:2], m.heads, -1).transpose(1, 2).flatten(0, 1).contiguous()

    scale = (m.image_query.out_features // m.heads) ** -0.5
    query, key = split(m.image_query(image) * scale), split(m.text_key(text))
    image_value, text_value = split(m.image_value(image)), split(m.text_value(text))
    scores = torch.bmm(query, key.transpose(1, 2)).clamp(min=-LIMIT).clamp(max=LIMIT)  # (B*nh, N, T)
    of_text = scores.transpose(1, 2)
    of_text = of_text - of_text.max(dim=-1, keepdim=True)[0]
    to_text = of_text.clamp(min=-LIMIT).clamp(max=LIMIT).softmax(dim=-1)
    mask = attended.to(scores.dtype)[:, None, None, :]  # +1 for real tokens
    mask = mask.masked_fill(mask == 0, max(MASKED, torch.finfo(scores.dtype).min))
    masked = scores.view(len(image), m.heads, *scores.shape[1:]) + mask
    to_image = masked.flatten(0, 1).softmax(dim=-1)

    def joined(x: Tensor) -> Tensor:  # (B*nh, T, hd) -> (B, T, nh*hd)
        return x.view(len(image), m.heads, *x.shape[1:]).transpose(1, 2).flatten(2)

    image = image + m.image_layer_scale * m.image_output(joined(torch.bmm(to_image, text_value)))
    text = text + m.text_layer_scale * m.text_output(joined(torch.bmm(to_text, image_value)))
    cut = image.transpose(1, 2).split([level[0, 0].numel() for level in levels], dim=2)
    return tuple(x.reshape(level.shape) for x, level in zip(cut, levels, strict=True)), text


def text_layer(module: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
    """BertEncoderLayer: three projections, clamped scores, an additive mask."""
    m: Any = module
    attention, mlp = m.attention, m.mlp
    weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    projected = (F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
    query, key, value = (y.view(*y.shape[:2], attention.heads, -1).transpose(1, 2) for y in projected)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (B, nh, T, T)
    scores = scores.clamp(min=-LIMIT).clamp(max=LIMIT)
    outside = torch.zeros_like(attended, dtype=x.dtype).masked_fill(~attended, torch.finfo(x.dtype).min)
    shares = (scores + outside[:, None, None, :]).softmax(dim=-1)
    gathered = (shares @ value).transpose(1, 2).flatten(2)
    x = attention.norm(F.linear(gathered, attention.projection.weight, attention.projection.bias) + x)
    y = F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias))
    out: Tensor = mlp.norm(F.linear(y, mlp.fc2.weight, mlp.fc2.bias) + x)
    return out


def torchvision_deform() -> Deform:
    """torchvision's own kernel, in float32 for formats that it has not. ImportError without torchvision."""
    from torchvision.ops import deform_conv2d

    def deform(x: Tensor, shift: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        wide = [t.float() if t.dtype == torch.bfloat16 else t for t in (x, shift, weight, bias, mask)]
        x_, shift_, weight_, bias_, mask_ = wide
        out = deform_conv2d(x_, shift_, weight_, bias_, stride=stride, padding=1, mask=mask_)
        return out.to(x.dtype)

    return deform


def plain_deform(x: Tensor, shift: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Columns of all nine taps by grid_sample, then one product: what a DCNv2 without a kernel of its own does."""
    height, width = x.shape[-2:]
    rows, columns = shift.shape[-2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    y0 = torch.arange(rows, device=x.device, dtype=wide)[:, None] * stride - 1
    x0 = torch.arange(columns, device=x.device, dtype=wide) * stride - 1
    shift, sampled = shift.to(wide), x.to(wide)
    taps = []
    for tap in range(9):
        down = y0 + tap // 3 + shift[:, 2 * tap]  # (B, h, w)
        right = x0 + tap % 3 + shift[:, 2 * tap + 1]
        grid = torch.stack([(2 * right + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1)
        taps.append(F.grid_sample(sampled, grid, align_corners=False) * mask[:, tap, None])
    samples = torch.stack(taps, dim=2).flatten(1, 2).flatten(2)  # (B, C*9, h*w)
    out = torch.baddbmm(bias[:, None], weight.flatten(1).expand(len(x), -1, -1), samples.to(x.dtype))
    return out.view(len(x), -1, rows, columns)


def dynamic_conv(module: nn.Module, levels: Levels, deform: Deform) -> Levels:
    """DyConv: three deformable convolutions per level, stacked, weighted, averaged; DYReLU."""
    m: Any = module
    results = []
    for index, level in enumerate(levels):
        found: Tensor = m.offset(level)
        shift, mask = found[:, :18], found[:, 18:].sigmoid()
        near = [_normed(m.same, level, shift, mask, 1, deform)]
        if index > 0:
            near.append(_normed(m.finer, levels[index - 1], shift, mask, 2, deform))
        if index + 1 < len(levels):
            below = levels[index + 1]
            size = below.shape[-2:]
            cells = size[0] * size[1]  # the official kernel reads the buffers of the finer level flat
            flat_shift = shift.flatten(1)[:, : 18 * cells].reshape(-1, 18, *size)
            flat_mask = mask.flatten(1)[:, : 9 * cells].reshape(-1, 9, *size)
            reduced = _normed(m.coarser, below, flat_shift, flat_mask, 1, deform)
            near.append(F.interpolate(reduced, size=level.shape[-2:], mode="bilinear", align_corners=True))
        weights = [F.relu(m.level_attention(F.adaptive_avg_pool2d(x, 1))) for x in near]
        averaged = (torch.stack(near) * (F.relu6(torch.stack(weights) + 3) / 6)).mean(dim=0)
        results.append(_dyrelu(m.dyrelu, averaged))
    return tuple(results)


def _normed(m: Any, x: Tensor, shift: Tensor, mask: Tensor, stride: int, deform: Deform) -> Tensor:
    out: Tensor = m.norm(deform(x, shift, mask, m.conv.weight, m.conv.bias, stride))
    return out


def _dyrelu(m: Any, x: Tensor) -> Tensor:
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    hidden = F.relu(F.linear(pooled, m.fc1.weight, m.fc1.bias))
    y = F.relu6(F.linear(hidden, m.fc2.weight, m.fc2.bias) + 3) / 6
    a1, b1, a2, b2 = y[:, :, None, None].chunk(4, dim=1)
    return torch.max(x * ((a1 - 0.5) * 2 + 1) + (b1 - 0.5), x * ((a2 - 0.5) * 2) + (b2 - 0.5))


def predictions(head: nn.Module, levels: Levels, embedding: Tensor) -> Output:
    """The text projected once; per level the product, division, bias and two clamps on the scores of every cell."""
    m: Any = head
    unit = F.normalize(embedding, p=2, dim=-1)
    projected = m.text_projection(unit / 2.0)  # (B, T, C)
    bias = unit @ m.text_bias + m.bias  # (B, T)
    logits = []
    for level in levels:
        cells = level.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H*W, C)
        spread = bias[:, None].repeat(1, cells.shape[1], 1)
        scores = torch.matmul(cells, projected.transpose(-1, -2)) / m.log_scale.exp() + spread
        logits.append(scores.clamp(max=LIMIT).clamp(min=-LIMIT))
    deltas = tuple(m.box(level) * scale for level, scale in zip(levels, m.box_scale, strict=True))
    return Output(tuple(logits), deltas, tuple(m.centerness(level) for level in levels))


class UsualGLIP:
    """All parts the usual way: (images, ids, attended) -> Output for 256 tokens.

    swin, bert: transformers' models, or None where they are not installed; our parts then take their places.
    """

    def __init__(self, model: GLIP, swin: nn.Module | None, bert: nn.Module | None, deform: Deform) -> None:
        self.model, self.swin, self.bert, self.deform = model, swin, bert, deform

    def __call__(self, images: Tensor, ids: Tensor, attended: Tensor) -> Output:
        ids, attended = padded(ids, attended, self.model.config)
        maps = self.model.backbone(images)[1:] if self.swin is None else self.swin(images).feature_maps
        levels = fpn(self.model.fpn, tuple(maps))
        head = self.model.head
        if self.bert is None:
            hidden = self.model.text_encoder(ids, attended).hidden
        else:
            hidden = self.bert(ids, attention_mask=attended.long()).last_hidden_state
        embedded = hidden * attended[..., None].to(hidden.dtype)
        if head.prompt is not None:
            hidden, embedded = (x + head.prompt.weight[: x.shape[1]] for x in (hidden, embedded))
        for block in head.blocks:
            if block.fusion is not None:
                levels, hidden = fusion(block.fusion, levels, hidden, attended)
                hidden = text_layer(block.text_layer, hidden, attended)
            levels = dynamic_conv(block.dynamic_conv, levels, self.deform)
        return predictions(head, levels, hidden if head.blocks[0].fusion is not None else embedded)
