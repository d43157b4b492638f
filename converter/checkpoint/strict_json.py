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
OBJECT_LIMIT = 16 << 20  # bytes of one inside a checkpoint: a header or an index; some 100,000 tensors
_CONTAINER_LIMIT = 1_000_000  # lists and objects in it


def parse_json(text: bytes | str) -> Any:
    """The value that a JSON text stands for. ValueError, in a few words, if it is not sound.

    Beyond what `json.loads` refuses: a name twice in one object, numbers that are not finite, and more lists and
    objects than a document of this project can need.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        if text.count("[") + text.count("{") > _CONTAINER_LIMIT:
            raise ValueError(f"more than {_CONTAINER_LIMIT} lists and objects")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(plain(str(error), 400)) from None


def read_json(path: Path) -> Any:
    """The value in a JSON file, which may begin with a byte order mark. OSError, ValueError as the other two."""
    return parse_json(read_limited(path).removeprefix(BOM_UTF8))


def read_limited(path: Path, limit: int = SIZE_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes; a FIFO is not waited for. OSError, ValueError."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
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


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {quoted(text)} is too large")
    return value
