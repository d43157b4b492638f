"""MMPretrain's Swin of GLIP loads what we write for it and gives the maps of the in-house backbone."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests import DATA
from tests.peers.comparison import Results, images, load, needs, poison, relative_error, signature
from tests.peers.conversion import Official
from tests.peers.openmmlab import backbone
from tests.peers.packages import package

pytestmark = needs("mmpretrain", "mmengine", "mmcv")

KEYS = DATA / "peers"
MODELS = ["glip-t", "glip-l"]
SIZES = [("glip-t", (224, 224)), ("glip-t", (200, 333)), ("glip-l", (384, 384))]

with_sizes = pytest.mark.parametrize(("official", "size"), SIZES, indirect=["official"], scope="session")
with_models = pytest.mark.parametrize("official", MODELS, indirect=True, scope="session")


@pytest.fixture(scope="module")
def net(official: Official) -> nn.Module:
    return load(backbone(official.name, pad_small_map=True), official.converted("mmpretrain-glip"))


@pytest.mark.parametrize("model", MODELS)
def test_its_names_and_shapes_are_the_recorded_ones(model: str) -> None:
    assert signature(backbone(model)) == json.loads((KEYS / f"mmpretrain_{model[5:]}.json").read_text())


@with_sizes
def test_the_three_maps_are_ours(official: Official, size: tuple[int, int], net: nn.Module, results: Results) -> None:
    x = images(1, 3, *size)
    results.equal(
        "mmpretrain",
        "(pad_small_map=True)",
        official.name,
        f"C3 to C5 at {size[0]}x{size[1]}",
        net.extract_feat(x),
        official.glip.extract_feat(x),
    )


@with_sizes
def test_by_default_it_does_not_shift_the_windows_of_a_small_map(
    official: Official, size: tuple[int, int], net: nn.Module, results: Results
) -> None:
    """Why it has to be built with pad_small_map=True: only the last map is as small as a window here."""
    x = images(1, 3, *size)
    default = backbone(official.name).double()
    default.load_state_dict(net.state_dict(), strict=True)
    found, expected = default.extract_feat(x), official.glip.extract_feat(x)
    errors = [relative_error(*pair) for pair in zip(found, expected, strict=True)]
    largest = float((found[2] - expected[2]).abs().max())
    compared = f"C5 at {size[0]}x{size[1]}: differs, by up to {largest:.2f}"
    results.note("mmpretrain", "(as it comes)", official.name, compared, errors[2])
    assert max(errors[:2]) < 1e-10
    assert errors[2] > 1e-2


@with_models
def test_mmengine_loads_the_pth_itself(official: Official, net: nn.Module) -> None:
    other = backbone(official.name)
    poison(other)
    path = official.converted_pth("mmpretrain-glip")
    package("mmengine.runner").load_checkpoint(other, str(path), map_location="cpu", strict=True)
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor.double(), net.state_dict()[key].double()), key
