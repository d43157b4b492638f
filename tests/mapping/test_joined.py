"""A table that includes another through a third: its rules are those of both in a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter.errors import TableError
from converter.mapping.documents import Document
from converter.mapping.joined import joined
from converter.mapping.lint import lint
from converter.mapping.load import load_table
from tests.mapping.test_hostile_tables import LETTERS, MANY_WAYS, at_most
from tests.mapping.test_table import content_of, problems_of

QKV = {"op": "concat", "axis": 0, "sizes": ["w", "w", "w"]}


def beyond(*rules: dict[str, Any]) -> Document:
    return Document(Path("beyond.json"), "0" * 64, {"name": "beyond", "rules": list(rules)})


def rules_of(first: dict[str, Any], second: dict[str, Any]) -> Any:
    return joined({"rules": [first]}, beyond(second), "out.")["rules"]


def test_what_both_only_rename_is_renamed() -> None:
    made = rules_of({"source": "a.{i}", "target": "hub.{i}"}, {"source": "b.{i + 1}", "target": "hub.{i}"})
    assert made == [{"source": "a.{i}", "target": "out.b.{i + 1}"}]


def test_what_the_second_joins_is_split() -> None:
    parts = ["q.{i}", "k.{i}", "v.{i}"]
    made = rules_of({"source": "qkv.{i}", "target": "hub.{i}"}, {"source": parts, "target": "hub.{i}", "ops": [QKV]})
    (rule,) = made
    assert list(rule["target"]) == [f"out.{part}" for part in parts]
    assert rule["ops"] == [{**QKV, "op": "split"}]


def test_what_both_join_is_neither_joined_nor_split() -> None:
    made = rules_of(
        {"source": ["q1", "k1", "v1"], "target": "hub", "ops": [QKV]},
        {"source": ["q2", "k2", "v2"], "target": "hub", "ops": [QKV]},
    )
    assert [(rule["source"], rule["target"]) for rule in made] == [
        ("q1", "out.q2"), ("k1", "out.k2"), ("v1", "out.v2"),
    ]  # fmt: skip
    assert not any("ops" in rule for rule in made)


def test_a_rule_of_which_the_second_knows_nothing_is_left_out() -> None:
    assert rules_of({"source": "a", "target": "hub"}, {"source": "b", "target": "other"}) == []


def test_a_rule_for_several_words_or_numbers_is_one_for_each_that_the_second_has() -> None:
    first = {
        "words": {"part": ["norm", "projection"], "param": ["weight", "bias"]},
        "rules": [
            {"source": "{i}.{part}.{param}", "target": "hub.{i}.{part}.{param}"},
            {"source": "{i}.norm{number}.{param}", "target": "hub.{i}.norm{number}.{param}"},
        ],
    }
    second = beyond(
        {"source": "{i}.ln_after.{param}", "target": "hub.{i}.norm2.{param}"},
        {"source": "{i}.ln.{param}", "target": "hub.{i}.norm.{param}"},
        {"source": "{i}.other.{param}", "target": "hub.{i}.other.{param}"},
    )
    made = joined(first, second, "")
    assert made["rules"] == [
        {"source": "{i}.norm.{param}", "target": "{i}.ln.{param}"},
        {"source": "{i}.norm2.{param}", "target": "{i}.ln_after.{param}"},
    ]
    assert list(made["words"]) == ["param"]


def test_a_capture_that_comes_twice_stands_for_one_number() -> None:
    rule = {"source": "a.{i}", "target": "hub.{i}.{i}"}
    assert rules_of(rule, {"source": "b", "target": "hub.1.2"}) == []
    assert rules_of(rule, {"source": "b", "target": "hub.2.2"}) == [{"source": "a.2", "target": "out.b"}]


def test_ops_of_the_first_stay_as_they_are() -> None:
    turned = {"source": "a", "target": "hub", "ops": [{"op": "transpose", "axes": [1, 0]}]}
    assert rules_of(turned, {"source": "b", "target": "hub"}) == [{**turned, "target": ["out.b"], "source": ["a"]}]


def test_ops_that_are_not_read_backwards_here_are_refused() -> None:
    turned = {"source": "b", "target": "hub", "ops": [{"op": "transpose", "axes": [1, 0]}]}
    with pytest.raises(TableError, match="transpose"):
        rules_of({"source": "a", "target": "hub"}, turned)


@pytest.mark.parametrize("said", [{"doubt": "d"}, {"when": "n"}, {"optional": "o"}, {"also_shape": [6]}])
def test_what_the_second_says_beside_names_and_ops_is_not_dropped(said: dict[str, Any]) -> None:
    rule = {"source": "b.{i}", "target": "hub.{i}"}
    with pytest.raises(TableError, match=f"beyond.json: 'b.{{i}}': .*'{next(iter(said))}'"):
        rules_of({"source": "a.{i}", "target": "hub.{i}"}, rule | said)
    assert rules_of({"source": "a.{i}", "target": "other.{i}"}, rule | said) == []
    assert rules_of({"source": "a.{i}", "target": "hub.{i}"}, rule | {"note": "n"})


WORDS = {letter: [f"{{{letter}}}", "x"] for letter in LETTERS}
SIDE_BY_SIDE = "".join(f"{{{letter}}}" for letter in LETTERS)


@pytest.mark.parametrize("target", [f"{SIDE_BY_SIDE}x", MANY_WAYS])
@pytest.mark.parametrize("other", ["1" * 60, f"a.{'1' * 60}"])
@pytest.mark.parametrize("is_first", [True, False])
def test_patterns_that_can_be_read_in_several_ways_are_refused_at_once(target: str, other: str, is_first: bool) -> None:
    rules = [{"source": "a", "target": target}, {"source": "b", "target": other}]
    with at_most(2), pytest.raises(TableError, match=r"side by side|a digit behind"):
        rules_of(*rules if is_first else reversed(rules))


def test_a_word_that_is_written_like_its_capture_takes_no_time() -> None:
    target = ".".join(f"{{{letter}}}" for letter in LETTERS)
    first = {"words": WORDS, "rules": [{"source": "a", "target": f"{target}.x"}]}
    with at_most(2):
        assert joined(first, beyond({"source": "b", "target": f"{target}.y"}), "")["rules"] == []


def test_what_is_calculated_with_a_field_of_the_config_is_compared_as_it_stands() -> None:
    target = "hub.{i}.{block + depth}"
    assert rules_of({"source": "a.{i}", "target": target}, {"source": "b.{i}", "target": target})


def test_the_table_that_uses_it_is_sound_and_depends_on_both() -> None:
    table = load_table("groundingdino-official")
    assert lint(table) == []
    pointers = table.pointers("rules")
    assert "swin-blocks:/rules/4" in pointers
    assert "bert-layers:/rules/4" in pointers


def test_a_rule_that_is_left_out_is_missed(tmp_path: Path) -> None:
    content = content_of("groundingdino-official")
    del content["include"][1]
    problems = problems_of(content, tmp_path)
    assert any("model.text_backbone.embeddings.word_embeddings.weight" in p and "no rule" in p for p in problems)


def test_a_table_that_includes_others_is_not_gone_through(tmp_path: Path) -> None:
    """Their rules would not be those of the way, but would lead to keys that the target does not have."""
    content = content_of("groundingdino-official")
    content["include"][0]["table"] = "groundingdino-official"
    (problem,) = problems_of(content, tmp_path)
    assert "'groundingdino-official' includes others, and cannot be gone through" in problem


def test_a_table_of_ones_own_may_go_through_one(tmp_path: Path) -> None:
    content = content_of("groundingdino-official")
    content["include"][0]["through"]["at"] = "model.elsewhere."
    assert problems_of(content, tmp_path)
    content["include"][0]["through"]["table"] = "no-such-fragment"
    (tmp_path / "table.json").write_text(json.dumps(content))
    with pytest.raises(TableError, match="no-such-fragment"):
        load_table(tmp_path / "table.json")
