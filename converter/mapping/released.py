"""Which tables and specs were ever released: one is known by its hash, whatever it calls itself.

A list has the hashes of files, too, by which it is known that they need no check: a table has another one together with
what it includes.
"""

from __future__ import annotations

import re
from pathlib import Path

from converter.checkpoint.strict_json import read_json
from converter.errors import TableError
from converter.mapping import folders


def released() -> dict[str, frozenset[str]]:
    """By name, the hashes (`Table.sha256`, `Spec.sha256`) of all that were released: `released.json` beside them.

    The package of an installed family vouches for its own in its own folder; names of this package it cannot.
    Raises TableError for a list that is none.
    """
    found: dict[str, frozenset[str]] = {}
    for folder in (
        *(family.mappings for family in reversed(folders.installed_families())),
        folders.mappings_folder(),
    ):
        found |= _listed(folder)
    return found


def is_as_released(document: Path, sha256: str) -> bool:
    """Whether the list beside a file has its hash. If that list is damaged, no: the file is then to be checked."""
    try:
        return sha256 in _listed(document.parent).get(document.stem, ())
    except TableError:
        return False


def _listed(folder: Path) -> dict[str, frozenset[str]]:
    path = folder / folders.RELEASED
    if not path.is_file():
        return {}
    try:
        return {name: frozenset(map(_hash, hashes)) for name, hashes in read_json(path).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TableError(
            f"{path}: does not list the hashes of each table by its name ({error}). Install that package again"
        ) from None


def is_released(name: str, sha256: str) -> bool:
    """Whether a table or spec of that name and hash is one that was released."""
    return sha256 in released().get(name, ())


def _hash(value: object) -> str:
    if not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        raise ValueError(f"{value!r} is not a SHA-256")
    return value
