"""Weights with several names: one is converted, the others are compared with it, and written again on the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from converter.checkpoint import open_checkpoint
from converter.errors import PlanError, TableError
from converter.mapping.lint import lint
from converter.mapping.load import load_table
from converter.planning.fit import make_plan
from converter.writing.in_memory import in_memory
from tests.support.small_files import run
from tests.support.tiny import TABLE, tiny_weights, write_table

NAMES = ["heads.1.embed.weight", "heads.2.embed.weight"]
COPY: dict[str, Any] = {
    "source": "heads.{head + 1}.embed.weight",
    "reason": "all heads share one matrix",
    "rebuild": {"as": "copy", "of": "embed.weight"},
    "written": {"head": 2},
    "optional": "a file without tied copies lacks it",
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = write_table(tmp_path)
    path.write_text(json.dumps({**TABLE, "ignore": [*TABLE["ignore"], COPY], "saved_as": {"prefix": "module."}}))
    return path


def saved(folder: Path, **copies: torch.Tensor) -> Path:
    weights = tiny_weights()
    torch.save(weights | {f"module.{name}": value for name, value in copies.items()}, folder / "s.pth")
    return folder / "s.pth"


def tied(*names: str) -> dict[str, torch.Tensor]:
    return {name: tiny_weights()["module.embed.weight"] for name in names}


def test_a_table_with_copies_is_sound(table: Path) -> None:
    assert lint(load_table(table)) == []


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("names", [NAMES, NAMES[:1], []], ids=["all", "one", "none"])
def test_what_was_tied_comes_back_bit_for_bit(names: list[str], suffix: str, table: Path, tmp_path: Path) -> None:
    source = saved(tmp_path, **tied(*names))
    there, back = tmp_path / "there.safetensors", tmp_path / f"back.{suffix}"
    run("convert", "--src", source, "--from", table, "--dst", there, "--keep-residue")
    assert not [name for name in load_file(there) if "heads" in name]
    run("convert", "--src", there, "--to", table, "--dst", back)
    found = torch.load(back) if suffix == "pth" else load_file(back)
    expected = torch.load(source)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n].nan_to_num(7), expected[n].nan_to_num(7)) for n in expected)


def test_without_a_residue_all_copies_are_written_that_the_format_saves(table: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    run("convert", "--src", saved(tmp_path), "--from", table, "--dst", there)
    run("convert", "--src", there, "--to", table, "--dst", back, "--dtype", "bfloat16")
    found = load_file(back)
    for name in NAMES:
        assert found[f"module.{name}"].dtype == torch.bfloat16
        assert torch.equal(found[f"module.{name}"], found["module.embed.weight"])


@pytest.mark.parametrize("what", ["one bit", "dtype", "shape"])
def test_what_was_trained_apart_is_refused(what: str, table: Path, tmp_path: Path) -> None:
    other = tied(*NAMES)
    value = other[NAMES[1]].clone()
    value.view(torch.int32)[0, 0] ^= 1
    other[NAMES[1]] = {"one bit": value, "dtype": value.double(), "shape": value[:1].contiguous()}[what]
    with open_checkpoint(saved(tmp_path, **other)) as checkpoint:
        plan = make_plan(load_table(table), checkpoint)
        with pytest.raises(PlanError) as refused:
            in_memory(checkpoint, plan)
    assert len(refused.value.problems) == 1
    assert "module.heads.2.embed.weight" in refused.value.problems[0]
    assert "trained apart" in refused.value.problems[0]


def test_two_zeros_of_other_signs_are_not_the_same(table: Path, tmp_path: Path) -> None:
    weights = tiny_weights()
    weights["module.embed.weight"] = torch.zeros(4, 6)
    torch.save({**weights, f"module.{NAMES[0]}": -torch.zeros(4, 6)}, tmp_path / "s.pth")
    with open_checkpoint(tmp_path / "s.pth") as checkpoint, pytest.raises(PlanError, match="trained apart"):
        in_memory(checkpoint, make_plan(load_table(table), checkpoint))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rebuild": {"as": "copy", "of": "nothing.weight"}}, "a copy of 'nothing.weight', which no rule takes"),
        ({"rebuild": {"as": "copy", "of": "embed.{other}.weight"}}, "captures 'other'"),
    ],
)
def test_a_copy_of_nothing_is_no_sound_table(change: dict[str, Any], said: str, table: Path) -> None:
    content = json.loads(table.read_text())
    content["ignore"][-1] |= change
    table.write_text(json.dumps(content))
    try:
        problems = lint(load_table(table))
    except TableError as error:
        problems = list(error.problems)
    assert any(said in problem for problem in problems), problems


def test_a_copy_beyond_those_that_are_written_comes_back_too(table: Path, tmp_path: Path) -> None:
    source, there, back = (
        saved(tmp_path, **tied("heads.7.embed.weight")),
        tmp_path / "a.safetensors",
        tmp_path / "b.pth",
    )
    run("convert", "--src", source, "--from", table, "--dst", there, "--keep-residue")
    run("convert", "--src", there, "--to", table, "--dst", back)
    assert torch.load(back).keys() == torch.load(source).keys()


def test_a_file_that_has_the_numbers_under_another_name_alone_is_told_so(table: Path, tmp_path: Path) -> None:
    weights = tiny_weights()
    weights[f"module.{NAMES[0]}"] = weights.pop("module.embed.weight")
    torch.save(weights, tmp_path / "s.pth")
    with open_checkpoint(tmp_path / "s.pth") as checkpoint, pytest.raises(PlanError) as refused:
        make_plan(load_table(table), checkpoint)
    assert any(f"'module.{NAMES[0]}' is there" in problem for problem in refused.value.problems)


def test_a_copy_of_what_nothing_is_made_of_is_kept_in_the_residue(table: Path, tmp_path: Path) -> None:
    content = json.loads(table.read_text())
    content["ignore"][-1] = {**COPY, "rebuild": {"as": "copy", "of": "training.weight"}}
    del content["ignore"][-1]["written"]
    table.write_text(json.dumps(content))
    assert any("which no rule takes" in problem for problem in lint(load_table(table)))
    weights = tiny_weights()
    torch.save(weights | {f"module.{NAMES[0]}": weights["module.training.weight"]}, tmp_path / "s.pth")
    there, back = tmp_path / "a.safetensors", tmp_path / "b.pth"
    run("convert", "--src", tmp_path / "s.pth", "--from", table, "--dst", there, "--keep-residue")
    run("convert", "--src", there, "--to", table, "--dst", back)
    assert torch.load(back).keys() == torch.load(tmp_path / "s.pth").keys()


def test_copies_in_shards_and_larger_than_a_chunk(tmp_path: Path) -> None:
    """A table of one matrix of 2 MiB and its copy, each in a shard of its own."""
    spec = {
        "kind": "spec", "name": "large", "title": "t", "config": {"n": "size"},
        "variants": {"large-1": {"title": "t", "config": {"n": 1024}}},
        "tensors": [{"name": "x.weight", "shape": ["n", 512]}],
    }  # fmt: skip
    content = {
        "kind": "table", "name": "large-table", "title": "t", "target": "large",
        "rules": [{"source": "x.weight", "target": "x.weight"}],
        "ignore": [{**COPY, "source": "y.weight", "rebuild": {"as": "copy", "of": "x.weight"}, "written": {}}],
    }  # fmt: skip
    (tmp_path / "large.json").write_text(json.dumps(spec))
    (tmp_path / "large-table.json").write_text(json.dumps(content))
    one = torch.randn(1024, 512)
    torch.save({"x.weight": one, "y.weight": one.clone()}, tmp_path / "s.pth")
    table = tmp_path / "large-table.json"
    run("convert", "--src", tmp_path / "s.pth", "--from", table, "--dst", tmp_path / "a.safetensors")
    run("convert", "--src", tmp_path / "a.safetensors", "--to", table, "--dst", tmp_path / "b",
        "--max-shard-size", "2200000")  # fmt: skip
    shards = sorted((tmp_path / "b").glob("model-*.safetensors"))
    found = {name: value for shard in shards for name, value in load_file(shard).items()}
    assert len(shards) == 2
    assert torch.equal(found["x.weight"], one)
    assert torch.equal(found["y.weight"], one)
    with open_checkpoint(tmp_path / "b") as checkpoint:
        assert (
            json.loads((tmp_path / "b" / "conversion.json").read_text())["tensors"].keys() == checkpoint.tensors.keys()
        )
