"""MMDetection's MM-Grounding-DINO loads what we write for it, and computes what is recorded.

That transformers' class computes the same is tested at full size in tests/grounding_dino: no environment holds both,
since MMDetection 3.3 needs a transformers that does not have it.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.peers.comparison import Results, needs, signature
from tests.peers.mmdet_grounding_dino import CONFIGURATIONS, OUTPUTS, detector, loaded, names, run

pytestmark = [
    *needs("mmdet", "mmengine", "mmcv", "transformers"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:position encoding of key is:UserWarning"),
]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return loaded()


@pytest.mark.parametrize("model", CONFIGURATIONS)
def test_its_names_and_shapes_are_the_recorded_ones(model: str) -> None:
    assert signature(detector(model)) == json.loads(names(model).read_text())


def test_it_computes_what_is_recorded(net: nn.Module, results: Results) -> None:
    found, expected = run(net), load_file(OUTPUTS)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():  # logits of padding are without end
        assert torch.equal(tensor.isfinite(), expected[name].isfinite())
        pair = [[side.masked_fill(side.isinf(), 0)] for side in (tensor, expected[name])]
        results.equal("mmdet", "", "mm-grounding-dino-tiny", f"{name}, as recorded, images 192x256", *pair)
