"""A small model, the same with a fault, and a capture of it, as files; each is made once for a file of tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.saved_glip import save, saved_glip
from tests.support.small_capture import write
from tests.support.small_glip import small_glip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_glip(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of which one block has query and key exchanged."""
    model = small_glip()
    with torch.no_grad():
        weight = model.text_encoder.layers[1].attention.qkv.weight
        q, k, v = weight.chunk(3)
        weight.copy_(torch.cat([k, q, v]))
    return save(model, tmp_path_factory.mktemp("wrong") / "small.safetensors")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("capture") / "small.safetensors")
