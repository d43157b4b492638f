"""JSON that a stranger wrote: bounded, and refused where two readers could understand it differently."""

from __future__ import annotations

import json
import math
import os
import stat
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any, NoReturn

from converter.checkpoint.source import SourceFile
from converter.display import file_name, plain, quoted
from converter.errors import UnsupportedCheckpointError, damaged

SIZE_LIMIT = 64 << 20  # bytes of a file
# bytes of a text: the largest that is known, of a model of 90,000 tensors, has 9 MiB, and 16 MiB may take 130 in memory
OBJECT_LIMIT = 16 << 20
# commas, colons and brackets: a header has 12 for each tensor, an index of shards 2. No value is without one, so that
# values take at most some 110 bytes for each
MARK_LIMIT = 300_000
_DEPTH_LIMIT = 100  # what reads values by recursion must not meet its limit; documents have some 10 levels
_DIGIT_LIMIT = 309  # of the largest float; what conversion to an integer takes grows with their square


class TooMuch(ValueError):
    """More values than a reader takes; each of them may be sound."""


def check_marks(text: str, marks: int = MARK_LIMIT) -> None:
    """Raise TooMuch for a JSON text with more commas, colons and brackets."""
    if sum(map(text.count, ",:[{")) > marks:
        raise TooMuch(f"more than {marks} commas, colons and brackets")


def parse_json(text: bytes | str, marks: int = MARK_LIMIT) -> Any:
    """The value that a JSON text stands for. ValueError, in a few words, if it is not sound.

    Beyond what `json.loads` refuses: a name twice in one object, numbers that are not finite, and more values, levels
    or digits than a document of this project can need. `marks`: commas, colons and brackets.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        check_marks(text, marks)  # before anything is made of them
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite, parse_int=_integer
        )
        _refuse_depth(value)
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except TooMuch:
        raise
    except ValueError as error:
        raise ValueError(plain(str(error), 400)) from None


def read_json(path: Path, marks: int = MARK_LIMIT) -> Any:
    """The value in a JSON file, which may begin with a byte order mark. OSError, ValueError as the other two."""
    return parse_json(read_limited(path, OBJECT_LIMIT).removeprefix(BOM_UTF8), marks)


def read_limited(path: Path, limit: int = SIZE_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes; a FIFO is not waited for. OSError, ValueError."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit >> 20} MiB")
    return data


def read_json_object(source: SourceFile, offset: int, length: int, what: str) -> dict[str, Any]:
    """The JSON object in `length` bytes of a checkpoint; `what` names it in messages. Raises CheckpointError."""
    label = file_name(source.path)
    if length > OBJECT_LIMIT:
        raise UnsupportedCheckpointError(
            f"{label}: its {what} has {length} bytes, and {OBJECT_LIMIT} is the limit. Save the weights in several "
            "files."
        )
    try:
        document = parse_json(source.read(offset, length, what))
    except TooMuch as error:  # some 25,000 tensors
        raise UnsupportedCheckpointError(
            f"{label}: its {what} has {error}. Save the weights in several files."
        ) from None
    except ValueError as error:
        raise damaged(label, f"the {what} is not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise damaged(label, f"the {what} is not a JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{quoted(name)} is there twice")
        found[name] = value
    return found


def _refuse_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > _DEPTH_LIMIT:
            raise ValueError("nested too deeply")
        level = [below for item in level for below in (item.values() if isinstance(item, dict) else item)]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > _DIGIT_LIMIT:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {quoted(text)} is too large")
    return value
