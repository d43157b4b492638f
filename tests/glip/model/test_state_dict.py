"""The names and shapes of the state dict: the contract that conversion tables are written against."""

from __future__ import annotations

import torch

from converter.glip import GLIP
from tests.support.small_glip import small_config

LINEAR = ("weight", "bias")


def expected_names(fusion: bool, prompt: bool) -> set[str]:
    """Spelled out from the contract, for the small config: depths 1, 2, 2, 1; two text layers; two blocks."""
    modules = ["backbone.patch_embed.projection", "backbone.patch_embed.norm"]
    names = set()
    for stage, depth in enumerate((1, 2, 2, 1)):
        for block in range(depth):
            at = f"backbone.stages.{stage}.blocks.{block}"
            parts = ("norm1", "attention.qkv", "attention.projection", "norm2", "mlp.fc1", "mlp.fc2")
            modules += [f"{at}.{part}" for part in parts]
            names.add(f"{at}.attention.relative_position_bias_table")
        if stage < 3:
            modules.append(f"backbone.stages.{stage}.downsample.norm")
            names.add(f"backbone.stages.{stage}.downsample.reduction.weight")
    for n in range(3):
        modules += [f"backbone.norms.{n}", f"fpn.lateral.{n}", f"fpn.output.{n}"]
    modules += ["fpn.p6", "fpn.p7", "text_encoder.embeddings.norm"]
    names |= {f"text_encoder.embeddings.{part}.weight" for part in ("word", "position", "token_type")}
    layer = ("attention.qkv", "attention.projection", "attention.norm", "mlp.fc1", "mlp.fc2", "mlp.norm")
    modules += [f"text_encoder.layers.{n}.{part}" for n in range(2) for part in layer]
    for block in range(2):
        at = f"head.blocks.{block}"
        if fusion:
            modules += [f"{at}.text_layer.{part}" for part in layer]
            parts = ("image_norm", "text_norm", "image_query", "text_key", "image_value", "text_value")
            modules += [f"{at}.fusion.{part}" for part in (*parts, "image_output", "text_output")]
            names |= {f"{at}.fusion.image_layer_scale", f"{at}.fusion.text_layer_scale"}
        at += ".dynamic_conv"
        modules += [f"{at}.{part}" for part in ("offset", "level_attention", "dyrelu.fc1", "dyrelu.fc2")]
        modules += [f"{at}.{part}.{kind}" for part in ("coarser", "same", "finer") for kind in ("conv", "norm")]
    modules += ["head.text_projection", "head.box", "head.centerness"]
    names |= {"head.text_bias", "head.bias", "head.log_scale", "head.box_scale"}
    if prompt:
        names.add("head.prompt.weight")
    return names | {f"{module}.{kind}" for module in modules for kind in LINEAR}


def meta_glip(**changes: object) -> GLIP:
    with torch.device("meta"):
        return GLIP(small_config(**changes))


def test_names_with_fusion() -> None:
    assert set(meta_glip().state_dict()) == expected_names(fusion=True, prompt=False)


def test_names_without_fusion() -> None:
    assert set(meta_glip(fusion=False).state_dict()) == expected_names(fusion=False, prompt=False)


def test_names_with_prompt_tuning() -> None:
    assert set(meta_glip(prompt_length=300).state_dict()) == expected_names(fusion=True, prompt=True)


def test_everything_in_the_state_dict_is_a_parameter() -> None:
    model = meta_glip()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert not list(model.buffers())


def test_shapes_that_conversion_produces() -> None:
    shapes = {name: tuple(value.shape) for name, value in meta_glip(prompt_length=300).state_dict().items()}
    block = "head.blocks.1"
    assert {
        "backbone.stages.1.blocks.0.attention.qkv.weight": (48, 16),
        "backbone.stages.1.blocks.0.attention.relative_position_bias_table": (25, 2),
        "backbone.stages.1.downsample.reduction.weight": (32, 64),
        "backbone.norms.2.weight": (64,),
        "fpn.lateral.0.weight": (32, 16, 1, 1),
        "fpn.p7.weight": (32, 32, 3, 3),
        "text_encoder.layers.0.attention.qkv.weight": (72, 24),
        "head.prompt.weight": (300, 24),
        f"{block}.fusion.image_layer_scale": (32,),
        f"{block}.fusion.text_layer_scale": (24,),
        f"{block}.fusion.image_query.weight": (48, 32),
        f"{block}.fusion.text_key.weight": (48, 24),
        f"{block}.fusion.image_value.weight": (48, 32),
        f"{block}.fusion.text_value.weight": (48, 24),
        f"{block}.fusion.image_output.weight": (32, 48),
        f"{block}.fusion.text_output.weight": (24, 48),
        f"{block}.dynamic_conv.offset.weight": (27, 32, 3, 3),
        f"{block}.dynamic_conv.coarser.conv.weight": (32, 32, 3, 3),
        f"{block}.dynamic_conv.level_attention.weight": (1, 32, 1, 1),
        f"{block}.dynamic_conv.dyrelu.fc1.weight": (8, 32),
        f"{block}.dynamic_conv.dyrelu.fc2.weight": (128, 8),
        "head.text_projection.weight": (32, 24),
        "head.text_bias": (24,),
        "head.bias": (1,),
        "head.log_scale": (1,),
        "head.box.weight": (4, 32, 1, 1),
        "head.box_scale": (5,),
        "head.centerness.weight": (1, 32, 1, 1),
    }.items() <= shapes.items()
