"""What to look for: class names or phrases of a sentence, and the tokens of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from converter.display import plain, quoted
from converter.errors import ModelError
from converter.glip.detect.preprocessing import Preprocessing
from converter.glip.detect.tokenizer import Encoded, Tokenizer

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Phrases to look for; label n is the n-th of them, counted from 1.

    Class names are joined to a caption, or to several where they are too many for one. With `spans` (from, to in
    characters) the phrases are parts of one caption that the user wrote.
    """

    phrases: tuple[str, ...]
    caption: str | None = None
    spans: tuple[Span, ...] = ()

    @classmethod
    def of_names(cls, names: Sequence[str]) -> Prompt:
        """Class names, full stops allowed. ModelError if there is none, one is empty, or one is there twice."""
        phrases = tuple(name.strip() for name in names)
        if not phrases or not all(phrases):
            raise ModelError(f"prompt: found {quoted(str(list(names)), 80)}, expected at least one name, none empty.")
        if len(set(phrases)) < len(phrases):
            twice = next(name for name in phrases if phrases.count(name) > 1)
            raise ModelError(f"prompt: the name {quoted(twice, 80)} is there twice. Give it once.")
        return cls(phrases)

    @classmethod
    def parse(cls, text: str) -> Prompt:
        """Class names separated by full stops: `person. traffic light.`"""
        names = [name.strip() for name in text.split(".") if name.strip()]
        if not names:
            raise ModelError(f"prompt: found {quoted(text, 80)}, expected names like 'person. traffic light.'")
        return cls(tuple(names))

    @classmethod
    def of_caption(cls, caption: str, spans: Sequence[Span]) -> Prompt:
        """Phrases of a sentence: (start, end) in characters, end excluded. ModelError for a span without words."""
        if not spans:
            raise ModelError("prompt: a caption needs at least one span, from:to in characters.")
        for start, end in spans:
            if not 0 <= start < end <= len(caption):
                raise ModelError(
                    f"prompt: found the span {start}:{end}, expected from:to within the {len(caption)} characters of "
                    "the caption."
                )
            if not caption[start:end].strip():
                raise ModelError(f"prompt: the span {start}:{end} contains no word.")
        return cls(tuple(caption[start:end] for start, end in spans), caption, tuple(spans))


def as_prompt(prompt: str | Sequence[str] | Prompt) -> Prompt:
    """A text as `Prompt.parse` reads it, a list of names, or a prompt as it is. ModelError."""
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt.parse(prompt)
    if isinstance(prompt, list | tuple) and all(isinstance(name, str) for name in prompt):
        return Prompt.of_names(prompt)
    raise ModelError(
        f"prompt: found {plain(repr(prompt), 80)}, expected a text like 'person. traffic light.', a list of names, or "
        "a Prompt."
    )


@dataclass(frozen=True, slots=True)
class Caption:
    """One text for the model: its ids, and for each label the positions of its tokens."""

    text: str
    ids: tuple[int, ...]
    positive_map: dict[int, list[int]]


def captions(prompt: Prompt, tokenizer: Tokenizer, settings: Preprocessing) -> list[Caption]:
    """The prompt as tokenised captions. ModelError if one is too long, or no word of a phrase is in the vocabulary."""
    if prompt.caption is not None:
        labels = dict(enumerate(prompt.spans, start=1))
        return [_caption(prompt.caption, labels, tokenizer, settings)]
    made, begin = [], 0
    for group in _groups(prompt.phrases, tokenizer, settings):
        labels, text = {}, ""
        for offset, phrase in enumerate(group, start=1):
            # joined as in the reference's evaluation: no separator after the last
            text += settings.phrase_separator if text else ""
            labels[begin + offset] = (len(text), len(text) + len(phrase))
            text += phrase
        made.append(_caption(text, labels, tokenizer, settings))
        begin += len(group)
    return made


def _groups(phrases: Sequence[str], tokenizer: Tokenizer, settings: Preprocessing) -> list[list[str]]:
    """As many phrases to a caption as fit. The separator's punctuation keeps tokens apart, so their counts add up."""
    separator = len(tokenizer.encode(settings.phrase_separator).ids) - 2
    groups: list[list[str]] = [[]]
    filled = 2  # [CLS] and [SEP]
    for phrase in phrases:
        size = len(tokenizer.encode(phrase).ids) - 2
        if groups[-1] and filled + separator + size > settings.caption_tokens:
            groups.append([])
            filled = 2
        filled += size + (separator if groups[-1] else 0)
        groups[-1].append(phrase)
    return groups


def _caption(text: str, labels: dict[int, Span], tokenizer: Tokenizer, settings: Preprocessing) -> Caption:
    encoded = tokenizer.encode(text)
    if len(encoded.ids) > settings.caption_tokens:
        raise ModelError(
            f"prompt: {quoted(text, 60)} has {len(encoded.ids)} tokens, expected at most {settings.caption_tokens}: "
            "the model was not trained on longer captions. Shorten it."
        )
    positive_map = {}
    for label, span in labels.items():
        positions = token_positions(encoded, span)
        if all(encoded.ids[position] == tokenizer.unknown for position in positions):
            raise ModelError(
                f"prompt: no word of {quoted(text[span[0] : span[1]], 60)} is in the vocabulary; say it in other words."
            )
        positive_map[label] = positions
    return Caption(text, encoded.ids, positive_map)


def token_positions(encoded: Encoded, span: Span) -> list[int]:
    """Positions of the tokens that share a character with the span, as the reference takes them."""
    start, end = span
    return [n for n, found in enumerate(encoded.spans) if found is not None and found[0] < end and found[1] > start]


def parse_span(text: str) -> Span:
    """`2:8` as (2, 8). ModelError for any other text."""
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text.strip())
    if match is None:
        raise ModelError(f"prompt: found the span {quoted(text, 40)}, expected from:to in characters, like 2:8.")
    return int(match[1]), int(match[2])
