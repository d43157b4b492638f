"""Names that read like another: what a message about an unknown one suggests."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache

from converter.mapping.ops import Shape


def nearest(name: str, candidates: Mapping[str, Shape], shape: Shape | None = None) -> list[str]:
    """Up to three candidates that read like `name` (numbers aside), those of the same shape first."""
    examples: dict[str, str] = {}
    for candidate in candidates:
        examples.setdefault(_without_numbers(candidate), candidate)
    close = _close_names(_without_numbers(name), tuple(examples))
    return sorted((examples[c] for c in close), key=lambda key: candidates[key] != shape)


@cache
def _close_names(name: str, names: tuple[str, ...]) -> list[str]:
    return difflib.get_close_matches(name[:400], names, n=3, cutoff=0.6)


def _without_numbers(name: str) -> str:
    return re.sub(r"[0-9]+", "*", name)
