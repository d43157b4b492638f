"""What a configuration accepts, and what it says otherwise."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from converter.errors import ModelError
from converter.glip import GLIPConfig
from converter.mapping.spec import load_spec
from tests.support.small_glip import CONFIG, small_config


def test_a_config_survives_json() -> None:
    config = small_config()
    assert GLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_to_dict_holds_exactly_the_values_it_was_made_from() -> None:
    assert small_config().to_dict() == CONFIG


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_config().__setattr__("channels", 32)


def test_unknown_and_missing_fields_are_named_together() -> None:
    values = {**CONFIG, "dropout": 0}
    del values["fusion"]
    with pytest.raises(ModelError, match=r"unknown fields \['dropout'\] and missing fields \['fusion'\]"):
        GLIPConfig.from_dict(values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embed_dim", "8"),
        ("embed_dim", 8.0),
        ("embed_dim", 0),
        ("embed_dim", True),
        ("fusion", 1),
        ("depths", [1, 2, 2]),
        ("depths", [1, 2, 2, None]),
        ("anchor_sizes", 64),
        ("prompt_length", -1),
        ("num_heads", "1248"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{field} is .*expected"):
        small_config(**{field: value})


# sizes of what is published, all beyond the small model's: each must be possible
# sources: microsoft/Swin-Transformer (configs/swin, configs/swinv2; Swin V2-G: arXiv:2111.09883), google-research/bert,
# timm/models/swin_transformer.py and swin_transformer_v2.py, arXiv:2112.03857 (GLIP-L)
PUBLISHED: dict[str, dict[str, Any]] = {
    "Swin-T": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4},
    "Swin-L": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
    "Swin-S3-B of timm": {"embed_dim": 96, "depths": [2, 2, 30, 2], "num_heads": [3, 6, 12, 24], "window_size": 14},
    "Swin V2-L at 384": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 24},
    "Swin V2-G": {"embed_dim": 512, "depths": [2, 2, 42, 4], "num_heads": [16, 32, 64, 128], "window_size": 24},
    "BERT large": {"text_dim": 1024, "text_layers": 24, "text_heads": 16, "text_mlp_dim": 4096, "max_positions": 512},
    "the vocabulary of Gemma": {"vocab_size": 262_144},
    "GLIP-L": {"head_blocks": 8, "fusion_dim": 2048, "fusion_heads": 8, "channels": 256, "prompt_length": 256},
}


@pytest.mark.parametrize("what", PUBLISHED)
def test_what_is_published_is_possible(what: str) -> None:
    assert small_config(**PUBLISHED[what])


def test_every_variant_is_possible() -> None:
    for variant in load_spec("glip").variants:
        assert GLIPConfig(**variant.config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "most"),
    [("window_size", 64), ("head_blocks", 64), ("text_layers", 64), ("vocab_size", 1 << 19), ("patch_size", 1 << 12),
     ("prompt_length", 1 << 19), ("text_mlp_dim", 1 << 16)],
)  # fmt: skip
def test_sizes_have_bounds(field: str, most: int) -> None:
    assert getattr(small_config(**{field: most}), field) == most
    for beyond in (most + 1, 1 << 62, 10**300):
        with pytest.raises(ModelError, match=f"{field} is .* expected an integer from [01] to {most}") as caught:
            small_config(**{field: beyond})
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": [1, 2, 5, 8]}, r"width of Swin stage 2 \(32\) is not a multiple of num_heads\[2\] \(5\)"),
        ({"text_heads": 5}, r"text_dim \(24\) is not a multiple of text_heads \(5\)"),
        ({"fusion_heads": 5}, r"fusion_dim \(48\) is not a multiple of fusion_heads"),
        ({"channels": 24}, r"channels \(24\) is not a multiple of the number of norm groups \(16\)"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small_config(**changes)
