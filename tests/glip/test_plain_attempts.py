"""What people try first to keep a model: what can be read is read, and for the rest one sentence says what to call."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from converter.errors import ModelError, PlanError
from converter.glip import GLIP, GLIPConfig
from tests.support.small_formats import SIZES
from tests.support.small_glip import CONFIG, small_config, small_glip


@pytest.fixture
def known(small_mappings: None) -> GLIP:
    """A model of a known variant."""
    torch.manual_seed(0)
    return GLIP(GLIPConfig(**SIZES)).eval()


def in_folder(model: GLIP, folder: Path, *, with_config: bool) -> Path:
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    if with_config:
        (folder / "config.json").write_text(json.dumps(asdict(model.config)))
    return folder


def as_file(model: GLIP, path: Path, **metadata: str) -> Path:
    save_file(model.state_dict(), path, metadata)
    return path


def by_torch(what: object, path: Path) -> Path:
    torch.save(what, path)
    return path


Attempt = Callable[[GLIP, Path], Path]
WITHOUT_SIZES: dict[str, Attempt] = {
    "save_file": lambda model, at: as_file(model, at / "x.safetensors"),
    "torch.save of the state dict": lambda model, at: by_torch(model.state_dict(), at / "x.pth"),
    "torch.save of the model": lambda model, at: by_torch(model, at / "x.pth"),
    "a trainer's file": lambda model, at: by_torch({"model": model.state_dict(), "epoch": 3}, at / "x.pth"),
    "behind the prefix of DDP": lambda model, at: by_torch(
        {f"module.{name}": value for name, value in model.state_dict().items()}, at / "x.pth"
    ),
    "behind the prefix of compile": lambda model, at: by_torch(
        {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}, at / "x.pth"
    ),
    "a folder": lambda model, at: in_folder(model, at / "x", with_config=False),
}
WITH_SIZES: dict[str, Attempt] = {
    "asdict beside it": lambda model, at: in_folder(model, at / "x", with_config=True),
    "asdict in it": lambda model, at: as_file(model, at / "x.safetensors", config=json.dumps(asdict(model.config))),
    "to_dict in it": lambda model, at: as_file(model, at / "x.safetensors", config=json.dumps(model.config.to_dict())),
}


@pytest.mark.parametrize("attempt", WITHOUT_SIZES | WITH_SIZES)
def test_a_model_of_a_known_variant_is_read(known: GLIP, attempt: str, tmp_path: Path) -> None:
    found = GLIP.from_pretrained((WITHOUT_SIZES | WITH_SIZES)[attempt](known, tmp_path))
    assert found.config == known.config
    assert all(torch.equal(value, known.state_dict()[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize("attempt", WITH_SIZES)
def test_sizes_that_are_stated_may_be_any(attempt: str, tmp_path: Path) -> None:
    model = small_glip(torch.float32)
    assert GLIP.from_pretrained(WITH_SIZES[attempt](model, tmp_path)).config == small_config()


@pytest.mark.parametrize("attempt", WITHOUT_SIZES)
def test_sizes_that_nobody_states_are_asked_for_in_one_sentence(attempt: str, tmp_path: Path) -> None:
    path = WITHOUT_SIZES[attempt](small_glip(torch.float32), tmp_path)
    with pytest.raises(PlanError, match=r"sizes those of no known variant.*Save the model with its save_pretrained"):
        GLIP.from_pretrained(path)


def test_a_file_of_a_saved_folder_leads_to_the_folder(tmp_path: Path) -> None:
    small_glip(torch.float32).save_pretrained(tmp_path / "saved")
    with pytest.raises(PlanError, match="give the folder that it writes, not a file in it"):
        GLIP.from_pretrained(tmp_path / "saved" / "model.safetensors")


@pytest.mark.parametrize(
    ("attempt", "cure"),
    [
        (lambda: GLIP.from_pretrained("glip-t-a"), r"is the name of a model.*get_model\('glip-t-a'\)"),
        (lambda: GLIP.from_pretrained("glip-t-b"), r"is the name of a model"),
        (lambda: GLIP("glip-t-a"), r"found str.*GLIP\.from_pretrained\(path\).*get_model"),
        (lambda: GLIP(CONFIG), r"found dict.*GLIP\(GLIPConfig\.from_dict\(values\)\)"),
        (lambda: small_glip().load_state_dict({"module.backbone.body.x": torch.zeros(1)}), "GLIP.from_pretrained"),
        (lambda: small_glip().load_state_dict({"model": {}}), r"none of its 1 names.*\('model' is the first\)"),
        (lambda: small_glip().load_state_dict({"model": {}}, strict=False), "none of its 1 names"),
    ],
)
def test_what_cannot_be_says_what_to_call(attempt: Callable[[], object], cure: str) -> None:
    with pytest.raises(ModelError, match=cure):
        attempt()


def test_a_model_can_be_copied_pickled_and_loaded_as_any_module(tmp_path: Path) -> None:
    small_glip(torch.float32).save_pretrained(tmp_path / "saved")
    model = GLIP.from_pretrained(tmp_path / "saved")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.save_pretrained(tmp_path / "again", force=True)
        assert (tmp_path / "again/conversion.json").read_bytes() == (tmp_path / "saved/conversion.json").read_bytes()
    fresh = GLIP(model.config)
    assert fresh.load_state_dict(model.state_dict()).missing_keys == []
    assert torch.equal(fresh.head.bias, model.head.bias)
