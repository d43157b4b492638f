"""Names and numbers that come out of a file, made safe to print in one line of a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

NAME_LIMIT = 160  # characters of a name shown in a message


def quoted(text: str, limit: int = NAME_LIMIT) -> str:
    """`text` in quotes, cut to `limit` characters; control characters and lone surrogates are escaped."""
    if len(text) <= limit:
        return repr(text)
    return f"{text[:limit]!r}... ({len(text)} characters)"


def plain(text: str, limit: int = NAME_LIMIT) -> str:
    """`text` as it is where that is short and printable, otherwise as `quoted` shows it."""
    return text if len(text) <= limit and text.isprintable() else quoted(text, limit)


def listed(shown: Iterable[str], most: int = 5) -> str:
    """The first of many names, each as `quoted` or `plain` shows it: `'a', 'b' and 3 more`."""
    items = list(shown)
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def file_name(path: Path) -> str:
    """A path for the beginning of a message."""
    return plain(str(path), limit=1024)


def number(value: int) -> str:
    """An integer of any size: decimal where it is short, otherwise its number of bits."""
    if value.bit_length() <= 128:
        return str(value)
    return f"an integer of {value.bit_length()} bits"


def figure(value: float | None) -> str:
    """Two digits, which is what an error has to say; `-` for what is not known."""
    return "-" if value is None else f"{value:.1e}" if value else "0"


def beside(sentence: str, value: float, limit: float) -> str:
    """Both numbers as figures, or with all digits where two would not show which one is larger."""
    shown = figure(value), figure(limit)
    return sentence.format(*shown if shown[0] != shown[1] or value == limit else (repr(value), repr(limit)))


def gigabytes(count: int) -> str:
    """`927.4 MB`, `3.71 GB`: decimal units, as disks and the Hub count."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{count} B"


_FACTORS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def size_of(text: str) -> int:
    """Bytes written as `500MB`, `2GB`, `1GiB` or `1048576`. ValueError."""
    match = re.fullmatch(r"([0-9]{1,12})\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _FACTORS or not int(match[1]):
        raise ValueError(f"{text!r} is not a size; write 500MB, 2GB or 1GiB")
    return int(match[1]) * _FACTORS[match[2]]


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """`1 tensor`, `3 tensors`."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
