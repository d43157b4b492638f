"""Where the documents lie that have names: in this package, and in those of families that are installed beside it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

_FAMILIES = "converter.families"  # the group of entry points
RELEASED = "released.json"  # beside tables and specs: the hashes of those that were released
WRAPPERS = "wrappers.json"  # and what trainers put around a model's own names


@dataclass(frozen=True, slots=True)
class InstalledFamily:
    """A family of models that another installed package brings: its name, that package, and its documents."""

    name: str
    package: str
    mappings: Path


@cache
def installed_families() -> tuple[InstalledFamily, ...]:
    """Families by the entry point `NAME = PACKAGE` in the group `converter.families`. Nothing of them is imported."""
    if not _may_be_installed(_FAMILIES):
        return ()
    from importlib.metadata import entry_points
    from importlib.util import find_spec

    found = []
    for entry in entry_points(group=_FAMILIES):
        spec = find_spec(entry.value)
        for folder in spec.submodule_search_locations or () if spec else ():
            found.append(InstalledFamily(entry.name, entry.value, Path(folder) / "mappings"))
    return tuple(found)


def _may_be_installed(group: str) -> bool:
    """Whether a package may have entry points of that group: importlib.metadata, which knows, takes 30 ms to import.

    Where packages lie in other places than folders, it is asked.
    """
    if any(hasattr(finder, "find_distributions") and finder is not PathFinder for finder in sys.meta_path):
        return True
    for place in map(Path, sys.path):
        try:
            if place.is_file() or place.suffix == ".egg":
                return True
            entries = (path for kind in ("dist-info", "egg-info") for path in place.glob(f"*.{kind}/entry_points.txt"))
            if any(group.encode() in path.read_bytes() for path in entries):
                return True
        except OSError:  # a folder that may not be looked into, for one
            return True
    return False


def mappings_folder() -> Path:
    """`mappings/` of the installed package, or of the checkout it runs from."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "mappings"
    return installed if installed.is_dir() else package.parent / "mappings"
