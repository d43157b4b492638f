"""How a format's keys read in a file: with wrappers around and inside them, and with other names of parts.

A wrapper is taken off only where a key that the table knows remains. What keys look like is known whatever the variant:
their forms, with `*` for numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from itertools import islice

from converter.errors import TableError

_LONGEST_KEY = 4096
_MOST_SEGMENTS = 40  # of a key with wrappers
_MOST_FORMS = 100_000  # with the other names of their parts
_MOST_BEHIND = 4  # segments before a model's names that a message speaks of
_MOST_BEHIND_NAMES = 5_000  # that are looked at for it


def form_of(name: str) -> str:
    """`name` with `*` for numbers."""
    return re.sub("[0-9]+", "*", name)


class Names:
    """The keys of one table: `forms` are those of its rules, `prefixes` and `aliases` as the table has them.

    `wrappers` are segments of names that belong to no model.
    """

    def __init__(
        self, forms: Collection[str], prefixes: Sequence[str], aliases: Mapping[str, str], wrappers: Set[str]
    ) -> None:
        self._aliases = aliases
        self._forms = _with_aliases(forms, aliases)
        self._starts = {form[:end] for form in self._forms for end in [*_dots(form), len(form)]}
        self._wrappers = frozenset(wrappers)
        self._prefixes = [tuple(form_of(prefix).removesuffix(".").split(".")) for prefix in prefixes]
        known = {segment for form in self._forms for segment in form.split(".")}
        self._segments = known.union(self._wrappers, *self._prefixes)
        self._first_of_prefixes = {prefix[0] for prefix in self._prefixes}
        self._found: dict[str, tuple[int, ...] | None] = {}

    def knows(self, form: str) -> bool:
        """Whether a key of this form is one of the table's, as it is or once wrappers are taken off."""
        return self._cuts(form) is not None

    def short(self, name: str) -> str:
        """`name` as the rules call it; as it is where they do not know it."""
        name = self.unwrapped(name)
        longest = max(_LONGEST_KEY, len(name))
        for other, ours in self._aliases.items():
            name = name.replace(other, ours)
            if len(name) > longest:  # each can make it a hundred times as long
                raise TableError(f"/aliases make a key of more than {longest} characters")
        return name

    def unwrapped(self, name: str) -> str:
        """`name` without wrappers, its parts as they are called in the file."""
        cuts = self._cuts(form_of(name)) or ()
        return ".".join(part for at, part in enumerate(name.split(".")) if at not in cuts) if cuts else name

    def taken_off(self, name: str) -> list[str]:
        """The segments that `short` takes off."""
        cuts = self._cuts(form_of(name)) or ()
        return [part for at, part in enumerate(name.split(".")) if at in cuts]

    def prefix(self, name: str) -> str:
        """What `short` takes off at the beginning."""
        cuts = self._cuts(form_of(name)) or ()
        end = next((at for at, cut in enumerate(cuts) if at != cut), len(cuts))
        return "".join(f"{part}." for part in name.split(".")[:end])

    def is_prefix(self, text: str) -> bool:
        """Whether wrappers, and prefixes of the table, make up `text`: what `prefix` can return."""
        if not text:
            return True
        segments = form_of(text).removesuffix(".").split(".")
        reached = {0}
        for at in range(len(segments)):
            if at in reached:
                reached |= {at + count for count in self._skips(segments, at, front=True)}
        return text.endswith(".") and len(segments) in reached

    def behind(self, names: Collection[str]) -> str:
        """What stands before this format's names in many of `names`, and is no wrapper. "" if nothing does."""
        names = list(islice(names, _MOST_BEHIND_NAMES))
        forms = {form_of(name) for name in names}
        if 2 * sum(map(self.knows, forms)) >= len(forms):
            return ""
        unknown = [name for name in names if not self.knows(form_of(name))]
        for count in range(1, _MOST_BEHIND + 1):
            starts = Counter(".".join(name.split(".", count)[:count]) for name in unknown if name.count(".") >= count)
            if not starts:
                break
            start, most = starts.most_common(1)[0]
            inside = {form[len(form_of(start)) + 1 :] for form in forms if form.startswith(f"{form_of(start)}.")}
            if 3 * most > len(names) and 5 * sum(map(self.knows, inside)) >= 4 * len(inside):
                return start
        return ""

    def _cuts(self, form: str) -> tuple[int, ...] | None:
        """Which segments of a key are not the table's, the fewest; None if no key remains, or one of several."""
        if form in self._forms:
            return ()
        if form not in self._found:
            if len(self._found) >= _MOST_FORMS:
                self._found.clear()
            self._found[form] = self._search(form)
        return self._found[form]

    def _search(self, form: str) -> tuple[int, ...] | None:
        segments = form.split(".")
        is_wrapped = not self._wrappers.isdisjoint(segments) or segments[0] in self._first_of_prefixes
        if not is_wrapped or len(segments) > _MOST_SEGMENTS or not self._segments.issuperset(segments):
            return None
        # before each segment: what was taken of the key so far -> how many were not, and where it comes from
        reached: list[dict[str, tuple[int, int, str]]] = [{} for _ in range(len(segments) + 1)]
        reached[0][""] = (0, 0, "")
        for at, segment in enumerate(segments):
            for taken, (cost, _, _) in reached[at].items():
                longer = f"{taken}.{segment}" if taken else segment
                steps = [(at + 1, longer, cost)] if longer in self._starts else []
                steps += [(at + n, taken, cost + n) for n in self._skips(segments, at, front=not taken)]
                for to, made, price in steps:
                    if made not in reached[to] or price < reached[to][made][0]:
                        reached[to][made] = (price, at, taken)
        found = sorted((cost, taken) for taken, (cost, _, _) in reached[-1].items() if taken in self._forms)
        if not found or (len(found) > 1 and found[0][0] == found[1][0]):
            return None
        at, taken = len(segments), found[0][1]
        cuts: list[int] = []
        while at:
            _, before, earlier = reached[at][taken]
            cuts += range(before, at) if earlier == taken else ()
            at, taken = before, earlier
        return tuple(sorted(cuts))

    def _skips(self, segments: Sequence[str], at: int, *, front: bool) -> Iterator[int]:
        """How many segments from `at` on are a wrapper or, at the front, a prefix of the table."""
        if segments[at] in self._wrappers:
            yield 1
        for prefix in self._prefixes if front else ():
            if tuple(segments[at : at + len(prefix)]) == prefix:
                yield len(prefix)


def _dots(text: str) -> Iterator[int]:
    return (position for position, letter in enumerate(text) if letter == ".")


def _with_aliases(forms: Collection[str], aliases: Mapping[str, str]) -> set[str]:
    """The forms, and how they read with the other names of their parts."""
    found = set(forms)
    for other, ours in aliases.items():
        other, ours = form_of(other), form_of(ours)
        found |= {form.replace(ours, other) for form in found if ours in form}
        if len(found) > _MOST_FORMS:
            raise TableError(f"/aliases make more than {_MOST_FORMS} forms of keys")
    return found
