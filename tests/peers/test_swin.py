"""timm's and transformers' Swin load what we write for them and give the maps of the in-house backbone.

On some inputs, that is, for they compute something else than GLIP on others:
- On a map that is not larger than a window both switch the window shift off. timm built with always_partition=True
  and transformers' SwinBackbone do not.
- timm shifts a map before it pads it to whole windows, GLIP pads it first. So with timm every map has to consist of
  whole windows: sides that are multiples of 224 (windows of 7) or 384 (windows of 12).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.peers.comparison import Results, images, load, needs, relative_error
from tests.peers.conversion import Official
from tests.peers.packages import package

pytestmark = needs("timm", "transformers")

LARGER = {"glip-t": (256, 288), "glip-l": (416, 448)}  # last maps of 8x9 and 13x14, windows of 7 and 12
WHOLE = {"glip-t": (448, 672), "glip-l": (768, 768)}  # maps of whole windows, of 2x3 and 2x2 the last
ONE = {"glip-t": (224, 224), "glip-l": (384, 384)}  # the last map is one window: what the packages' models are for
TIMM = {"glip-t": "swin_tiny_patch4_window7_224", "glip-l": "swin_large_patch4_window12_384"}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "glip-t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "glip-l": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}

with_models = pytest.mark.parametrize("official", list(TIMM), indirect=True, scope="session")


def timm_map(official: Official, size: tuple[int, int], **settings: Any) -> Tensor:
    """timm's last map, (1, C, h, w)."""
    net = package("timm").create_model(TIMM[official.name], num_classes=0, **settings)
    load(net, official.converted("timm-swin"))
    found: Tensor = net.forward_features(images(1, 3, *size)).permute(0, 3, 1, 2)
    return found


def last_map(official: Official, size: tuple[int, int]) -> Tensor:
    """Ours."""
    return official.glip.extract_feat(images(1, 3, *size))[2]


@with_models
def test_timm_on_whole_windows(official: Official, results: Results) -> None:
    size = WHOLE[official.name]
    found, expected = timm_map(official, size, img_size=size), last_map(official, size)
    results.equal("timm", TIMM[official.name], official.name, f"C5 at {size[0]}x{size[1]}", [found], [expected])


@with_models
def test_timm_that_always_shifts_on_a_single_window(official: Official, results: Results) -> None:
    size = ONE[official.name]
    found, expected = timm_map(official, size, always_partition=True), last_map(official, size)
    what = f"{TIMM[official.name]} (always_partition=True)"
    results.equal("timm", what, official.name, f"C5 at {size[0]}x{size[1]}", [found], [expected])


@with_models
@pytest.mark.parametrize("sizes", [ONE, LARGER], ids=["single window", "windows to pad"])
def test_timm_computes_something_else(official: Official, sizes: dict[str, tuple[int, int]], results: Results) -> None:
    size = sizes[official.name]
    error = relative_error(timm_map(official, size, img_size=size), last_map(official, size))
    results.note("timm", TIMM[official.name], official.name, f"C5 at {size[0]}x{size[1]}: differs", error)
    assert error > 1e-2


@with_models
def test_timm_reads_the_released_format_as_its_own(official: Official) -> None:
    """timm's own reading of Microsoft's checkpoints gives of ours what we write for timm."""
    timm = package("timm")
    path = official.converted_pth("swin-original")
    content = torch.load(path, weights_only=True)
    net = timm.create_model(TIMM[official.name], num_classes=0)
    found = timm.models.swin_transformer.checkpoint_filter_fn(content, net)
    expected = official.converted("timm-swin")
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


@with_models
def test_transformers_computes_something_else_on_a_single_window(official: Official, results: Results) -> None:
    swin = package("transformers.models.swin.modeling_swin")
    size = ONE[official.name]
    net = load(swin.SwinModel(swin.SwinConfig(**TRANSFORMERS[official.name])), official.converted("transformers-swin"))
    found = net(images(1, 3, *size)).last_hidden_state
    error = relative_error(found, last_map(official, size).flatten(2).transpose(1, 2))
    results.note("transformers", "SwinModel", official.name, f"C5 at {size[0]}x{size[1]}: differs", error)
    assert error > 1e-2


@with_models
def test_transformers_on_a_map_larger_than_a_window(official: Official, results: Results) -> None:
    swin = package("transformers.models.swin.modeling_swin")

    size = LARGER[official.name]
    net = swin.SwinModel(swin.SwinConfig(**TRANSFORMERS[official.name]))
    load(net, official.converted("transformers-swin"))
    expected = last_map(official, size).flatten(2).transpose(1, 2)
    found = net(images(1, 3, *size)).last_hidden_state
    results.equal("transformers", "SwinModel", official.name, f"C5 at {size[0]}x{size[1]}", [found], [expected])


@with_models
def test_transformers_remembers_a_single_window(official: Official, results: Results) -> None:
    """Once seen, the shift stays off for larger maps."""
    swin = package("transformers.models.swin.modeling_swin")
    net = load(swin.SwinModel(swin.SwinConfig(**TRANSFORMERS[official.name])), official.converted("transformers-swin"))
    size = LARGER[official.name]
    net(images(1, 3, *ONE[official.name]))
    found = net(images(1, 3, *size)).last_hidden_state
    error = relative_error(found, last_map(official, size).flatten(2).transpose(1, 2))
    compared = f"C5 at {size[0]}x{size[1]} after {ONE[official.name][0]}x{ONE[official.name][1]}: differs"
    results.note("transformers", "SwinModel", official.name, compared, error)
    assert error > 1e-2


@with_models
def test_transformers_as_a_backbone_on_any_map(official: Official, results: Results) -> None:
    swin = package("transformers.models.swin.modeling_swin")

    stages = ["stage2", "stage3", "stage4"]
    net = swin.SwinBackbone(swin.SwinConfig(**TRANSFORMERS[official.name], out_features=stages))
    load(net, official.converted("transformers-swin-backbone"))
    for size in (LARGER[official.name], (200, 333)):
        x = images(1, 3, *size)
        results.equal(
            "transformers",
            "SwinBackbone",
            official.name,
            f"C3 to C5 at {size[0]}x{size[1]}",
            net(x).feature_maps,
            official.glip.extract_feat(x),
        )
