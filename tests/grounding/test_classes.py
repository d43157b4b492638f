"""Classes as captions: beside a tokenizer of another package, and the official rule for which tokens are a class's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from converter.errors import ModelError
from converter.glip.detect.preprocessing import glip_preprocessing
from converter.glip.task.protocol import load_protocol
from converter.grounding.classes import class_captions, clean
from converter.grounding.prompt import Caption
from converter.grounding.tokenizer import SHIPPED, Tokenizer
from converter.parity.capture import load_capture
from converter.parity.family import Asked, Class
from tests import DATA


@cache
def others() -> Any:
    return BertTokenizerFast(str(SHIPPED))


def captions(classes: Sequence[Class], data: str = "own", **changed: str) -> list[Caption]:
    protocol = load_protocol(Asked("official", changed), data)
    settings = protocol.preprocessing(glip_preprocessing())
    return class_captions(classes, protocol, Tokenizer.bert_base_uncased(), settings)


def official_positions(text: str, start: int, end: int) -> list[int]:
    """As the official code finds the tokens of a class: from that of its first letter to that of its last one.

    Where a letter has no token, the next two are tried, or the two before the last.
    """
    encoded = others()(text)
    first = next((t for at in range(start, start + 3) if (t := encoded.char_to_token(at)) is not None), None)
    last = next((t for at in range(end - 1, end - 4, -1) if (t := encoded.char_to_token(at)) is not None), None)
    return [] if first is None or last is None else list(range(first, last + 1))


def check(classes: Sequence[Class], made: Sequence[Caption], names: Sequence[str]) -> None:
    begin = 0
    for caption in made:
        assert caption.ids == tuple(others()(caption.text)["input_ids"])
        assert len(caption.ids) <= 256
        at = 0
        for each, name in zip(classes[begin:], names[begin:], strict=True):
            if each.id not in caption.positive_map:
                break
            at = caption.text.index(each.prefix + name + each.suffix, at) + len(each.prefix)
            assert caption.positive_map[each.id] == official_positions(caption.text, at, at + len(name))
            at += len(name) + len(each.suffix)
            begin += 1
    assert begin == len(classes)


LVIS = ["aerosol_can", "bow_(weapon)", "bow_(decorative_ribbons)", "Dixie_cup", "crêpe", "T-shirt", "Band_Aid"] * 40


def test_lvis_is_cut_into_captions_of_forty() -> None:
    """Two names that are one without their brackets stay two classes."""
    classes = [Class(number, name) for number, name in enumerate(LVIS, start=1)]
    made = captions(classes, "lvis")
    assert [len(caption.positive_map) for caption in made] == [40] * 7
    assert made[0].text.startswith("aerosol can. bow . bow . Dixie cup. crêpe. T-shirt. Band Aid. aerosol can")
    check(classes, made, [clean(name) for name in LVIS])


def test_names_are_cleaned_as_the_reference_does() -> None:
    assert [clean(name) for name in ("bow_(weapon)", "a_(b)_c", "x__y", "(all)", "traffic light")] == [
        "bow ", "a c", "x y", "", "traffic light",
    ]  # fmt: skip


@given(st.lists(st.from_regex(r"[A-Za-z][A-Za-z_' -]{0,12}[a-z]", fullmatch=True), min_size=1, max_size=60))
def test_any_names_have_the_tokens_of_the_official_rule(names: list[str]) -> None:
    classes = [Class(number, name) for number, name in enumerate(names, start=1)]
    check(classes, captions(classes), [clean(name) for name in names])


def test_prompts_of_classes() -> None:
    classes = [
        Class(1, "penguin", "", "penguin", " , which is black and white"),
        Class(2, "puffin", "a ", None, " too"),
    ]
    (caption,) = captions(classes)
    assert caption.text == "penguin , which is black and white. a puffin too"
    check(classes, [caption], ["penguin", "puffin"])


def test_classes_come_by_id_or_as_asked() -> None:
    classes = [Class(7, "dog"), Class(3, "person"), Class(5, "cat")]
    assert [captions(classes, order=order)[0].text for order in ("id", "name", "reversed")] == [
        "person. cat. dog", "cat. dog. person", "dog. cat. person",
    ]  # fmt: skip
    assert list(captions(classes)[0].positive_map) == [3, 5, 7]
    assert captions(classes, separator=" . ")[0].text == "person . cat . dog"
    assert captions([Class(1, "fire_truck")], names_cleaned="false")[0].text == "fire_truck"


def test_what_does_not_fit_one_caption_is_divided() -> None:
    names = [f"old stone bridge number {word}" for word in ("one", "two", "three", "four", "five") * 20]
    classes = [Class(number, name) for number, name in enumerate(names, start=1)]
    made = captions(classes)
    assert len(made) > 1
    check(classes, made, names)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("word " * 300, "alone has 302 tokens, expected at most 256"),
        ("_(weapon)", "class 9, '_.weapon.': its caption would be empty"),
        ("☃", "no word of '☃' is in the vocabulary"),
    ],
)
def test_a_class_that_cannot_be_asked_for(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        captions([Class(1, "dog"), Class(9, name)])


RECORDED = [path for path in sorted((DATA / "captures").glob("glip-t*.safetensors")) if "large" not in path.name]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_the_tokens_of_classes_are_those_that_the_official_code_recorded(path: Path) -> None:
    with load_capture(path) as capture:
        text = capture.facts["captions"][0]
        recorded = capture.facts["positive_map_label_to_token"]
        ids = capture.inputs["input_ids"][0].tolist()
    names = text.rstrip(". ").split(". ")
    (caption,) = captions([Class(number, name) for number, name in enumerate(names, start=1)])
    assert {str(label): at for label, at in caption.positive_map.items()} == recorded
    if "five" not in path.stem:  # which was recorded with a vocabulary of its own
        assert list(caption.ids[:-1]) == ids[: len(caption.ids) - 1]
