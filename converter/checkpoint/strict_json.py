"""JSON that a stranger wrote: bounded, and refused where two readers could understand it differently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from converter.display import plain, quoted

SIZE_LIMIT = 64 << 20  # bytes of a file
_CONTAINER_LIMIT = 1_000_000  # lists and objects in it


def parse_json(text: bytes | str) -> Any:
    """The value that a JSON text stands for. ValueError, in a few words, if it is not sound.

    Beyond what `json.loads` refuses: a name twice in one object, NaN and infinities, which are not JSON, and more lists
    and objects than a document of this project can need.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        if text.count("[") + text.count("{") > _CONTAINER_LIMIT:
            raise ValueError(f"more than {_CONTAINER_LIMIT} lists and objects")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except ValueError as error:
        raise ValueError(plain(str(error))) from None


def read_json(path: Path, limit: int = SIZE_LIMIT) -> Any:
    """The value in a JSON file of at most `limit` bytes. OSError, ValueError as `parse_json`."""
    return parse_json(read_limited(path, limit))


def read_limited(path: Path, limit: int = SIZE_LIMIT) -> bytes:
    """A regular file of at most `limit` bytes. OSError, ValueError."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit >> 20} MiB")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{quoted(name)} is there twice")
        found[name] = value
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
