"""Checkpoints of two formats are compared in what both hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from converter.planning.formats import make_route
from tests.support.small_formats import FORMATS, execute, hub_weights
from tests.support.tiny import tiny_weights, write_table
from tests.support.two_checkpoints import compare, converted, saved, the_difference


def of_format(name: str, path: Path) -> Path:
    """The small GLIP of `small_formats` in a format."""
    weights = hub_weights()
    made = weights if name == "glip" else execute(make_route(FORMATS["glip"], FORMATS[name], weights), weights)
    return saved({n: torch.from_numpy(a.copy()) for n, a in made.arrays.items()}, path)


@pytest.mark.parametrize("other", ["mmdet-glip", "glip", "timm-swin", "transformers-swin", "transformers-bert"])
@pytest.mark.parametrize("swapped", [False, True])
def test_formats_are_compared_in_what_both_hold(
    other: str, swapped: bool, tmp_path: Path, small_mappings: None
) -> None:
    paths = [of_format("glip-official", tmp_path / "a.pth"), of_format(other, tmp_path / "b.pth")]
    content = compare(*paths[:: -1 if swapped else 1])
    tables = ["glip-official"] if other == "glip" else ["glip-official", other]
    assert (content["equal"], content["tables"]) == (True, tables[:: -1 if swapped else 1])
    whole = len(hub_weights().arrays)
    assert content["compared"] == whole if "glip" in other else 10 < content["compared"] < whole


@pytest.mark.parametrize("of", ["a", "b"])
def test_one_number_between_two_formats_is_found(of: str, tmp_path: Path, small_mappings: None) -> None:
    paths = {"a": of_format("glip-official", tmp_path / "a.pth"), "b": of_format("mmpretrain-glip", tmp_path / "b.pth")}
    weights = torch.load(paths[of])["model"]
    next(v for n, v in weights.items() if "downsample.reduction" in n)[0, 3] += 1
    saved(weights, paths[of])
    assert the_difference(compare(*paths.values()))["differing"] == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_the_table_that_is_stated_chooses_the_state_dict(swapped: bool, tmp_path: Path, small_mappings: None) -> None:
    """Beside one that is in a built-in format, and is larger."""
    table = write_table(tmp_path)
    source = saved(tiny_weights(), tmp_path / "source.pth")
    sides = (tiny_weights(), load_file(converted(source, table, tmp_path / "target.safetensors")))
    other = torch.load(of_format("glip-official", tmp_path / "official.pth"))["model"]
    paths = [tmp_path / "a.pth", tmp_path / "b.pth"][:: -1 if swapped else 1]
    for path, weights in zip(paths, sides, strict=True):
        torch.save({"trained": weights, "first": other}, path)
    content = compare(tmp_path / "a.pth", tmp_path / "b.pth", "--table", table)
    assert (content["equal"], content["tables"]) == (True, ["tiny-table"])
    assert {content["a"]["side"], content["b"]["side"]} == {"source", "target"}


def test_a_key_that_no_format_has_is_a_difference(tmp_path: Path, small_mappings: None) -> None:
    a, b = of_format("glip-official", tmp_path / "a.pth"), of_format("mmdet-glip", tmp_path / "b.pth")
    saved(torch.load(b)["model"] | {"bbox_head.more": torch.ones(1)}, b)
    content = compare(a, b)
    assert [seen["name"] for seen in content["only_in_b"]] == ["bbox_head.more"]
