"""Models by name: the same numbers as GLIP's own, from weights of any format."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_formats import FORMATS, SIZES, execute, hub_weights

from converter import zoo
from converter.errors import ModelError
from converter.formats import make_route
from converter.mapping.spec import load_spec
from converter.model import GLIP, GLIPConfig

NAME = "swin-t_glip-pre_3rdparty"


@pytest.fixture
def small_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoo's GLIP-T has the small sizes."""
    variant = SimpleNamespace(config=SIZES, name="glip-t", also=(), title="small")
    spec = FORMATS["glip"].spec
    small = SimpleNamespace(
        name=spec.name, parts=spec.parts, variants=spec.variants, variant=lambda name: variant, part="",
        optional={}, entries=spec.entries, sha256="", title="", label="glip", holds=lambda name: True,
        options=(), tensors=spec.tensors, dtypes=spec.dtypes,
    )  # fmt: skip
    monkeypatch.setattr(zoo, "load_spec", lambda name: small)
    monkeypatch.setattr(zoo, "model_names", lambda: [NAME, "glip-t"])


def saved(name: str, folder: Path) -> Path:
    weights = hub_weights()
    made = execute(make_route(FORMATS["glip"], FORMATS[name], weights), weights)
    path = folder / f"{name}.pth"
    torch.save({n: torch.from_numpy(a.copy()) for n, a in made.arrays.items()}, path)
    return path


def reference() -> GLIP:
    model = GLIP(GLIPConfig(**SIZES))
    model.load_state_dict({n: torch.from_numpy(a) for n, a in hub_weights().arrays.items()})
    return model.eval()


@pytest.mark.parametrize("name", ["glip-official", "mmdet-glip", "mmpretrain-glip", "transformers-swin-backbone"])
def test_features_are_those_of_glip_whatever_the_format(
    name: str, tmp_path: Path, small_names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "recognise", lambda checkpoint, spec: FORMATS[name])
    model = zoo.get_model(NAME, pretrained=saved(name, tmp_path))
    images = torch.randn(2, 3, 37, 50)
    with torch.inference_mode():
        expected = reference().extract_feat(images)
        for found in (model(images), model.extract_feat(images)):
            assert isinstance(found, tuple)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_whole_glip_comes_from_any_whole_format(
    tmp_path: Path, small_names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "recognise", lambda checkpoint, spec: FORMATS["mmdet-glip"])
    model = zoo.get_model("glip-t", pretrained=saved("mmdet-glip", tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference().parameters(), strict=True))


def test_weights_without_all_norms_are_not_the_image_encoder(
    tmp_path: Path, small_names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "recognise", lambda checkpoint, spec: FORMATS["timm-swin"])
    with pytest.raises(ModelError, match=r"timm-swin does not hold backbone.norms.0.bias"):
        zoo.get_model(NAME, pretrained=saved("timm-swin", tmp_path))


def test_pad_small_map_false_is_what_mmpretrain_does_by_default() -> None:
    config = GLIPConfig(**SIZES)  # windows of 3, so the last map of 48 pixels is one window
    as_glip = zoo.ImageEncoder(config)
    as_mmpretrain = zoo.ImageEncoder(config, pad_small_map=False)
    with torch.no_grad():
        for parameter in as_glip.parameters():
            parameter.normal_()
        as_mmpretrain.load_state_dict(as_glip.state_dict())
    with torch.inference_mode():
        images = torch.randn(1, 3, 48, 48)
        pairs = list(zip(as_glip(images), as_mmpretrain(images), strict=True))
        assert [torch.equal(a, b) for a, b in pairs] == [True, True, False]
        larger = torch.randn(1, 3, 80, 64)
        assert all(torch.equal(a, b) for a, b in zip(as_glip(larger), as_mmpretrain(larger), strict=True))
        with pytest.raises(ModelError, match="smaller than the window"):
            as_mmpretrain(torch.ones(1, 3, 48, 32))


def test_names_and_mistakes() -> None:
    assert {NAME, "swin-l_glip-pre_3rdparty_384px", "glip-t-a", "glip-t-b", "glip-t-c", "glip-t", "glip-l"} == set(
        zoo.model_names()
    )
    with pytest.raises(ModelError, match=f"Did you mean '{NAME}'"):
        zoo.get_model("swin-t_glip-pre")
    with pytest.raises(ModelError, match="MMPretrain's"):
        zoo.get_model("glip-t", pad_small_map=False)
    assert load_spec("glip").variant("glip-t-b").name == "glip-t"


def test_without_weights_the_full_size_shapes_are_mmpretrains() -> None:
    model = zoo.get_model(NAME)
    with torch.inference_mode():
        maps = model(torch.zeros(1, 3, 224, 224))
    assert [tuple(m.shape) for m in maps] == [(1, 192, 28, 28), (1, 384, 14, 14), (1, 768, 7, 7)]
    assert not model.training
