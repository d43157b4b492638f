"""How alike two names read: words, weighted by how rare they are, and where their neighbours went.

A name is a bag of words split at `.`, `_`, case and digits; words of one meaning (synonyms.json) are one. A word that
every name has says little. Agreement of the last words counts double: `attention.output.norm` is a norm of an output.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_DATA: Mapping[str, Any] = json.loads((Path(__file__).parent / "synonyms.json").read_text())
_MEANING: Mapping[str, str] = {word: line[0] for line in _DATA["words"] for word in line}
_GENERIC = frozenset(_DATA["generic"])
PARAMETERS: tuple[str, ...] = tuple(_DATA["parameters"])
_BESIDE: tuple[tuple[str, str, str], ...] = tuple(map(tuple, _DATA["beside"]))
JOINED: tuple[tuple[str, ...], ...] = tuple(map(tuple, _DATA["joined"]))

Matrix = npt.NDArray[np.float64]
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_LETTER = re.compile(r"(?<![A-Za-z0-9])[a-z](?![A-Za-z0-9])")
_GENERIC_WEIGHT = 0.3


@lru_cache(maxsize=1 << 17)
def words_of(label: str) -> tuple[str, ...]:
    """The meanings in a name, in order: `blocks.#.attn.qkv` is (layer, attention, qkv)."""
    found: list[str] = []
    for segment in re.split(r"[._ /#+*-]+", label):
        whole = segment.lower()
        if whole in _MEANING:
            found.append(_MEANING[whole])
            continue
        for word in _WORD.findall(segment):
            found.append(meaning(word.lower()))
    # LayerNorm and layer_norm read as one word, like batch_norm and group_norm
    text = " ".join(found)
    for kind in ("layer", "batch", "group"):
        text = text.replace(f"{kind} norm", "norm")
    return tuple(text.split())


def meaning(word: str) -> str:
    """The word that stands for it and its synonyms; a plural is its singular."""
    singular = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
    return _MEANING.get(word) or _MEANING.get(singular, singular)


def parents(label: str) -> list[str]:
    """`a.#.b.c` -> [`a.#.b`, `a.#`, `a`]: the modules that it is in, nearest first."""
    parts = label.rstrip("._").split(".")[:-1]
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _without(letter: re.Match[str]) -> str:
    """The name with a hole for one letter, and no numbers."""
    name = f"{letter.string[: letter.start()]}+{letter.string[letter.end() :]}"
    return re.sub(r"[0-9]+", "#", name)


class Vocabulary:
    """Weights of words, learned from all names of both sides: how few names have them."""

    def __init__(self, labels: Iterable[str]) -> None:
        labels = list(labels)
        # letters that stand alone: the name with a hole for each -> which there are
        self._letters: defaultdict[str, set[str]] = defaultdict(set)
        for label in labels:
            for letter in _LETTER.finditer(label):
                self._letters[_without(letter)].add(letter[0])
        counts = Counter(word for label in labels for word in set(self._words(label)))
        self._total = sum(counts.values()) or 1
        self._weights = {
            word: (math.log1p(self._total / count) * (_GENERIC_WEIGHT if word in _GENERIC else 1.0))
            for word, count in counts.items()
        }

    def similarity(self, sources: Sequence[str], targets: Sequence[str]) -> Matrix:
        """(len(sources), len(targets)): 1 for the same words, 0 for none in common; cosine of the weighted words."""
        words = sorted({word for label in (*sources, *targets) for word in self._words(label)})
        column = {word: i for i, word in enumerate(words)}
        left, right = (self._vectors(labels, column) for labels in (sources, targets))
        result: Matrix = left @ right.T
        return result

    def _words(self, label: str) -> tuple[str, ...]:
        """The meanings in a name. The v of `v_proj` is the image's where an `l_proj` of the language is beside it, and
        else the value's."""

        def read(letter: re.Match[str]) -> str:
            beside = self._letters.get(_without(letter), set())
            return next((means for one, other, means in _BESIDE if letter[0] == one and other in beside), letter[0])

        return words_of(_LETTER.sub(read, label))

    def _vectors(self, labels: Sequence[str], column: Mapping[str, int]) -> Matrix:
        vectors = np.zeros((len(labels), max(1, len(column))))
        for row, label in enumerate(labels):
            own = self._words(label)
            for position, word in enumerate(own):
                last = 2.0 if position >= len(own) - 2 else 1.0
                vectors[row, column[word]] = max(vectors[row, column[word]], last * self._weights.get(word, 1.0))
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)


class Neighbours:
    """Which modules of the target the contents of each source module went to, in an earlier round."""

    def __init__(self, pairs: Iterable[tuple[str, str, float]]) -> None:
        self._together: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._source: defaultdict[str, float] = defaultdict(float)
        self._target: defaultdict[str, float] = defaultdict(float)
        for source, target, weight in pairs:
            above, below = parents(source), parents(target)
            for one in above:
                self._source[one] += weight
            for other in below:
                self._target[other] += weight
            for one in above:
                for other in below:
                    self._together[one, other] += weight

    def agreement(self, source: str, target: str) -> float:
        """0 to 1: whether what shares a module with `source` went where `target` is; nearer modules count more."""
        total = weight = 0.0
        targets = parents(target)
        for depth, one in enumerate(parents(source)):
            if self._source[one] <= 0:
                continue
            best = max(
                (self._together[one, other] / max(self._source[one], self._target[other]) for other in targets),
                default=0.0,
            )
            total += best / (1 + depth)
            weight += 1 / (1 + depth)
        return total / weight if weight else 0.0

    def matrix(self, sources: Sequence[str], targets: Sequence[str]) -> Matrix:
        """(len(sources), len(targets)): `agreement` of every pair; what shares its parents shares the value."""
        above, below = ([".".join(parents(label)[:1]) for label in labels] for labels in (sources, targets))
        known: dict[tuple[str, str], float] = {}
        for one, source in dict(zip(above, sources, strict=True)).items():
            for other, target in dict(zip(below, targets, strict=True)).items():
                known[one, other] = self.agreement(source, target)
        return np.array([[known[one, other] for other in below] for one in above])
