"""`converter settle` as it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from converter.cli import main

ROUND = np.random.default_rng(0)
WEIGHTS = {
    "joint.qkv": ROUND.random((12, 4)), "text_projection": ROUND.random((4, 4)), "mirror": np.eye(4) + 1,
    "fresh.q": np.ones((4, 4)), "lost": ROUND.random((3, 5)),
}  # fmt: skip


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of which every rule is in doubt, with `one` and `other` in its formats and of the same weights."""
    save_file({name: value.astype("float32") for name, value in WEIGHTS.items()}, tmp_path / "one.safetensors")
    parts = dict(zip(("attn.q.w", "attn.k.w", "attn.v.w"), np.split(WEIGHTS["joint.qkv"], 3), strict=True))
    other = parts | {"text_projection.weight": WEIGHTS["text_projection"].T, "mirrored": WEIGHTS["mirror"]}
    other |= {"fresh.query": WEIGHTS["fresh.q"]}
    save_file({n: np.ascontiguousarray(v, "float32") for n, v in other.items()}, tmp_path / "other.safetensors")
    options = ["--src", tmp_path / "one.safetensors", "--target", tmp_path / "other.safetensors"]
    run("draft", *options, "--out", tmp_path / "tables")
    return tmp_path / "tables" / "one.json"


def rules(table: Path) -> Mapping[str, dict[str, object]]:
    return {rule["source"]: rule for rule in json.loads(table.read_text())["rules"]}


def test_doubts_are_listed_until_none_is_left(table: Path) -> None:
    listed = run("settle", table, code=4).stdout
    assert "5 doubts in" in listed
    assert "lost is left out" in listed
    assert "is square: no shape tells whether the target stores it transposed" in listed
    run("settle", table, "transpose", "text_projection", "--note", "x @ W there")
    said = run("settle", table, "keep", "mirror", "fresh.q", "joint.qkv", "/ignore/0").stdout
    assert f"settled: 4 doubts; none left in {table}\nnext: converter lint {table}\n" in said
    assert rules(table)["text_projection"]["ops"] == [{"op": "transpose", "axes": [1, 0]}]
    assert rules(table)["text_projection"]["note"] == "x @ W there"
    said = run("settle", table, "exchange", "mirror", "fresh.q").stdout
    assert "settled: 0 doubts, and 2 rules changed that had none; none left in" in said
    run("settle", table, "exchange", "mirror", "fresh.q")
    run("settle", table)
    run("lint", table)
    run(
        "convert",
        "--src",
        table.parents[1] / "one.safetensors",
        "--from",
        table,
        "--dst",
        table.parent / "o.safetensors",
    )
    made, wanted = (
        load_file(path) for path in (table.parent / "o.safetensors", table.parents[1] / "other.safetensors")
    )
    assert all(np.array_equal(made[name], wanted[name]) for name in wanted)


def test_the_same_weights_on_both_sides_tell(table: Path) -> None:
    """What they cannot tell stays in doubt: numbers that are all the same, or that fit both ways."""
    one, other = (table.parents[1] / f"{name}.safetensors" for name in ("one", "other"))
    content = json.loads(run("settle", table, "--values", one, other, "--json").stdout)
    assert sorted(entry["source"] for entry in content["doubtful"]) == ["fresh.q", "lost", "mirror"]
    assert rules(table)["text_projection"]["ops"] == [{"op": "transpose", "axes": [1, 0]}]
    assert "doubt" not in rules(table)["joint.qkv"]
    assert sorted(content["values"].values()) == ["fits both ways", "fits neither way", "keep", "transpose"]


def test_other_weights_tell_nothing(table: Path) -> None:
    one, other = (table.parents[1] / f"{name}.safetensors" for name in ("one", "other"))
    save_file({name: value + 1 for name, value in load_file(other).items()}, other)
    before = table.read_bytes()
    content = json.loads(run("settle", table, "--values", one, other, "--json", code=4).stdout)
    assert set(content["values"].values()) == {"fits neither way"}
    assert table.read_bytes() == before


def test_what_cannot_be_done_leaves_the_table(table: Path) -> None:
    before = table.read_bytes()
    for arguments, code in (
        (["keep"], 2),
        (["keep", "/rules/99"], 4),
        (["transpose", "/ignore/0"], 4),
        (["--note", "why"], 2),
        (["keep", "mirror", "--values", "a", "b"], 2),
    ):
        run("settle", table, *arguments, code=code)
    assert table.read_bytes() == before
    run("settle", "glip-official", code=4)
    (table.parent / "link.json").symlink_to(table)
    run("settle", table.parent / "link.json", "keep", "mirror", code=6)
    assert table.read_bytes() == before


def test_what_only_the_target_has_is_in_doubt_until_it_is_said_to_be_absent(table: Path) -> None:
    one, other = (table.parents[1] / f"{name}.safetensors" for name in ("one", "other"))
    save_file({**load_file(other), "pooler.weight": np.ones((7,), "float32")}, other)
    said = run("draft", "--src", one, "--target", other, "--out", table.parent, "--force").stdout
    assert "1 tensor of the target made by no rule, in 'absent':\n  pooler.weight (7,)\n" in said
    assert (
        "/absent/0  pooler.weight is made by no rule\n      1 of shape (7,): does the source hold it nowhere?" in said
    )
    run("settle", table, "transpose", "pooler.weight", code=4)
    kept = ["joint.qkv", "text_projection", "mirror", "fresh.q", "/ignore/0"]
    run("settle", table, "keep", *kept)
    run("convert", "--src", one, "--from", table, "--dst", table.parent / "o.safetensors", code=4)
    run("settle", table, "keep", "pooler.weight")
    assert json.loads(table.read_text())["absent"] == [
        {"target": "pooler.weight", "reason": "the source has no such tensor"}
    ]
    run("convert", "--src", one, "--from", table, "--dst", table.parent / "o.safetensors")


def test_norms_that_make_each_others_targets_are_exchanged_by_their_values(tmp_path: Path) -> None:
    """Three in a circle. A fourth that fits none, and one of other weights, stay in doubt."""
    norms = {f"layers.{i}.norm{n}.weight": ROUND.random(4) for i in range(2) for n in range(1, 5)}
    place = {1: "norm_c", 2: "norm_a", 3: "norm_b", 4: "norm_d"}
    other = {
        f"layers.{i}.{name}.weight": norms[f"layers.{i}.norm{n}.weight"] for i in range(2) for n, name in place.items()
    }
    other |= {f"layers.{i}.norm_d.weight": ROUND.random(4) for i in range(2)}
    for name, weights in (("one", norms), ("other", other)):
        save_file({n: value.astype("float32") for n, value in weights.items()}, tmp_path / f"{name}.safetensors")
    one, there = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    run("draft", "--src", one, "--target", there, "--out", tmp_path / "tables")
    table = tmp_path / "tables" / "one.json"
    content = json.loads(table.read_text())
    for n, rule in enumerate(content["rules"], 1):
        rule |= {"source": f"layers.{{layer}}.norm{n}.weight", "doubt": "which?"}
        rule["target"] = f"layers.{{layer}}.norm_{'abcd'[n - 1]}.weight"
    table.write_text(json.dumps(content))
    said = json.loads(run("settle", table, "--values", one, there, "--json").stdout)
    assert sorted(said["values"].values()) == ["exchange", "exchange", "exchange", "fits neither way"]
    assert [entry["source"] for entry in said["doubtful"]] == ["layers.{layer}.norm4.weight"]
    assert {source: str(rule["target"]) for source, rule in rules(table).items()} == {
        f"layers.{{layer}}.norm{n}.weight": f"layers.{{layer}}.{name}.weight" for n, name in place.items()
    }
