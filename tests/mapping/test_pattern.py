"""Patterns of keys, and the numbers that they capture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import TableError
from converter.mapping.pattern import ByPattern, compile_pattern

WORDS = {"param": ["weight", "bias", "weight_g"]}


def test_matches_the_whole_key_only() -> None:
    pattern = compile_pattern("layers.{i}.norm{i}.{param}", WORDS, {})
    assert pattern.match("layers.2.norm2.weight") == {"i": 2, "param": "weight"}
    assert pattern.match("layers.2.norm2.weight_g") == {"i": 2, "param": "weight_g"}
    for other in ("layers.2.norm3.weight", "xlayers.2.norm2.weight", "layers.2.norm2.weight.x", "layers.2.norm2.gamma"):
        assert pattern.match(other) is None


def test_a_number_has_one_spelling() -> None:
    pattern = compile_pattern("layers.{i}.x", {}, {})
    for other in ("layers.02.x", "layers.-1.x", "layers.\u0662.x", "layers. 2.x", "layers.2\n.x", "layers.2.x\n"):
        assert pattern.match(other) is None


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 1000))
def test_affine_captures_read_both_ways(scale: int, offset: int, number: int) -> None:
    pattern = compile_pattern(f"tower.{{{scale}*block + {offset}}}.w", {}, {})
    key = f"tower.{number}.w"
    captures = pattern.match(key)
    if (number - offset) % scale or number < offset:
        assert captures is None
    else:
        assert captures == {"block": (number - offset) // scale}
        assert pattern.format(captures) == key


def test_dots_are_literal() -> None:
    assert compile_pattern("a.b", {}, {}).match("axb") is None


@pytest.mark.parametrize("text", ["{i}{j}", "a.{i", "a}.b", "{i*i}", "{param}{i}"])
def test_refuses_what_cannot_be_read_back(text: str) -> None:
    with pytest.raises(TableError):
        compile_pattern(text, WORDS, {})


def test_never_writes_a_negative_number() -> None:
    with pytest.raises(TableError, match="gives -1"):
        compile_pattern("norm{level - 1}", {}, {}).format({"level": 0})


TEXTS = ["a.{i}.w", "{i}.w", "a.{i}.{param}", "a.1.w", "b.{i}.w", "a.{i}.w", "a", "a.{i + 1}.bias"]


@given(
    st.lists(st.sampled_from(TEXTS), max_size=8),
    st.sampled_from(["a.1.w", "1.w", "a.1.bias", "a.0.bias", "a", "", "b"]),
)
def test_items_are_found_as_by_a_try_of_every_pattern(texts: list[str], key: str) -> None:
    items = [(compile_pattern(text, WORDS, {}), number) for number, text in enumerate(texts)]
    assert ByPattern(items).of(key) == [number for pattern, number in items if pattern.match(key) is not None]


def test_an_item_behind_two_patterns_that_match_is_found_once() -> None:
    item = object()
    patterns = [compile_pattern(text, {}, {}) for text in ("a.{i}", "a.{i + 1}", "a.1")]
    assert ByPattern((pattern, item) for pattern in patterns).of("a.1") == [item]
