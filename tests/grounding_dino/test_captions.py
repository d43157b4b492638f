"""Prompts as captions: beside the official preprocess_caption and another tokenizer."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import BertTokenizerFast, GroundingDinoProcessor

from converter.errors import ConverterWarning
from converter.grounding.prompt import Prompt, captions
from converter.grounding.tokenizer import SHIPPED, Tokenizer
from converter.grounding_dino.detect.preprocessing import released_preprocessing
from converter.grounding_dino.family import FAMILY
from tests.support.small_grounding_dino import SIZES

SETTINGS = released_preprocessing()
WORDS = st.from_regex(r"[A-Za-zÀ-ʯΑ-ω][A-Za-zÀ-ʯΑ-ω' -]{0,12}[a-zς]", fullmatch=True)


@cache
def others() -> Any:
    return BertTokenizerFast(str(SHIPPED))


@cache
def ours() -> Tokenizer:
    return Tokenizer.bert_base_uncased()


def official(text: str) -> str:
    """groundingdino/util/inference.py, preprocess_caption."""
    text = text.lower().strip()
    return text if text.endswith(".") else text + "."


@given(st.lists(WORDS, min_size=1, max_size=12, unique=True))
def test_names_are_read_as_both_others_read_them(names: list[str]) -> None:
    alone = [others()(name.lower(), add_special_tokens=False)["input_ids"] for name in names]
    assume(all(others().unk_token_id not in ids for ids in alone))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConverterWarning)
        made = captions(Prompt.of_names(names), ours(), SETTINGS)
    (caption,) = made
    theirs = GroundingDinoProcessor._preprocess_input_text(None, names)
    assert caption.text == official(". ".join(names)) == theirs
    assert list(caption.ids) == others()(theirs)["input_ids"]
    assert [[caption.ids[at] for at in tokens] for tokens in caption.positive_map.values()] == alone


def test_more_names_than_tokens_are_several_captions_that_all_end() -> None:
    names = [f"old stone bridge number {word}" for word in map(str, range(60))]
    made = captions(Prompt.of_names(names), ours(), SETTINGS)
    assert len(made) == 2
    assert all(caption.text.endswith(".") and len(caption.ids) <= 256 for caption in made)
    assert [label for caption in made for label in caption.positive_map] == list(range(1, 61))


def test_as_many_fit_as_the_model_has_tokens_for() -> None:
    """[CLS], 127 names with their full stops, [SEP]: one token is left."""
    names = [word for word in Path(SHIPPED).read_text(encoding="utf-8").split("\n")[3000:5000] if word.isalpha()]
    made = captions(Prompt.of_names(names[:128]), ours(), SETTINGS)
    assert [(len(caption.ids), len(caption.positive_map)) for caption in made] == [(256, 127), (4, 1)]


def test_phrases_of_a_sentence_stay_where_they_are_in_lower_case() -> None:
    """The first letter is two in lower case."""
    sentence = "İstanbul: A Person next to the Umbrella"
    (caption,) = captions(Prompt.of_phrases(sentence, ["A Person", "Umbrella"]), ours(), SETTINGS)
    assert caption.text == official(sentence)
    said = [others().decode([caption.ids[at] for at in tokens]) for tokens in caption.positive_map.values()]
    assert said == ["a person", "umbrella"]
    (ended,) = captions(Prompt.of_phrases("A dog. ", ["dog"]), ours(), SETTINGS)
    assert ended.ids == tuple(others()(official("A dog. "))["input_ids"])


@pytest.mark.parametrize("name", ["U.S. flag", "what is this?"])
def test_marks_at_which_the_model_divides_captions_are_told(name: str) -> None:
    with pytest.warns(ConverterWarning, match=r"holds a full stop or a question mark, at which the model divides"):
        FAMILY.prompt([name, "dog"])


def test_a_query_needs_no_model(tmp_path: Path) -> None:
    query = FAMILY.query(FAMILY.prompt("Cat. remote control"), tmp_path, SIZES, None)
    assert query.captions == ["cat. remote control."]
    assert query.phrases == ("Cat", "remote control")
    (tokens,) = query.facts["captions"]
    assert tokens["labels"] == [[1, 1], [2, 3, 4]]
