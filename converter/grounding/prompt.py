"""What to look for: class names or phrases of a sentence, and the tokens of each."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from converter.display import plain, quoted
from converter.errors import ConverterWarning, ModelError
from converter.grounding.preprocessing import Preprocessing
from converter.grounding.tokenizer import Encoded, Tokenizer
from converter.grounding.wording import Span, closing_stops, doubts, phrase_spans, repeated, underscores


@dataclass(frozen=True, slots=True)
class Prompt:
    """Phrases to look for; label n is the n-th of them, counted from 1.

    Class names are joined to a caption, or to several where they are too many for one, or more than `per_caption`. With
    `spans` (from, to in characters) the phrases are parts of one caption that the user wrote.
    """

    phrases: tuple[str, ...]
    caption: str | None = None
    spans: tuple[Span, ...] = ()
    per_caption: int | None = None

    @classmethod
    def of_names(cls, names: Sequence[str], per_caption: int | None = None) -> Prompt:
        """Class names, full stops allowed. ModelError if there is none, one is empty, or one is there twice.

        per_caption: the most names of a caption; by default as many as fit. The reference evaluates LVIS with 40.
        A ConverterWarning if names end with a full stop as they do in a text, or have underscores.
        """
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ModelError(
                f"prompt: found {plain(repr(names), 80)}, expected a list of names. A text is read by Prompt.parse."
            )
        phrases = tuple(name.strip() for name in names)
        if not phrases or not all(phrases):
            raise ModelError(f"prompt: found {quoted(str(list(names)), 80)}, expected at least one name, none empty.")
        if twice := repeated(phrases):
            raise ModelError(f"prompt: the name {quoted(twice, 80)} is there twice. Give it once.")
        if per_caption is not None and per_caption < 1:
            raise ModelError(f"prompt: found {per_caption} names per caption, expected at least 1.")
        _warn([*closing_stops(phrases), *underscores(phrases)])
        return cls(phrases, per_caption=per_caption)

    @classmethod
    def parse(cls, text: str) -> Prompt:
        """Class names separated by full stops: `person. traffic light.`

        A ConverterWarning for what is hardly meant: names divided by commas, full stops or underscores within a name, a
        name twice.
        """
        names = [name.strip() for name in text.split(".") if name.strip()]
        if not names:
            raise ModelError(f"prompt: found {quoted(text, 80)}, expected names like 'person. traffic light.'")
        _warn([*doubts(text, names), *underscores(names)])
        return cls(tuple(names))

    @classmethod
    def of_phrases(cls, caption: str, phrases: Sequence[str]) -> Prompt:
        """Phrases of a sentence by their words: `["a person", "umbrella"]` of `a person next to the umbrella`.

        Whole words; in the same case, else in any. ModelError for a phrase that is not there, or that is there more or
        less often than it is given.
        """
        return cls.of_caption(caption, phrase_spans(caption, [phrases] if isinstance(phrases, str) else phrases))

    @classmethod
    def of_caption(cls, caption: str, spans: Sequence[Span]) -> Prompt:
        """Phrases of a sentence: (start, end) in characters, end excluded. ModelError for a span without words."""
        if not spans:
            raise ModelError("prompt: a caption needs at least one phrase of it, by its words or as a span from:to.")
        for start, end in spans:
            if not 0 <= start < end <= len(caption):
                raise ModelError(
                    f"prompt: found the span {start}:{end}, expected from:to within the {len(caption)} characters of "
                    "the caption."
                )
            if not caption[start:end].strip():
                raise ModelError(f"prompt: the span {start}:{end} contains no word.")
        return cls(tuple(caption[start:end] for start, end in spans), caption, tuple(spans))


def read_prompt(
    names: str | Sequence[str] | None, caption: str | None, spans: Sequence[str], phrases: Sequence[str]
) -> Prompt:
    """What a command line says, as `converter.parity.family.Family.prompt` takes it. ModelError."""
    if caption is not None:
        return Prompt.of_caption(caption, [*phrase_spans(caption, phrases), *map(parse_span, spans)])
    return Prompt.parse(names) if isinstance(names, str) else Prompt.of_names(names or ())


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
        text, spans = _worded(prompt.caption, prompt.spans, settings)
        return [make_caption(text, dict(enumerate(spans, start=1)), tokenizer, settings)]
    phrases = [phrase.lower() if settings.lowercase else phrase for phrase in prompt.phrases]
    made, begin = [], 0
    for group in groups(phrases, prompt.per_caption, tokenizer, settings):
        labels, text = {}, ""
        for offset, phrase in enumerate(group, start=1):
            text += settings.phrase_separator if text else ""
            labels[begin + offset] = (len(text), len(text) + len(phrase))
            text += phrase
        made.append(make_caption(text + settings.caption_end, labels, tokenizer, settings))
        begin += len(group)
    return made


def _worded(caption: str, spans: Sequence[Span], settings: Preprocessing) -> tuple[str, list[Span]]:
    """A caption that the user wrote, in the case and with the end that the model was trained with, and where spans are.

    A letter may become two in lower case, so that spans move.
    """
    text = caption
    moved = list(spans)
    if settings.lowercase:
        text = caption.lower()
        moved = [(len(caption[:start].lower()), len(caption[:end].lower())) for start, end in spans]
    if settings.caption_end and not text.rstrip().endswith(settings.caption_end.strip()):
        text += settings.caption_end
    return text, moved


def groups(
    phrases: Sequence[str], per_caption: int | None, tokenizer: Tokenizer, settings: Preprocessing
) -> list[list[str]]:
    """As many phrases to a caption as fit. The separator's punctuation keeps tokens apart, so their counts add up.

    ModelError for one that is too long by itself.
    """
    separator, end = (len(tokenizer.encode(text).ids) - 2 for text in (settings.phrase_separator, settings.caption_end))
    framed = 2 + end  # [CLS] and [SEP], and what every caption ends with
    made: list[list[str]] = [[]]
    filled = framed
    for phrase in phrases:
        size = len(tokenizer.encode(phrase).ids) - 2
        if size + framed > settings.caption_tokens:
            raise ModelError(
                f"prompt: the name {quoted(phrase, 60)} alone has {size + framed} tokens, expected at most "
                f"{settings.caption_tokens}. Are these several names? Full stops separate them."
            )
        is_full = len(made[-1]) == per_caption or filled + separator + size > settings.caption_tokens
        if made[-1] and is_full:
            made.append([])
            filled = framed
        filled += size + (separator if made[-1] else 0)
        made[-1].append(phrase)
    return made


def make_caption(text: str, labels: Mapping[int, Span], tokenizer: Tokenizer, settings: Preprocessing) -> Caption:
    """A text with the span of each label in it. ModelError if it is too long, or a span has no known word."""
    encoded = tokenizer.encode(text)
    if len(encoded.ids) > settings.caption_tokens:
        raise ModelError(
            f"prompt: the caption {quoted(text, 60)} has {len(encoded.ids)} tokens, expected at most "
            f"{settings.caption_tokens}: the model was not trained on longer ones. Shorten it, or give its phrases as "
            "names, which take several captions where they are many."
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


def _warn(doubts: Iterable[str]) -> None:
    for doubt in doubts:
        warnings.warn(doubt, ConverterWarning, stacklevel=3)
