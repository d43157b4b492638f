"""A model with an adapter of the real PEFT converts to what PEFT's own merging makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.peers.comparison import needs
from tests.peers.conversion import convert
from tests.peers.packages import package, unheard

pytestmark = needs("peft", "transformers")

SAVED: dict[str, Callable[[Any], Any]] = {
    "state dict and its config": lambda model: {"model": model.state_dict(), "peft_config": model.peft_config},
    "state dict and its config as a dict": lambda model: {
        "state_dict": model.state_dict(),
        "peft_config": {name: config.to_dict() for name, config in model.peft_config.items()},
    },
    "the model itself": lambda model: model,
}


def adapted() -> Any:
    """BERT base with an adapter around three kinds of layers; PEFT begins with B = 0, which would add nothing."""
    bert, peft = package("transformers.models.bert.modeling_bert"), package("peft")
    config = package("transformers").BertConfig()
    torch.manual_seed(0)
    with unheard():
        model = peft.get_peft_model(
            bert.BertModel(config, add_pooling_layer=False),
            peft.LoraConfig(r=8, lora_alpha=20, target_modules=["query", "value", "dense"]),
        )
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


@pytest.mark.parametrize("saved", SAVED)
def test_what_is_merged_is_what_peft_merges(saved: str, tmp_path: Path) -> None:
    with torch.inference_mode(False), torch.no_grad():
        model = adapted()
        base = {name: tensor.clone() for name, tensor in model.get_base_model().state_dict().items()}
        torch.save(SAVED[saved](model), tmp_path / "adapted.pth")
        expected = model.merge_and_unload().state_dict()
    own = convert(tmp_path / "adapted.pth", tmp_path / "own.safetensors")
    found = load_file(convert(own, tmp_path / "merged.safetensors", "--to", "transformers-bert"))
    assert found.keys() == expected.keys()
    changed = 0
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= 1e-6, name
        own_weight = base.get(f"{name.removesuffix('weight')}base_layer.weight")
        changed += own_weight is not None and float((own_weight - tensor).abs().max()) > 1e-3
    assert changed == 12 * 5  # query, value and three dense layers in each of 12
