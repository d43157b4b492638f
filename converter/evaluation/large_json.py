"""Annotations and results of strangers: JSON of hundreds of megabytes, of which little is kept.

`checkpoint.strict_json` reads documents. Here a file may have a hundred million numbers, most of them outlines that
nobody asks for: they go as soon as the object that they are in has been read.
"""

from __future__ import annotations

import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from converter.checkpoint.strict_json import check_marks, read_limited
from converter.display import counted, file_name, plain, quoted
from converter.errors import ModelError

SIZE_LIMIT = 1 << 30  # bytes: annotations of COCO's training pictures have 450 MB
MARK_LIMIT = 150_000_000  # commas, colons and brackets; each takes some 40 bytes at most until its object is read
ID_LIMIT = 2**53  # ids are below: other programs read them as floats
LARGEST = 1e9  # of a coordinate, in pixels
PROBLEMS_SHOWN = 20

Pairs = list[tuple[str, Any]]


class Problems:
    """What is wrong with a file, all of it at once: the first are told, the others counted."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def add(self, problem: str) -> None:
        """Another one."""
        self.count += 1
        if len(self.first) < PROBLEMS_SHOWN:
            self.first.append(problem)

    def refuse(self, path: Path, expected: str) -> None:
        """ModelError if there is any. `expected`: what the file should be, and what to do."""
        if self.count:
            more = self.count - len(self.first)
            listed = [*self.first, *([f"and {more} more"] if more else [])]
            raise ModelError(f"{file_name(path)}: {counted(self.count, 'problem')}. {expected}", listed)


def read_large(path: Path, build: Callable[[Pairs], Any], expected: str) -> tuple[Any, str]:
    """The value of a JSON file, and the file's SHA-256.

    `build` makes something of the names and values of each object, innermost first; what it drops is dropped at once.
    It raises ValueError for what it does not take. Numbers can be infinite (`1e999`): who keeps one looks.
    ModelError, which ends with `expected`, if the file cannot be read.
    """
    try:
        data = read_limited(path, SIZE_LIMIT)
        digest = hashlib.sha256(data).hexdigest()
        text = data.removeprefix(BOM_UTF8).decode()
        del data
        check_marks(text, MARK_LIMIT)
        return json.loads(text, object_pairs_hook=build, parse_constant=_refuse), digest
    except OSError as error:
        raise ModelError(f"{file_name(path)}: cannot be read: {error.strerror}. Check the path.") from None
    except RecursionError:
        raise ModelError(f"{file_name(path)}: cannot be read (nested too deeply). {expected}") from None
    except ValueError as error:
        raise ModelError(f"{file_name(path)}: cannot be read ({plain(str(error), 400)}). {expected}") from None


def unique(pairs: Pairs) -> dict[str, Any]:
    """An object; ValueError if it has a name twice, as two readers would understand it differently."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{quoted(next(name for name in names if names.count(name) > 1))} is there twice")
    return found


def is_id(value: object) -> bool:
    """Whether it can be one: an integer, none of them negative in any data set."""
    return type(value) is int and 0 <= value < ID_LIMIT


def is_number(value: object) -> bool:
    """Whether it is a finite number, of a size that a coordinate can have."""
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST  # type: ignore[operator]


def is_box(value: object) -> bool:
    """Whether it is x, y, width and height, neither of them negative."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value)) and min(value[2:]) >= 0


def shown(value: object) -> str:
    """A value for a message, in short."""
    text = json.dumps(value, default=lambda _: "...") if value is not None else "nothing"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
