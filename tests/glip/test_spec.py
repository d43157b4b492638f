"""The spec is data about the model; the model on the meta device must agree, for every variant and option."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from converter.glip import GLIP, GLIPConfig
from converter.mapping.spec import Variant, load_spec

SPEC = load_spec("glip")


@pytest.mark.parametrize("variant", SPEC.variants, ids=lambda v: v.name)
@pytest.mark.parametrize("prompt_length", [0, 1000])
def test_the_spec_is_the_models_state_dict(variant: Variant, prompt_length: int) -> None:
    config = {**variant.config, "prompt_length": prompt_length}
    with torch.device("meta"):
        model = GLIP(GLIPConfig(**config))
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == SPEC.tensors(config)


def test_the_config_has_the_same_fields() -> None:
    fields = [field.name for field in dataclasses.fields(GLIPConfig)]
    assert sorted(fields) == sorted(SPEC.variants[0].config)
