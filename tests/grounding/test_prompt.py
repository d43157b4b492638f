"""Prompts in tokens: which tokens are a phrase's, checked by another formulation, and what can't be a prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from converter.errors import ModelError
from converter.glip.detect.preprocessing import glip_preprocessing
from converter.grounding.prompt import Prompt, as_prompt, captions, parse_span, read_prompt, token_positions
from converter.grounding.tokenizer import Tokenizer
from tests import DATA
from tests.support.bert_vocabulary import WORDS, small_vocabulary

SETTINGS = glip_preprocessing()
CAPTURES = DATA / "captures"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(small_vocabulary(tmp_path_factory.mktemp("vocabulary")))


def pieces(tokenizer: Tokenizer, prompt: Prompt) -> list[list[str]]:
    """The pieces of each phrase, labels in order."""
    return [
        [tokenizer.pieces[caption.ids[position]] for position in positions]
        for caption in captions(prompt, tokenizer, SETTINGS)
        for positions in caption.positive_map.values()
    ]


def test_names_are_joined_as_for_evaluation(tokenizer: Tokenizer) -> None:
    (caption,) = captions(Prompt.parse("person. traffic light .. hair drier."), tokenizer, SETTINGS)
    assert caption.text == "person. traffic light. hair drier"
    spoken = " ".join(tokenizer.pieces[i] for i in caption.ids)
    assert spoken == "[CLS] person . traffic light . hair dr ##ier [SEP]"
    assert caption.positive_map == {1: [1], 2: [3, 4], 3: [6, 7, 8]}


def test_captions_end_and_are_lower_case_where_the_settings_say_so(tokenizer: Tokenizer) -> None:
    ended = replace(SETTINGS, caption_end=".", lowercase=True, caption_tokens=8)
    made = captions(Prompt.parse("Person. Traffic light. Umbrella"), tokenizer, ended)
    assert [caption.text for caption in made] == ["person. traffic light.", "umbrella."]
    assert [caption.positive_map for caption in made] == [{1: [1], 2: [3, 4]}, {3: [1]}]
    assert max(len(caption.ids) for caption in made) == 7
    for text in ("A Person", "A Person."):
        (caption,) = captions(Prompt.of_phrases(text, ["Person"]), tokenizer, ended)
        assert (caption.text, caption.positive_map) == ("a person.", {1: [2]})


def test_what_a_command_line_says() -> None:
    assert read_prompt("cat. dog", None, (), ()) == Prompt.parse("cat. dog")
    assert read_prompt(["cat"], None, (), ()) == Prompt.of_names(["cat"])
    assert read_prompt(None, "a cat", ["0:1"], ["cat"]).spans == ((2, 5), (0, 1))


def test_a_name_may_hold_full_stops(tokenizer: Tokenizer) -> None:
    prompt = Prompt.of_names(["traffic light", " U.S. flag", "U.S."])
    assert prompt.phrases == ("traffic light", "U.S. flag", "U.S.")
    (caption,) = captions(prompt, tokenizer, SETTINGS)
    assert caption.text == "traffic light. U.S. flag. U.S."
    assert pieces(tokenizer, prompt) == [["traffic", "light"], ["u", ".", "s", ".", "flag"], ["u", ".", "s", "."]]
    assert caption.positive_map == {1: [1, 2], 2: [4, 5, 6, 7, 8], 3: [10, 11, 12, 13]}


def test_phrases_of_a_sentence(tokenizer: Tokenizer) -> None:
    prompt = Prompt.of_caption("a person with two dogs", [(2, 8), (18, 22), (14, 22)])
    assert prompt.phrases == ("person", "dogs", "two dogs")
    assert pieces(tokenizer, prompt) == [["person"], ["dogs"], ["two", "dogs"]]


def test_a_span_within_a_word_is_the_pieces_that_it_touches(tokenizer: Tokenizer) -> None:
    prompt = Prompt.of_caption("skateboarding", [(0, 1), (4, 6), (3, 13)])
    assert pieces(tokenizer, prompt) == [["skate"], ["skate", "##board"], ["skate", "##board", "##ing"]]


def test_the_map_is_the_one_that_the_official_code_was_captured_with() -> None:
    bert = Tokenizer.bert_base_uncased()
    with safe_open(CAPTURES / "glip-t.safetensors", "numpy") as file:
        facts = json.loads(file.metadata()["capture"])
    caption = facts["captions"][0]
    spans = [(caption.index(name), caption.index(name) + len(name)) for name in caption.strip(" .").split(". ")]
    (made,) = captions(Prompt.of_caption(caption, spans), bert, SETTINGS)
    assert {str(label): positions for label, positions in made.positive_map.items()} == facts[
        "positive_map_label_to_token"
    ]


words = st.lists(st.sampled_from(["dog", "skateboarding", "Traffic", "é", "!", "hair-drier", "zebra"]), min_size=1)


@given(words=words, data=st.data())
def test_a_phrase_has_the_tokens_of_its_characters(tokenizer: Tokenizer, words: list[str], data: st.DataObject) -> None:
    """Another formulation: ask of each character which token it is in, by the library itself."""
    text = " ".join(words)
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    encoding = tokenizer._backend.encode(text)
    by_character = {encoding.char_to_token(position) for position in range(start, end)} - {None}
    assert set(token_positions(tokenizer.encode(text), (start, end))) == by_character


def test_many_names_take_several_captions(tokenizer: Tokenizer) -> None:
    names = ["dog", "traffic light", "hair drier"] * 120
    prompt = Prompt(tuple(names))
    made = captions(prompt, tokenizer, SETTINGS)
    assert [len(caption.ids) for caption in made] == [255, 256, 253, 253, 68]
    assert [label for caption in made for label in caption.positive_map] == list(range(1, 361))
    assert pieces(tokenizer, prompt) == [["dog"], ["traffic", "light"], ["hair", "dr", "##ier"]] * 120


COCO = """
    person. bicycle. car. motorcycle. airplane. bus. train. truck. boat. traffic light. fire hydrant. stop sign.
    parking meter. bench. bird. cat. dog. horse. sheep. cow. elephant. bear. zebra. giraffe. backpack. umbrella.
    handbag. tie. suitcase. frisbee. skis. snowboard. sports ball. kite. baseball bat. baseball glove. skateboard.
    surfboard.
    tennis racket. bottle. wine glass. cup. fork. knife. spoon. bowl. banana. apple. sandwich. orange. broccoli. carrot.
    hot dog. pizza. donut. cake. chair. couch. potted plant. bed. dining table. toilet. tv. laptop. mouse. remote.
    keyboard. cell phone. microwave. oven. toaster. sink. refrigerator. book. clock. vase. scissors. teddy bear.
    hair drier. toothbrush.
"""


def test_the_names_of_coco_take_one_caption() -> None:
    """And are warned of in nothing."""
    (caption,) = captions(Prompt.parse(COCO), Tokenizer.bert_base_uncased(), SETTINGS)
    assert (len(caption.positive_map), len(caption.ids)) == (80, 194)


def test_hundreds_of_names_take_captions_of_what_fits(tokenizer: Tokenizer) -> None:
    """1,203 as LVIS has; each caption is as full as it can be, and labels count through."""
    words = [word for word in WORDS if word.isalpha() and len(word) > 2]
    names = [f"{a} {b} {c}" for a in words for b in words for c in words][:1203]
    prompt = Prompt.of_names(names)
    made = captions(prompt, tokenizer, SETTINGS)
    assert [label for caption in made for label in caption.positive_map] == list(range(1, 1204))
    assert [" ".join(found) for found in pieces(tokenizer, prompt)] == names
    assert {len(caption.ids) for caption in made[:-1]} == {253}  # 63 names of 3 tokens and a stop; 64 would be 257


def test_captions_may_have_fewer_names_as_lvis_is_evaluated(tokenizer: Tokenizer) -> None:
    names = [f"dog {'small ' * number}cat" for number in range(40)]
    made = captions(Prompt.of_names(names, per_caption=8), tokenizer, SETTINGS)
    assert [list(caption.positive_map) for caption in made[:2]] == [list(range(1, 9)), list(range(9, 17))]
    assert len(made) > 5  # the last names are too long for eight
    assert [label for caption in made for label in caption.positive_map] == list(range(1, 41))
    with pytest.raises(ModelError, match="0 names per caption, expected at least 1"):
        Prompt.of_names(["dog"], per_caption=0)


def test_a_caption_may_be_full_and_no_fuller(tokenizer: Tokenizer) -> None:
    (full,) = captions(Prompt.of_names([" ".join(["dog"] * 254)]), tokenizer, SETTINGS)
    assert len(full.ids) == 256
    with pytest.raises(ModelError, match="alone has 257 tokens, expected at most 256"):
        captions(Prompt.of_names([" ".join(["dog"] * 255)]), tokenizer, SETTINGS)
    with pytest.raises(ModelError, match="has 302 tokens, expected at most 256"):
        captions(Prompt.of_caption(" ".join(["dog"] * 300), [(0, 3)]), tokenizer, SETTINGS)


def test_a_word_that_the_vocabulary_does_not_know_is_refused(tokenizer: Tokenizer) -> None:
    assert "zebra" not in WORDS
    with pytest.raises(ModelError, match="no word of 'zebra' is in the vocabulary"):
        captions(Prompt.parse("dog. zebra."), tokenizer, SETTINGS)
    assert pieces(tokenizer, Prompt.parse("red zebra")) == [["red", "[UNK]"]]


@pytest.mark.parametrize("text", ["", ".", " . ..", "\n"])
def test_no_names_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="expected names like"):
        Prompt.parse(text)


@pytest.mark.parametrize("names", [[], [""], ["dog", " "]])
def test_an_empty_name_is_refused(names: list[str]) -> None:
    with pytest.raises(ModelError, match="expected at least one name"):
        Prompt.of_names(names)


@pytest.mark.parametrize("names", ["dog", ["dog", None], 5 * [b"dog"]])
def test_names_are_a_list_of_texts(names: Any) -> None:
    with pytest.raises(ModelError, match="expected a list of names"):
        Prompt.of_names(names)


def test_a_prompt_is_a_text_a_list_or_a_prompt() -> None:
    prompt = Prompt.of_names(["person", "traffic light"])
    for same in ("person. traffic light.", ["person", "traffic light"], ("person", "traffic light"), prompt):
        assert as_prompt(same) == prompt
    for wrong in (None, 5, {"person"}, [["person"]], b"person", {"person": 1}):
        with pytest.raises(ModelError, match=r"prompt: found .*, expected a text like 'person\. traffic light\.'"):
            as_prompt(wrong)  # type: ignore[arg-type]


def test_a_name_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ModelError, match=r"the name 'U\.S\. flag' is there twice"):
        Prompt.of_names(["U.S. flag", "dog", "U.S. flag "])


@pytest.mark.parametrize("span", [(0, 0), (3, 2), (-1, 2), (0, 9), (8, 9)])
def test_a_span_outside_the_caption_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match="within the 8 characters"):
        Prompt.of_caption("two dogs", [span])


def test_spans_without_words_are_refused() -> None:
    with pytest.raises(ModelError, match="contains no word"):
        Prompt.of_caption("two dogs", [(3, 4)])
    with pytest.raises(ModelError, match="at least one phrase of it"):
        Prompt.of_caption("two dogs", [])


def test_spans_are_pairs_of_numbers() -> None:
    assert parse_span(" 2:8 ") == (2, 8)
    for text in ("", "2", "2-8", "2:", "-1:3", "2:8:9", "٢:٨", "1:" + "9" * 5000):
        with pytest.raises(ModelError, match=r"like 2:8"):
            parse_span(text)
