"""The keys and shapes of an official state dict, from the settings that decide them.

Written down from the modules of maskrcnn_benchmark, class by class; buffers that the table can do without are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests import DATA

Named = Iterator[tuple[str, tuple[int, ...]]]

ZOO = json.loads((DATA / "zoo" / "settings.json").read_text())
DECIDED = {  # what has one value in all of them, and whose other values make other modules
    "META_ARCHITECTURE": "GeneralizedVLRCNN", "RPN_ONLY": True, "RPN.ASPECT_RATIOS": [1.0], "RPN.SCALES_PER_OCTAVE": 1,
    "SWINT.MLP_RATIO": 4, "DYHEAD.FUSE_CONFIG.JOINT_EMB_SIZE": 256, "SWINT.VERSION": "v1",
    "SWINT.APE": False, "SWINT.OUT_NORM": True, "SWINT.LAYER_SCALE": 0,
    "BACKBONE.CONV_BODY": "SWINT-FPN-RETINANET", "LANGUAGE_BACKBONE.MODEL_TYPE": "bert-base-uncased",
    "FPN.USE_GN": False, "FPN.USE_SPP": False, "FPN.USE_PAN": False, "FPN.USE_DYHEAD": False, "FPN.USE_DYRELU": False,
    "RPN_ARCHITECTURE": "VLDYHEAD", "DYHEAD.CONV_FUNC": "", "DYHEAD.COSINE_SCALE": -1.0, "DYHEAD.USE_GN": True,
    "DYHEAD.USE_DYRELU": True, "DYHEAD.USE_DFCONV": True, "DYHEAD.USE_DYFUSE": True,
    "DYHEAD.FUSE_CONFIG.TYPE": "MHA-B", "DYHEAD.FUSE_CONFIG.USE_DOT_PRODUCT_TOKEN_LOSS": True,
    "DYHEAD.FUSE_CONFIG.USE_TOKEN_LOSS": False, "DYHEAD.FUSE_CONFIG.USE_CONTRASTIVE_ALIGN_LOSS": False,
    "DYHEAD.FUSE_CONFIG.USE_SHALLOW_CONTRASTIVE_LOSS": False,
    "DYHEAD.FUSE_CONFIG.USE_BACKBONE_SHALLOW_CONTRASTIVE_LOSS": False,
    "DYHEAD.FUSE_CONFIG.SEPARATE_BIDIRECTIONAL": False,
}  # fmt: skip


def settings_of(config: str) -> dict[str, Any]:
    """Every setting that decides a name or a shape, of one of the recorded configurations."""
    settings: dict[str, Any] = {**ZOO["common"], **ZOO["configs"][config]["settings"]}
    return settings


def official_names(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of the model that the settings make. Raises AssertionError for settings of modules that are not written down."""
    assert {name: settings[name] for name in DECIDED} == DECIDED
    return {f"module.{name}": shape for part in (_swin, _fpn, _bert, _head) for name, shape in part(settings)}


def _linear(name: str, out: int, *given: int) -> Named:
    yield from ((f"{name}.weight", (out, *given)), (f"{name}.bias", (out,)))


def _swin(settings: Mapping[str, Any]) -> Named:
    body, width, window = "backbone.body", settings["SWINT.EMBED_DIM"], settings["SWINT.WINDOW_SIZE"]
    yield from _linear(f"{body}.patch_embed.proj", width, 3, 4, 4)
    yield from _linear(f"{body}.patch_embed.norm", width)
    for stage, (depth, heads) in enumerate(zip(settings["SWINT.DEPTHS"], settings["SWINT.NUM_HEADS"], strict=True)):
        c = width * 2**stage
        for block in range(depth):
            at = f"{body}.layers.{stage}.blocks.{block}"
            yield f"{at}.attn.relative_position_bias_table", ((2 * window - 1) ** 2, heads)
            for name, *shape in (("norm1", c), ("norm2", c), ("attn.qkv", 3 * c, c), ("attn.proj", c, c),
                                 ("mlp.fc1", 4 * c, c), ("mlp.fc2", c, 4 * c)):  # fmt: skip
                yield from _linear(f"{at}.{name}", *shape)
        if stage < 3:
            yield f"{body}.layers.{stage}.downsample.reduction.weight", (2 * c, 4 * c)
            yield from _linear(f"{body}.layers.{stage}.downsample.norm", 4 * c)
        if stage:
            yield from _linear(f"{body}.norm{stage}", c)


def _fpn(settings: Mapping[str, Any]) -> Named:
    out = settings["BACKBONE.OUT_CHANNELS"]
    for level in (2, 3, 4):
        yield from _linear(f"backbone.fpn.fpn_inner{level}", out, settings["SWINT.EMBED_DIM"] * 2 ** (level - 1), 1, 1)
        yield from _linear(f"backbone.fpn.fpn_layer{level}", out, out, 3, 3)
    for name in ("p6", "p7"):
        yield from _linear(f"backbone.fpn.top_blocks.{name}", out, out, 3, 3)


def _bert(settings: Mapping[str, Any]) -> Named:
    model = "language_backbone.body.model"
    for name, rows in (("word", 30522), ("position", 512), ("token_type", 2)):
        yield f"{model}.embeddings.{name}_embeddings.weight", (rows, 768)
    yield from _linear(f"{model}.embeddings.LayerNorm", 768)
    for layer in range(12):
        yield from _bert_layer(f"{model}.encoder.layer.{layer}")


def _bert_layer(at: str) -> Named:
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        yield from _linear(f"{at}.attention.{name}", 768, 768)
    yield from _linear(f"{at}.attention.output.LayerNorm", 768)
    yield from _linear(f"{at}.intermediate.dense", 3072, 768)
    yield from _linear(f"{at}.output.dense", 768, 3072)
    yield from _linear(f"{at}.output.LayerNorm", 768)


def _head(settings: Mapping[str, Any]) -> Named:
    head, c, text = "rpn.head", settings["DYHEAD.CHANNELS"], settings["LANGUAGE_BACKBONE.LANG_DIM"]
    fuse = {name.rpartition(".")[2]: value for name, value in settings.items() if ".FUSE_CONFIG." in name}
    blocks, layer = settings["DYHEAD.NUM_CONVS"], 0
    for block in range(blocks):
        if fuse["EARLY_FUSE_ON"]:
            yield from _fusion(f"{head}.dyhead_tower.{layer}.b_attn", c, text)
            if block < blocks - 1 or fuse["USE_FUSED_FEATURES_DOT_PRODUCT"]:
                yield from _bert_layer(f"{head}.dyhead_tower.{layer + 1}")
            layer += 2
        yield from _dynamic_convolution(f"{head}.dyhead_tower.{layer}", c)
        layer += 1
    for name, channels in (("cls_logits", settings["DYHEAD.NUM_CLASSES"] - 1), ("bbox_pred", 4), ("centerness", 1)):
        yield from _linear(f"{head}.{name}", channels, c, 1, 1)
    yield from _linear(f"{head}.dot_product_projection_text", c, text)
    yield from ((f"{head}.log_scale", (1,)), (f"{head}.bias0", (1,)), (f"{head}.bias_lang", (text,)))
    yield from ((f"{head}.scales.{level}.scale", (1,)) for level in range(5))
    if fuse["MLM_LOSS"]:
        yield f"{head}.mlm_head.bias", (30522,)
        yield from _linear(f"{head}.mlm_head.transform.dense", text, text)
        yield from _linear(f"{head}.mlm_head.transform.LayerNorm", text)
        yield from _linear(f"{head}.mlm_head.decoder", 30522, text)
    if fuse["ADD_LINEAR_LAYER"]:
        yield "rpn.tunable_linear.weight", (1000, text)


def _fusion(at: str, c: int, text: int) -> Named:
    yield from ((f"{at}.gamma_v", (c,)), (f"{at}.gamma_l", (text,)))
    for name, *shape in (("layer_norm_v", c), ("layer_norm_l", text), ("attn.v_proj", 2048, c),
                         ("attn.l_proj", 2048, text), ("attn.values_v_proj", 2048, c),
                         ("attn.values_l_proj", 2048, text), ("attn.out_v_proj", c, 2048),
                         ("attn.out_l_proj", text, 2048)):  # fmt: skip
        yield from _linear(f"{at}.{name}", *shape)


def _dynamic_convolution(at: str, c: int) -> Named:
    for branch in range(3):
        yield from _linear(f"{at}.DyConv.{branch}.conv", c, c, 3, 3)
        yield from _linear(f"{at}.DyConv.{branch}.bn", c)
    yield from _linear(f"{at}.AttnConv.1", 1, c, 1, 1)
    yield from _linear(f"{at}.relu.fc.0", c // 4, c)
    yield from _linear(f"{at}.relu.fc.2", 4 * c, c // 4)
    yield from _linear(f"{at}.offset", 27, c, 3, 3)
