"""Every format becomes every other, whole, from real files of a small GLIP; what fits none is refused."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter.mapping import folders
from tests.support.small_files import equal, official, refusal, run, tensors_in
from tests.support.small_formats import FORMATS, SIZES, hub_weights

pytestmark = pytest.mark.usefixtures("small_mappings")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "glip"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_every_format_is_written_as_its_tools_read_it(name: str, ending: str, tmp_path: Path) -> None:
    torch.save({"model": official()}, tmp_path / "official.pth")
    out = tmp_path / f"out.{ending}"
    result = run("convert", "--src", tmp_path / "official.pth", "--dst", out, "--to", name)
    assert f"from glip-official to {name}" in result.output
    if ending == "pth":
        content = torch.load(out, weights_only=True, mmap=True)
        found = content.get(FORMATS[name].saved_as.root, content)
        assert isinstance(found, OrderedDict)
    else:
        found = load_file(out)
    assert equal(dict(found), dict(tensors_in(name)))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("glip", "glip-official")])
def test_every_format_is_recognised_and_read_from_a_file(name: str, tmp_path: Path) -> None:
    torch.save(tensors_in(name), tmp_path / "source.pth")
    run("convert", "--src", tmp_path / "source.pth", "--dst", tmp_path / "own.safetensors")
    own, hub = load_file(tmp_path / "own.safetensors"), hub_weights().arrays
    assert own
    assert all(np.array_equal(array.numpy(), hub[key]) for key, array in own.items())


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_stated_dtype_holds_for_weights_and_not_for_indices(dtype: str, tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    out = tmp_path / "out.pth"
    run("convert", "--src", tmp_path / "official.pth", "--dst", out, "--to", "mmpretrain-glip", "--dtype", dtype)
    for name, tensor in torch.load(out, weights_only=True)["state_dict"].items():
        assert tensor.dtype == (torch.int64 if name.endswith("_index") else getattr(torch, dtype))


# What OpenMMLab's own converters do on such files stands in docs/peers.md.


def test_a_checkpoint_without_prefix_is_converted_like_one_with_it(tmp_path: Path) -> None:
    bare = {name.removeprefix("module."): tensor for name, tensor in official().items()}
    torch.save({"model": bare}, tmp_path / "bare.pth")
    run("convert", "--src", tmp_path / "bare.pth", "--dst", tmp_path / "mmdet.pth", "--to", "mmdet-glip")
    found = torch.load(tmp_path / "mmdet.pth", weights_only=True)["state_dict"]
    assert equal(dict(found), dict(tensors_in("mmdet-glip")))


@pytest.mark.parametrize("to", ["mmdet-glip", "mmpretrain-glip"])
def test_a_foreign_checkpoint_makes_no_empty_file(to: str, tmp_path: Path) -> None:
    torch.save({"model": {f"layer{i}.0.conv1.weight": torch.ones(3, 3) for i in range(9)}}, tmp_path / "resnet.pth")
    out = tmp_path / "out.pth"
    error = refusal("convert", "--src", tmp_path / "resnet.pth", "--dst", out, "--to", to, code=5)
    assert "no known format" in error["message"]
    assert not out.exists()


@pytest.mark.parametrize("to", ["mmdet-glip", "mmpretrain-glip", "glip"])
def test_an_unexpected_key_does_not_leak_through(to: str, tmp_path: Path) -> None:
    stray = {"module.backbone.body.layers.0.adapter.weight": torch.ones(3)}
    torch.save({"model": official(**stray)}, tmp_path / "official.pth")
    out = tmp_path / "out.safetensors"
    error = refusal("convert", "--src", tmp_path / "official.pth", "--dst", out, "--to", to, code=5)
    assert any("layers.0.adapter.weight" in problem for problem in error["problems"])
    assert not out.exists()


@pytest.mark.parametrize(
    ("key", "shape"),
    [("module.backbone.body.patch_embed.proj.weight", (4, 3, 2)), ("module.rpn.head.bias_lang", (5,))],
)
def test_a_wrong_shape_and_a_missing_key_are_refused(key: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    arguments = ["convert", "--src", tmp_path / "official.pth", "--dst", out, "--to", "mmdet-glip"]
    torch.save(official(**{key: torch.ones(shape)}), tmp_path / "official.pth")
    assert any(key in problem and str(shape) in problem for problem in refusal(*arguments, code=5)["problems"])
    weights = official()
    del weights[key]
    torch.save(weights, tmp_path / "official.pth")
    assert any("is missing" in problem for problem in refusal(*arguments, code=5)["problems"])
    assert not out.exists()


def test_two_keys_that_become_one_are_refused(tmp_path: Path) -> None:
    twice = {"rpn.head.bias0": torch.zeros(1)}
    torch.save(official(**twice), tmp_path / "official.pth")
    arguments = ["convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "o.pth", "--to", "mmdet-glip"]
    assert any("are the same key" in problem for problem in refusal(*arguments, code=5)["problems"])


def test_every_file_says_what_it_is(tmp_path: Path) -> None:
    """A file of weights that says nothing of its sizes and origin cannot be used alone."""
    torch.save(official(), tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.safetensors")
    with safe_open(tmp_path / "own.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["config"]["embed_dim"] == SIZES["embed_dim"]
    save_file(load_file(tmp_path / "own.safetensors"), tmp_path / "bare.safetensors")
    run("convert", "--src", tmp_path / "bare.safetensors", "--dst", tmp_path / "bare.pth", "--to", "mmdet-glip")


def test_a_table_in_doubt_is_not_used(tmp_path: Path) -> None:
    table = json.loads((folders.mappings_folder() / "glip-official.json").read_text())
    table["rules"][3]["doubt"] = "which of the two norms"
    (tmp_path / "doubtful.json").write_text(json.dumps({**table, "name": "doubtful"}))
    torch.save(official(), tmp_path / "official.pth")
    arguments = ["convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "o.safetensors"]
    problems = refusal(*arguments, "--from", tmp_path / "doubtful.json", code=4)["problems"]
    assert problems == ["/rules/3 is in doubt: which of the two norms"]


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("glip", "glip-official")])
def test_inspect_and_explain_know_every_format(name: str, tmp_path: Path) -> None:
    tensors = tensors_in(name)
    torch.save(tensors, tmp_path / "weights.pth")
    inspected = json.loads(run("inspect", tmp_path / "weights.pth", "--json").stdout)
    assert name in [fit["format"] for fit in inspected["fits"]]
    key = next(k for k in tensors if k.endswith("weight"))
    explained = json.loads(run("explain", key, "--src", tmp_path / "weights.pth", "--from", name, "--json").stdout)
    assert (explained["table"], explained["source"][0].split()[0].strip("'")) == (name, key)
