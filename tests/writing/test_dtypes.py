"""Weights in half precision, and in several dtypes: kept as stored, or cast each by itself where one is stated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from converter.planning.formats import make_route
from tests.support.small_files import equal, official, refusal, run, tensors_in, weights_in
from tests.support.small_formats import FORMATS

pytestmark = pytest.mark.usefixtures("small_mappings")

BUFFERS = ("cell_anchors", "relative_position_index", "position_ids")
VALUE = "module.language_backbone.body.model.encoder.layer.0.attention.self.value.weight"
JOINED = "text_encoder.layers.0.attention.qkv.weight"
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def in_half(dtype: torch.dtype) -> dict[str, Tensor]:
    """As `model.half()` leaves it: buffers of floats are cast, too."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in official().items()}


def by_apex() -> dict[str, Tensor]:
    """As apex leaves a model at its level O2: all but norms in half precision."""
    return {
        name: tensor if "norm" in name.lower() or not tensor.is_floating_point() else tensor.half()
        for name, tensor in official().items()
    }


def one_value(dtype: torch.dtype) -> dict[str, Tensor]:
    """A value in another dtype than its query and key, with which it is joined."""
    weights = dict(official())
    weights[VALUE] = weights[VALUE].to(dtype)
    return weights


def without_buffers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not any(buffer in name for buffer in BUFFERS)}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_an_official_file_in_half_precision_is_kept_as_stored(dtype: str, tmp_path: Path) -> None:
    torch.save({"model": in_half(DTYPES[dtype])}, tmp_path / "half.pth")
    own, back = tmp_path / "own.safetensors", tmp_path / "back.safetensors"
    result = run("convert", "--src", tmp_path / "half.pth", "--dst", own, "--keep-residue")
    assert "bit for bit" in result.output
    made, expected = load_file(own), tensors_in("glip")
    assert equal(made, {name: tensor.to(DTYPES[dtype]) for name, tensor in expected.items()})
    assert f"dtypes: 298 {dtype}, kept as stored; --dtype casts them" in result.output
    run("convert", "--src", own, "--dst", back, "--to", "glip-official")
    source = torch.load(tmp_path / "half.pth", weights_only=True)["model"]
    assert equal(load_file(back), source)


@pytest.mark.parametrize("to", ["glip", "mmdet-glip", "transformers-bert"])
def test_norms_may_stay_in_float32(to: str, tmp_path: Path) -> None:
    torch.save(by_apex(), tmp_path / "apex.pth")
    own, back = tmp_path / "own.safetensors", tmp_path / "back.safetensors"
    result = run("convert", "--src", tmp_path / "apex.pth", "--dst", own, "--to", to, "--keep-residue")
    assert "bit for bit" in result.output
    assert {tensor.dtype for tensor in load_file(own).values() if tensor.is_floating_point()} == {
        torch.float16, torch.float32
    }  # fmt: skip
    run("convert", "--src", own, "--dst", back, "--to", "glip-official")
    assert equal(load_file(back), torch.load(tmp_path / "apex.pth", weights_only=True))


def test_the_dtypes_are_counted(tmp_path: Path) -> None:
    torch.save(by_apex(), tmp_path / "apex.pth")
    convert = ["convert", "--src", tmp_path / "apex.pth", "--dst", tmp_path / "own.safetensors", "--dry-run"]
    found = json.loads(run(*convert, "--json").stdout)
    sources = [source["dtype"] for step in found["steps"] for source in step["sources"]]
    targets = [target["dtype"] for step in found["steps"] for target in step["targets"]]
    assert found["dtypes"] == {
        "stored": {dtype: sources.count(dtype) for dtype in ("float16", "float32")},
        "written": {dtype: targets.count(dtype) for dtype in ("float16", "float32")},
    }
    stored = ", ".join(f"{count} {dtype}" for dtype, count in found["dtypes"]["stored"].items())
    assert f"dtypes: {stored}, kept as stored; --dtype casts them" in run(*convert).output
    assert f"dtypes: {stored}, written as bfloat16" in run(*convert, "--dtype", "bfloat16").output


def test_where_all_is_float32_nothing_is_said(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    convert = ["convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.safetensors"]
    assert "dtypes" not in run(*convert, "--dry-run").output
    assert "dtypes" not in run(*convert).output


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("to", ["glip", "mmdet-glip", "timm-swin"])
def test_what_is_joined_must_be_of_one_dtype_or_be_cast_to_one(to: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save(one_value(dtype), tmp_path / "mixed.pth")
    convert = ["convert", "--src", tmp_path / "mixed.pth", "--dst", tmp_path / "own.safetensors", "--to", to]
    (problem,) = refusal(*convert, code=5)["problems"]
    name = str(dtype).removeprefix("torch.")
    assert "joins tensors of different dtypes: " in problem
    assert problem.endswith(f", {VALUE} (6, 6) {name}. State with `convert --dtype` in which one to write them")


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_with_a_stated_dtype_each_is_cast_by_itself(dtype: str, stored: torch.dtype, tmp_path: Path) -> None:
    weights = one_value(stored)
    torch.save(weights, tmp_path / "mixed.pth")
    own = tmp_path / "own.safetensors"
    result = run("convert", "--src", tmp_path / "mixed.pth", "--dst", own, "--dtype", dtype)
    made = load_file(own)
    assert {tensor.dtype for tensor in made.values()} == {DTYPES[dtype]}
    parts = [weights[VALUE.replace("value", part)].to(DTYPES[dtype]) for part in ("query", "key", "value")]
    assert torch.equal(made[JOINED], torch.cat(parts))
    fits = dtype == "float64" or (dtype == "float32" and stored != torch.float64)
    assert ("exactly, in another dtype" if fits else "rounded to another dtype") in result.output


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("to", ["mmdet-glip", "transformers-bert", "timm-swin", "glip-official"])
def test_the_same_holds_on_the_way_to_another_format(to: str, dtype: str, tmp_path: Path) -> None:
    torch.save(one_value(torch.bfloat16), tmp_path / "mixed.pth")
    mixed, own = tmp_path / "mixed.safetensors", tmp_path / "own.safetensors"
    run("convert", "--src", tmp_path / "mixed.pth", "--dst", mixed, "--to", to, "--dtype", dtype)
    run("convert", "--src", tmp_path / "mixed.pth", "--dst", own, "--dtype", dtype)
    run("convert", "--src", own, "--dst", tmp_path / "two.safetensors", "--to", to)
    assert equal(load_file(mixed), load_file(tmp_path / "two.safetensors"))


def test_what_needs_no_cast_on_its_way_has_none_there() -> None:
    """A table of one's own may cast from float32 itself."""
    table = FORMATS["mmdet-glip"]
    ops = {"ops": [{"op": "cast", "from": "float16", "to": "float32"}]}
    rules = [(at, rule | ops if rule["target"] == "head.bias" else rule) for at, rule in table.entries["rules"]]
    casting = replace(table, entries={**table.entries, "rules": tuple(rules)})
    weights = weights_in("glip-official")
    plan = make_route(FORMATS["glip-official"], casting, weights, dtype="bfloat16")
    assert {target.dtype.name for step in plan.steps for target in step.targets} == {"bfloat16"}


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_so_it_does_where_a_tensor_is_reshaped_first(dtype: str, tmp_path: Path) -> None:
    """Then all are in memory together."""
    weights = dict(tensors_in("mmdet-glip"))
    for level, stored in enumerate((torch.float16, torch.bfloat16, torch.float64)):
        key = f"bbox_head.head.scales.{level}.scale"
        weights[key] = weights[key].to(stored).reshape(())
    torch.save(weights, tmp_path / "mmdet.pth")
    own = tmp_path / "own.safetensors"
    run("convert", "--src", tmp_path / "mmdet.pth", "--dst", own, "--dtype", dtype)
    scales = [weights[f"bbox_head.head.scales.{level}.scale"].reshape(1).to(DTYPES[dtype]) for level in range(5)]
    assert torch.equal(load_file(own)["head.box_scale"], torch.cat(scales))


def test_tensors_of_several_dtypes_come_back_from_the_residue(tmp_path: Path) -> None:
    """Nothing joins them there."""
    torch.save(one_value(torch.float16), tmp_path / "mixed.pth")
    swin, back = tmp_path / "swin.safetensors", tmp_path / "back.safetensors"
    there = ["convert", "--src", tmp_path / "mixed.pth", "--dst", swin, "--to", "timm-swin", "--keep-residue"]
    run(*there, "--dtype", "float32")
    run("convert", "--src", swin, "--dst", back, "--to", "glip-official")
    assert equal(load_file(back), torch.load(tmp_path / "mixed.pth", weights_only=True))
