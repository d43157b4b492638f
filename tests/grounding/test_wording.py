"""What people write: names that are divided otherwise, stops within names, and phrases by their words."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path

import pytest

from converter.errors import ConverterWarning, ModelError
from converter.glip.detect.preprocessing import glip_preprocessing
from converter.grounding.prompt import Prompt, captions
from converter.grounding.tokenizer import Tokenizer
from tests.support.bert_vocabulary import small_vocabulary


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("person, dog", "person. dog."),
        ("person, dog.", "person. dog."),
        ("person,dog,cat", "person. dog. cat."),
        ("person, dog, and cat", "person. dog. cat."),
        ("person, dog and cat", "person. dog. cat."),
        ("person; traffic light", "person. traffic light."),
        ("person | dog", "person. dog."),
        ("person\ndog\n", "person. dog."),
        ("person\tdog", "person. dog."),
        ("person. dog, cat. car.", "person. dog. cat. car."),
        ("['person', 'dog']", "person. dog."),
        ('["person", "dog"]', "person. dog."),
    ],
)
def test_names_that_are_divided_otherwise_are_one_name_and_a_warning(text: str, form: str) -> None:
    with pytest.warns(ConverterWarning, match=re.escape(f"For several write {form!r}")) as said:
        prompt = Prompt.parse(text)
    assert len(said) == 1
    assert str(said[0].message).startswith("prompt: ")
    assert len(prompt.phrases) == text.strip(".").count(".") + 1  # what is read has not changed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Prompt.parse(form)


@pytest.mark.parametrize(
    ("text", "first"), [("U.S. flag. dog.", "'U', 'S', 'flag', 'dog'"), ("3.5 inch disk", "'3', '5 inch disk'")]
)
def test_a_full_stop_within_a_name_is_a_warning(text: str, first: str) -> None:
    with pytest.warns(ConverterWarning, match=f"has the names {first}, since full stops separate names"):
        Prompt.parse(text)


def test_a_name_that_is_there_twice_is_a_warning() -> None:
    with pytest.warns(ConverterWarning, match="the name 'dog' is given twice, so its objects are found twice"):
        assert Prompt.parse("dog. cat. dog.").phrases == ("dog", "cat", "dog")


@pytest.mark.parametrize(
    ("name", "form"), [("traffic_light", "traffic light"), ("bow_(weapon)", "bow"), ("a__b", "a b")]
)
def test_names_of_a_data_set_with_underscores_are_a_warning(name: str, form: str) -> None:
    """As `clean_name` of the reference's maskrcnn_benchmark/engine/inference.py reads them."""
    for make in (lambda: Prompt.parse(f"dog. {name}."), lambda: Prompt.of_names(["dog", name])):
        with pytest.warns(ConverterWarning, match=re.escape(f"{name!r} is read with its underscore. Write {form!r},")):
            assert make().phrases == ("dog", name)


MEANT = """
    person. / person. traffic light. / person.dog.cat / salt and pepper. x-ray / A. B. C. / person dog
    3,5 mm jack. tape / hot-dog / a person's hat / 1. 2. 3. / 人. 狗. / ,
"""


@pytest.mark.parametrize("text", [text.strip() for line in MEANT.strip().splitlines() for text in line.split(" / ")])
def test_what_may_be_meant_is_no_warning(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Prompt.parse(text)


@pytest.mark.parametrize("names", [["person.", "dog."], ["traffic light."], ["person. dog."]])
def test_names_of_a_list_that_end_as_in_a_text_are_a_warning(names: list[str]) -> None:
    with pytest.warns(ConverterWarning, match="ends with a full stop, which is read as a part of it"):
        assert Prompt.of_names(names).phrases == tuple(names)


@pytest.mark.parametrize("names", [["U.S."], ["Washington D.C."], ["U.S. flag", "tench, Tinca tinca"], ["Acme Inc."]])
def test_names_of_a_list_are_taken_as_they_are(names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Prompt.of_names(names).phrases == tuple(names)


CAPTION = "A person next to the umbrella, and a dog's  collar"


@pytest.mark.parametrize(
    ("phrases", "spans"),
    [
        (["person"], [(2, 8)]),
        (["umbrella", "A person"], [(21, 29), (0, 8)]),
        (["a person", "UMBRELLA"], [(0, 8), (21, 29)]),
        (["  the umbrella "], [(17, 29)]),
        (["a"], [(35, 36)]),  # not the `A`, nor within words
        (["dog", "dog's collar", "'s"], [(37, 40), (37, 50), (40, 42)]),
        (["umbrella,"], [(21, 30)]),
    ],
)
def test_phrases_are_found_by_their_words(phrases: list[str], spans: list[tuple[int, int]]) -> None:
    prompt = Prompt.of_phrases(CAPTION, phrases)
    assert prompt == Prompt.of_caption(CAPTION, spans)
    assert prompt.phrases == tuple(CAPTION[start:end] for start, end in spans)


def test_a_phrase_that_is_not_there_is_an_error_with_the_nearest_words() -> None:
    for phrase, near in (("umbrela", "umbrella"), ("persons", "person"), ("Next by", "next")):
        with pytest.raises(ModelError, match=rf"the phrase {phrase!r} is not in the caption .*Nearest: {near!r}"):
            Prompt.of_phrases(CAPTION, [phrase])
    with pytest.raises(ModelError, match=r"is not in the caption .*collar\". Give words as they stand there"):
        Prompt.of_phrases(CAPTION, ["zebra"])
    for part in ("umb", "rella", "perso"):
        with pytest.raises(ModelError, match="is not in the caption"):
            Prompt.of_phrases(CAPTION, [part])
    with pytest.raises(ModelError, match="found the phrase ' ', expected words of the caption"):
        Prompt.of_phrases(CAPTION, ["person", " "])


def test_which_of_several_is_meant_is_not_guessed() -> None:
    caption = "a red car and a blue car"
    assert Prompt.of_phrases(caption, ["car", "car"]).spans == ((6, 9), (21, 24))
    assert Prompt.of_phrases(caption, ["car", "blue car", "car"]).spans == ((6, 9), (16, 24), (21, 24))
    for phrases, times in ((["car"], "once"), (["car"] * 3, "3 times")):
        with pytest.raises(ModelError, match=rf"twice \(6:9, 21:24\), and was given {times}\. .* --span 6:9"):
            Prompt.of_phrases(caption, phrases)


def test_long_captions_are_searched_at_once() -> None:
    """And refused by their tokens once there is a tokenizer."""
    with pytest.raises(ModelError, match="Nearest: 'a person'"):
        Prompt.of_phrases("a person " * 100_000, ["a persn"])


@pytest.mark.parametrize("text", ["abc. " * 200_000 + "abc", "_" + "(" * 1_000_000, "abc. " * 200_000])
def test_a_file_given_as_a_name_is_read_at_once(text: str) -> None:
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Prompt.of_names([text])
        Prompt.parse(text)
    assert time.process_time() - begin < 5


def test_a_name_that_is_too_long_by_itself_is_told_so(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(small_vocabulary(tmp_path))
    with pytest.raises(ModelError, match=r"the name 'dog dog.* alone has 302 tokens, .*Full stops separate them"):
        captions(Prompt.of_names(["cat", "dog " * 300]), tokenizer, glip_preprocessing())
    with pytest.raises(ModelError, match=r"the caption 'dog dog.* has 302 tokens, .*or give its phrases as names"):
        captions(Prompt.of_caption("dog " * 300, [(0, 3)]), tokenizer, glip_preprocessing())
