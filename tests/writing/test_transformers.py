"""What is written for transformers is loaded by its current release, from a folder, and computes the same.

With older releases, and with the other packages, this is done at full size by scripts/peers.sh.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel, SwinBackbone, SwinModel

from converter.glip import GLIP, GLIPConfig
from tests.support.small_files import run
from tests.support.small_formats import FORMATS, SIZES, execute, hub_weights

pytestmark = pytest.mark.usefixtures("small_mappings")
LIMIT = 1e-10  # relative Frobenius, float64: see docs/parity.md


@pytest.fixture
def own(tmp_path: Path) -> GLIP:
    """The small model; its weights are official.pth in the folder."""
    from converter.planning.formats import make_route

    weights = hub_weights()
    made = execute(make_route(FORMATS["glip"], FORMATS["glip-official"], weights), weights)
    torch.save({n: torch.from_numpy(a.copy()) for n, a in made.arrays.items()}, tmp_path / "official.pth")
    model = GLIP(GLIPConfig(**SIZES))
    model.load_state_dict({n: torch.from_numpy(a) for n, a in weights.arrays.items()})
    return model.double().eval()


def loaded(kind: Any, name: str, folder: Path, **options: Any) -> Any:
    """The package's own model from the folder that the command line writes; nothing missing, nothing made up."""
    run("convert", "--src", folder / "official.pth", "--dst", folder / name, "--to", name)
    model, info = kind.from_pretrained(folder / name, output_loading_info=True, local_files_only=True, **options)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert all("relative_position_index" in key for key in info["unexpected_keys"])
    return model.double().eval()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def test_swin_model_gives_the_last_map(own: GLIP, tmp_path: Path) -> None:
    model = loaded(SwinModel, "transformers-swin", tmp_path, add_pooling_layer=False)
    images = torch.randn(2, 3, 96, 112, dtype=torch.float64)
    with torch.inference_mode():
        found = model(images).last_hidden_state
        expected = own.extract_feat(images)[2].flatten(2).transpose(1, 2)
    assert error(found, expected) <= LIMIT


def test_swin_backbone_gives_all_three_maps(own: GLIP, tmp_path: Path) -> None:
    model = loaded(SwinBackbone, "transformers-swin-backbone", tmp_path)
    images = torch.randn(2, 3, 96, 112, dtype=torch.float64)
    with torch.inference_mode():
        pairs = zip(model(images).feature_maps, own.extract_feat(images), strict=True)
        assert max(error(*pair) for pair in pairs) <= LIMIT


def test_bert_model_gives_the_last_layer(own: GLIP, tmp_path: Path) -> None:
    model = loaded(BertModel, "transformers-bert", tmp_path, add_pooling_layer=False, attn_implementation="sdpa")
    ids = torch.tensor([[1, 5, 7, 2, 0, 0], [1, 3, 4, 6, 8, 2]])
    attended = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    with torch.inference_mode():
        found = model(ids, attention_mask=attended).last_hidden_state
        expected = own.text_encoder(ids, attended != 0).hidden
    kept = attended != 0
    assert error(found[kept], expected[kept]) <= LIMIT
