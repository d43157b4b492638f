"""A doubt is settled as a person says, or the table stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter.errors import TableError
from converter.mapping.doubts import in_doubt_of
from converter.mapping.lint import lint
from converter.mapping.load import load_table
from converter.mapping.settle import settled

WHY = "to be looked at"
SPEC = {
    "kind": "spec", "name": "other", "title": "t", "config": {}, "variants": {"v": {"title": "v", "config": {}}},
    "tensors": [
        {"name": "fc", "weight": [4, 4], "bias": [4]},
        {"name": "conv.weight", "shape": [4, 4, 3, 3]},
        *({"name": f"{part}.weight", "shape": [4, 4]} for part in "qkv"),
        {"name": "joint.weight", "shape": [8, 4]},
        {"name": "one", "shape": [4]}, {"name": "two", "shape": [4]}, {"name": "experts", "shape": [3, 4, 4]},
    ],
}  # fmt: skip
SPLIT = {"op": "split", "axis": 0, "sizes": [4, 4, 4]}
CONCAT = {"op": "concat", "axis": 0, "sizes": [4, 4]}
TURN = {"op": "transpose", "axes": [1, 0]}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rules: list[dict[str, Any]] = [
        {"source": "dense.{param}", "target": "fc.{param}", "doubt": WHY},
        {"source": "kernel", "target": "conv.weight", "doubt": WHY},
        {"source": "qkv", "target": [f"{part}.weight" for part in "qkv"], "ops": [SPLIT], "doubt": WHY},
        {"source": ["left", "right"], "target": "joint.weight", "ops": [CONCAT], "doubt": WHY},
        {"source": "a", "target": "one", "doubt": WHY},
        {"source": "b", "target": "two"},
        {"source": "stack", "target": "experts"},
    ]
    content = {
        "kind": "table", "name": "mine", "title": "t", "target": "other", "words": {"param": ["weight", "bias"]},
        "rules": rules, "ignore": [{"source": "more", "reason": "drafted", "rebuild": None, "doubt": WHY}],
    }  # fmt: skip
    (tmp_path / "other.json").write_text(json.dumps(SPEC))
    (tmp_path / "mine.json").write_text(json.dumps(content))
    return tmp_path / "mine.json"


def after(table: Path, how: Any, *named: str, note: str | None = None) -> dict[str, Any]:
    content = settled(table, json.loads(table.read_text()), how, named, note)
    table.write_text(json.dumps(content))
    return content


def test_what_is_kept_is_as_it_was_and_says_what_the_doubt_was(table: Path) -> None:
    content = after(table, "keep", "/rules/1", "dense.{param}")
    assert content["rules"][1] == {
        "source": "kernel", "target": "conv.weight", "note": f"settled: keep. The doubt was: {WHY}",
    }  # fmt: skip
    assert list(in_doubt_of(content)) == ["/rules/2", "/rules/3", "/rules/4", "/ignore/0"]


def test_a_reason_is_kept_with_it(table: Path) -> None:
    content = after(table, "keep", "/ignore/0", "/rules/2", note="seen in its forward")
    assert content["ignore"][0]["reason"] == content["rules"][2]["note"] == "seen in its forward"


def test_a_transposition_is_of_each_part_and_of_the_axes_of_its_matrices(table: Path) -> None:
    rules = after(table, "transpose", "/rules/1", "/rules/2", "/rules/3", "stack")["rules"]
    assert rules[1]["ops"] == [{"op": "transpose", "axes": [1, 0, 2, 3]}]
    assert rules[2]["ops"] == [SPLIT, TURN]
    assert rules[3]["ops"] == [TURN, CONCAT]
    assert rules[6]["ops"] == [{"op": "transpose", "axes": [0, 2, 1]}]
    after(table, "keep", "/rules/0", "/rules/4", "/ignore/0")
    assert lint(load_table(table)) == []


def test_two_rules_exchange_what_they_make(table: Path) -> None:
    rules = after(table, "exchange", "a", "b")["rules"]
    assert [(rule["source"], rule["target"]) for rule in rules[4:6]] == [("a", "two"), ("b", "one")]
    assert not any("doubt" in rule for rule in rules[4:])


@pytest.mark.parametrize(
    ("how", "named", "said"),
    [
        ("transpose", ["/rules/0"], r"makes \(4, 4\), \(4,\), and what is transposed"),
        ("transpose", ["/rules/4"], r"makes \(4,\), and"),
        ("transpose", ["/ignore/0"], "makes nothing, and"),
        ("exchange", ["a"], "takes two rules"),
        ("exchange", ["a", "/ignore/0"], "takes two rules"),
        ("exchange", ["a", "qkv"], "cannot be settled so"),
        ("keep", ["b"], "/rules/5 is not in doubt"),
        ("keep", ["/rules/17"], "in doubt are /rules/0, /rules/1"),
        ("keep", ["c"], "names no rule, or several"),
    ],
)
def test_what_does_not_fit_is_refused(table: Path, how: str, named: list[str], said: str) -> None:
    before = table.read_text()
    with pytest.raises(TableError, match=said):
        after(table, how, *named)
    assert table.read_text() == before


def test_what_is_transposed_is_not_transposed_again(table: Path) -> None:
    after(table, "transpose", "kernel")
    with pytest.raises(TableError, match="transposes already"):
        after(table, "transpose", "kernel")
