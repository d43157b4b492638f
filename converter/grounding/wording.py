"""What people write in prompts: likely mistakes, and phrases found again in a sentence."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from converter.display import listed, quoted
from converter.errors import ModelError

Span = tuple[int, int]
_OTHER_SEPARATOR = re.compile(r"[;|]|[^\S ]|(?<!\d),|,(?!\d)")  # 3,5 is a number in some languages
_LONGEST = 200  # characters of a name that are looked at for its right form
_SEARCHED_WORDS = 1000  # of a caption, for words like those of a phrase that is not in it


def doubts(text: str, names: Sequence[str]) -> Iterator[str]:
    """What is hardly meant in a text of names, divided at its full stops into `names`; a sentence for each kind."""
    joined = [name for name in names if _OTHER_SEPARATOR.search(name)]
    parts = [part for name in names for part in _parts(name)]
    if joined and parts:
        yield (
            f"prompt: {quoted(joined[0], 80)} is one name, since full stops separate names. For several write "
            f"{quoted('. '.join(parts) + '.', 200)}; if it is meant as one, give it by --name, or in a list."
        )
    letters = [name for name in names if len(name) == 1 and name.lower() != name.upper()]
    if (letters and len(letters) < len(names)) or re.search(r"\d\.\d", text):
        yield (
            f"prompt: {quoted(text, 80)} has the names {listed(quoted(name, 40) for name in names)}, since full stops "
            "separate names. A name that holds a full stop is given by --name, or in a list."
        )
    if twice := repeated(names):
        yield f"prompt: the name {quoted(twice, 80)} is given twice, so its objects are found twice. Give it once."


def _parts(name: str) -> list[str]:
    """What a name that other separators divide was to be: 'person, dog and cat' is three."""
    if not _OTHER_SEPARATOR.search(name):
        return [name]
    *parts, last = _OTHER_SEPARATOR.split(name)
    words = (re.sub(r"^(and|or)\s", "", part.strip()) for part in [*parts, *re.split(r"\s(?:and|or)\s", last)])
    return [part for word in words if (part := word.strip(" \"'[](){}"))]


def repeated(names: Sequence[str]) -> str | None:
    """A name that is there more than once."""
    (name, count), *_ = Counter(names).most_common(1)
    return name if count > 1 else None


def underscores(names: Sequence[str]) -> Iterator[str]:
    """A sentence on names that were copied from a data set's list."""
    if marked := [name for name in names if "_" in name]:
        clean = " ".join(re.sub(r"\(.*\)", "", marked[0][:_LONGEST]).replace("_", " ").split())
        yield (
            f"prompt: the name {quoted(marked[0], 80)} is read with its underscore. Write {quoted(clean, 80)}, as the "
            "reference's evaluation reads it."
        )


def closing_stops(names: Sequence[str]) -> Iterator[str]:
    """A sentence on names of a list that end with a full stop as in a text, but not as abbreviations do."""
    # with the first condition the pattern takes no time that grows with the square of a name
    ended = [name for name in names if name[-1] == "." and re.fullmatch(r"(?:[^.]*\w{4}|.*\w{3}\. .*)\.", name)]
    if ended:
        yield (
            f"prompt: the name {quoted(ended[0], 80)} ends with a full stop, which is read as a part of it. Names that "
            "are given one by one need none."
        )


def phrase_spans(caption: str, phrases: Sequence[str]) -> list[Span]:
    """(start, end) in characters of each phrase in the caption: whole words, in the same case if it is there so.

    A phrase that is there several times has to be given as often, and then they are taken in their order: which one of
    them is meant is not guessed. ModelError.
    """
    waiting = {}
    for phrase in dict.fromkeys(phrases):
        found, asked = _occurrences(caption, phrase), phrases.count(phrase)
        if not found:
            near = _nearest(caption, phrase)
            raise ModelError(
                f"prompt: the phrase {quoted(phrase, 80)} is not in the caption {quoted(caption)}. "
                + (f"Nearest: {listed(quoted(words, 80) for words in near)}. " if near else "")
                + "Give words as they stand there."
            )
        if len(found) != asked:
            places = [f"{start}:{end}" for start, end in found]
            raise ModelError(
                f"prompt: the phrase {quoted(phrase, 80)} is in the caption {_times(len(found))} ({listed(places)}), "
                f"and was given {_times(asked)}. Give more of its words, or its place: --span {places[0]}."
            )
        waiting[phrase] = iter(found)
    return [next(waiting[phrase]) for phrase in phrases]


def _occurrences(caption: str, phrase: str) -> list[Span]:
    words = [re.escape(word) for word in phrase.split()]
    if not words:
        raise ModelError(f"prompt: found the phrase {quoted(phrase, 80)}, expected words of the caption.")
    # whole words; what begins or ends with a mark, like 's, may follow or precede anything there
    begin, end = (
        (r"(?<!\w)" if re.match(r"\w", phrase.strip()) else ""),
        (r"(?!\w)" if re.search(r"\w\s*$", phrase) else ""),
    )
    pattern = begin + r"\s+".join(words) + end
    for flags in (0, re.IGNORECASE):
        if found := [match.span() for match in re.finditer(pattern, caption, flags)]:
            return found
    return []


def _nearest(caption: str, phrase: str) -> list[str]:
    """Words of the caption that look like the phrase, at most three groups of them."""
    words, length = caption.split()[:_SEARCHED_WORDS], len(phrase.split())
    groups = {
        group.lower(): group
        for count in (length, length + 1, length - 1)
        if count > 0
        for at in range(len(words) - count + 1)
        if (group := " ".join(words[at : at + count]).strip(".,;:!?\"'"))
    }
    return [groups[like] for like in difflib.get_close_matches(phrase.lower()[:200], list(groups), n=3)]


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
