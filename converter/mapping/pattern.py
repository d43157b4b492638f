"""Key patterns: whole, anchored names of literal text and named captures, readable in both directions.

`backbone.body.layers.{stage}.blocks.{block}.norm1.{param}` captures. An integer capture may be affine in one
unknown (`dyhead_tower.{3*block + 1}`), with constants of the table in it. A capture is either an integer (decimal,
no leading zero) or one of the words that the table lists for its name; there is no wildcard and no regular
expression, so whatever a pattern matches it can also write. The text behind a capture always tells where the capture
ends, so a key can be read in one way only, and in time proportional to its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Generic, TypeVar

from converter.errors import TableError
from converter.mapping.expression import Value, affine

Captures = Mapping[str, int | str]
T = TypeVar("T")

_MOST_CHARACTERS = 10_000  # of all words of one pattern; more would take too long to compile


@dataclass(frozen=True, slots=True)
class _Integer:
    """`{scale*name + offset}`; a constant where `name` is None."""

    name: str | None
    scale: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Word:
    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """One compiled pattern. `match` and `format` are inverse to each other.

    `start`: the text before the first capture. `captures`: names that `match` binds and `format` needs.
    """

    text: str
    start: str
    captures: frozenset[str]
    _parts: tuple[str | _Integer | _Word, ...]
    _expression: str

    @property
    def cost(self) -> int:
        """1 for most patterns, more for those that list many words."""
        return 1 + max(0, len(self._expression) - 400) // 40

    def match(self, key: str) -> dict[str, int | str] | None:
        """Captures that make this pattern equal `key`, or None. A capture that occurs twice must agree."""
        if not key.startswith(self.start):  # three times as fast as the regular expression
            return None
        found = _regex(self._expression).fullmatch(key)
        if found is None:
            return None
        bound: dict[str, int | str] = {}
        captures = (part for part in self._parts if not isinstance(part, str))
        for part, text in zip(captures, found.groups(), strict=True):
            value: int | str = text
            if isinstance(part, _Integer):
                number = int(text) - part.offset
                if part.name is None:
                    if number:
                        return None
                    continue
                if number % part.scale or number // part.scale < 0:
                    return None
                value = number // part.scale
            assert part.name is not None
            if bound.setdefault(part.name, value) != value:
                return None
        return bound

    def among(self, names: AbstractSet[str]) -> Iterator[tuple[str, dict[str, int | str]]]:
        """Those of `names` that the pattern matches, with their captures."""
        start = self.start
        for name in names if self.captures else {self.format({})} & names:
            if name.startswith(start) and (captures := self.match(name)) is not None:
                yield name, captures

    def format(self, captures: Captures) -> str:
        """The key that `captures` make of this pattern; raises KeyError for one that is missing."""
        text = []
        for part in self._parts:
            if isinstance(part, str):
                text.append(part)
            elif isinstance(part, _Word):
                text.append(str(captures[part.name]))
            elif part.name is None:
                text.append(str(part.offset))
            else:
                number = part.scale * int(captures[part.name]) + part.offset
                if number < 0:
                    raise TableError(f"pattern {self.text!r} gives {number} for {part.name}={captures[part.name]}")
                text.append(str(number))
        return "".join(text)

    def __str__(self) -> str:
        return self.text


class ByPattern(Generic[T]):
    """Items, each behind a pattern or several. Those of a key are found without a try of every pattern."""

    def __init__(self, items: Iterable[tuple[Pattern, T]]) -> None:
        self._by_start: dict[str, list[tuple[int, Pattern, T]]] = {}
        for position, (pattern, item) in enumerate(items):
            self._by_start.setdefault(pattern.start, []).append((position, pattern, item))
        self._lengths = sorted({len(start) for start in self._by_start})

    def of(self, key: str) -> list[T]:
        """The items whose patterns match `key`, in their order; one of several such patterns is there once."""
        near = [each for length in self._lengths for each in self._by_start.get(key[:length], ())]
        found = {position: item for position, pattern, item in near if pattern.match(key) is not None}
        return list({id(found[position]): found[position] for position in sorted(found)}.values())


@lru_cache(maxsize=4096)
def _regex(expression: str) -> re.Pattern[str]:
    """Compiled when a key is first compared: of most patterns none ever begins as they do."""
    return re.compile(expression)


def compile_pattern(text: str, words: Mapping[str, Sequence[str]], constants: Mapping[str, Value]) -> Pattern:
    """Compile `text`. `words` lists the values of word captures; every other capture is an integer."""
    names = re.findall(r"[A-Za-z_][A-Za-z0-9_]*", "".join(re.findall(r"\{[^{}]*\}", text)))
    return _compile(
        text,
        tuple((name, tuple(words[name])) for name in names if name in words),
        tuple((name, constants[name]) for name in names if name in constants),
    )


@lru_cache(maxsize=4096)  # most patterns are the same for every variant
def _compile(
    text: str, listed: tuple[tuple[str, tuple[str, ...]], ...], known: tuple[tuple[str, Value], ...]
) -> Pattern:
    words, constants = dict(listed), dict(known)
    if sum(len(word) for _, options in listed for word in options) > _MOST_CHARACTERS:
        raise TableError(f"pattern {text[:80]!r}: its words have more than {_MOST_CHARACTERS} characters in all")
    parts: list[str | _Integer | _Word] = []
    regex = []
    for piece in re.split(r"(\{[^{}]*\})", text):
        if not piece:
            continue
        if piece[0] != "{":
            if "{" in piece or "}" in piece:
                raise TableError(f"pattern {text!r} has an unpaired brace")
            parts.append(piece)
            regex.append(re.escape(piece))
            continue
        inside = piece[1:-1].strip()
        if inside in words:
            # longest first: an alternation takes the first word that fits
            options = tuple(sorted(words[inside], key=len, reverse=True))
            parts.append(_Word(inside, options))
            regex.append("(" + "|".join(map(re.escape, options)) + ")")
        else:
            number = _Integer(*affine(inside, constants))
            if number.name in words:
                raise TableError(f"pattern {text!r}: {number.name!r} stands for a word, nothing to calculate with")
            parts.append(number)
            # 9 digits: far above any layer count, and int() of a long string is never reached
            regex.append(r"(0|[1-9][0-9]{0,8})")
    for left, right in pairwise(parts):
        if not isinstance(left, str) and not isinstance(right, str):
            raise TableError(f"pattern {text!r} has two captures side by side; put literal text between them")
        if isinstance(left, _Integer) and isinstance(right, str) and right[0] in "0123456789":
            raise TableError(f"pattern {text!r} has a digit behind a number capture; they could be one number")
        if isinstance(left, _Word) and isinstance(right, str):
            # sorted, a text stands right before those that begin with it
            for shorter, longer in pairwise(sorted({word + right for word in left.words})):
                if longer.startswith(shorter):
                    raise TableError(
                        f"pattern {text!r}: what begins with {longer!r} also begins with {shorter!r}, so {left.name!r} "
                        "could be either of two words"
                    )
    start = parts[0] if parts and isinstance(parts[0], str) else ""
    captures = frozenset(part.name for part in parts if not isinstance(part, str) and part.name is not None)
    return Pattern(text, start, captures, tuple(parts), "".join(regex))
