"""Models by name: the same numbers as GLIP's own, from weights of any format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from converter.errors import ConverterError, ModelError, PlanError
from converter.glip import GLIP, GLIPConfig, zoo
from converter.mapping.spec import load_spec
from converter.planning.formats import make_route
from tests.support.hub.server import HubServer
from tests.support.small_formats import FORMATS, SIZES, execute, hub_weights, small_tables

NAME = "swin-t_glip-pre_3rdparty"


@pytest.fixture
def small_names(tmp_path: Path) -> Iterator[None]:
    """The zoo's GLIP-T has the small sizes."""
    with small_tables(tmp_path / "mappings", "glip-t"):
        yield


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


@pytest.mark.parametrize("called", [NAME, "glip-t"])
@pytest.mark.parametrize("name", ["glip-official", "mmdet-glip", "mmpretrain-glip", "transformers-swin-backbone"])
def test_features_are_those_of_glip_whatever_the_format(
    called: str, name: str, tmp_path: Path, small_names: None
) -> None:
    path = saved(name, tmp_path)
    if called == "glip-t" and name not in ("glip-official", "mmdet-glip"):
        with pytest.raises(ConverterError, match=f"{name}.*(holds|does not hold)"):
            zoo.get_model(called, pretrained=path)
        return
    model = zoo.get_model(called, pretrained=path)
    images = torch.randn(2, 3, 37, 50)
    with torch.inference_mode():
        expected = reference().extract_feat(images)
        for found in (model(images), model.extract_feat(images)):
            assert isinstance(found, tuple)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_weights_of_several_dtypes_are_loaded_in_float32(tmp_path: Path, small_names: None) -> None:
    """Also where some that are joined are in half precision."""
    path = saved("glip-official", tmp_path)
    weights = torch.load(path)
    halved = [name for name in weights if ".query." in name]
    assert halved
    torch.save(weights | {name: weights[name].half() for name in halved}, path)
    found = zoo.get_model("glip-t", pretrained=path)
    torch.save(weights | {name: weights[name].half().float() for name in halved}, path)
    expected = zoo.get_model("glip-t", pretrained=path)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_a_whole_glip_reads_text_too(tmp_path: Path, small_names: None) -> None:
    model = zoo.get_model("glip-t", pretrained=saved("mmdet-glip", tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference().parameters(), strict=True))
    images, ids = torch.randn(2, 3, 64, 64), torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.inference_mode():
        found, expected = (m(images, ids, torch.ones_like(ids)) for m in (model, reference()))
    assert all(torch.equal(a, b) for a, b in zip(found.token_logits, expected.token_logits, strict=True))
    with pytest.raises(ModelError, match="give both input_ids"):
        model(images, ids)


def test_the_format_can_be_stated(tmp_path: Path, small_names: None) -> None:
    path = saved("mmpretrain-glip", tmp_path)
    assert zoo.get_model(NAME, pretrained=path, source="mmpretrain-glip")
    with pytest.raises(PlanError, match="timm-swin"):
        zoo.get_model(NAME, pretrained=path, source="timm-swin")


def test_weights_come_from_the_hub(
    tmp_path: Path, small_names: None, running: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    running.reset(tmp_path / "hub")
    running.storage.create("org/swin", False, "org")
    running.push("org/swin", {"weights.pth": saved("mmpretrain-glip", tmp_path).read_bytes()})
    model = zoo.get_model(NAME, pretrained="hf://org/swin/weights.pth@main")
    assert torch.equal(next(model.parameters()), next(reference().backbone.parameters()))


def test_weights_without_all_norms_are_not_the_image_encoder(tmp_path: Path, small_names: None) -> None:
    with pytest.raises(ModelError, match=r"timm-swin does not hold backbone.norms.0.bias"):
        zoo.get_model(NAME, pretrained=saved("timm-swin", tmp_path), source="timm-swin")


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
