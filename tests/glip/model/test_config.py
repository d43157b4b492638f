"""What a configuration accepts, and what it says otherwise."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from converter.errors import ModelError
from converter.glip import GLIPConfig
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
