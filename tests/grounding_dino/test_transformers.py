"""Faults of transformers' Grounding DINO, each with the smallest input that shows it: once one is gone, this tells.

docs/families/grounding-dino.md says what they are.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from converter.grounding_dino.family import FAMILY
from tests.support.random_grounding_dino import small_grounding_dino


def given(tokens: int) -> dict[str, Any]:
    """A picture and a caption of so many tokens."""
    model = small_grounding_dino(torch.float32)
    sample = FAMILY.sample_inputs(FAMILY.config(model)).tensors
    ids = torch.full((1, tokens), 7)
    ids[0, 0], ids[0, -2], ids[0, -1] = 101, 1012, 102
    return {"model": model, "pixel_values": sample["pixel_values"][:1], "input_ids": ids}


@torch.no_grad()
def run(model: Any, **inputs: Any) -> Any:
    return model(**inputs)


def test_a_caption_of_more_than_256_tokens_is_cut_by_the_model_and_not_by_its_head() -> None:
    assert run(**given(256)).logits.shape[2] == 256
    longer = given(257)
    assert run(**{**longer, "model": longer["model"].model}).last_hidden_state.isfinite().all()
    with pytest.raises(RuntimeError, match="257"):
        run(**longer)


def test_what_the_selected_proposals_are_said_to_score_does_not_depend_on_the_picture() -> None:
    inputs = given(6)
    one = run(**inputs)
    other = run(**{**inputs, "pixel_values": -inputs["pixel_values"]})
    assert torch.equal(one.encoder_logits, other.encoder_logits)
    assert not torch.equal(one.logits, other.logits)
