"""What may be written where: a destination is refused before any work, not after the last byte.

`--force` replaces a file of the destination's name. Of a folder it replaces what an earlier run wrote, which the folder
itself records (`files` in its conversion.json), and nothing else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from converter.checkpoint.strict_json import read_json
from converter.display import file_name, listed, plain, quoted
from converter.errors import DestinationError
from converter.writing.ledger import FOLDER
from converter.writing.names import WRITTEN, is_file_name, meant_file
from converter.writing.shards import INDEX_NAME

LEDGER, CONFIG, RESIDUE = "conversion.json", "config.json", "residue.safetensors"
_LONGEST = "model-00001-of-00002.safetensors"  # of the names in a folder


@contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a DestinationError with the next step."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            hint = "something of that name appeared meanwhile; look at it, and run again"
        elif error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            hint = "free some space or choose another destination"
        elif error.errno == errno.ENAMETOOLONG:
            hint = "choose a shorter name: while it is written, 18 bytes are added to it"
        else:
            hint = "choose another destination"
        reason = error.strerror or plain(str(error))
        raise DestinationError(f"{file_name(destination)} cannot be written: {reason}; {hint}") from error


def partial_name(path: Path, token: str) -> Path:
    """The hidden name under which something that becomes `path` is there meanwhile."""
    return path.with_name(f".{path.name}.{token}.partial")


def check_destination(
    destination: Path, *, force: bool, inputs: list[Path], replaces: Collection[str] = (), is_folder: bool | None = None
) -> None:
    """Refuse, before any work, a destination that could not be committed or that would harm something.

    `replaces`: files of a folder that `force` may replace, besides what `recorded` names. `is_folder`: by default what
    the name says.
    """
    with writing(destination):
        _check_name(destination)
        _check_inputs(destination, inputs)
        if is_folder is None:
            _check_meant(destination)
            is_folder = not is_file_name(destination)
        _check_there(destination, force, replaces, is_folder)


def _check_name(destination: Path) -> None:
    if destination.name in ("", "..", *WRITTEN) or "\0" in str(destination):
        raise DestinationError(f"{str(destination)!r} names no file or folder to write; choose another destination")
    parent = destination.parent
    if not parent.is_dir():
        raise DestinationError(f"{parent} is not a folder; create it first or choose another destination")
    check_length(destination)
    if destination.is_symlink():
        raise DestinationError(
            f"{destination} is a symbolic link to {os.readlink(destination)}; name the real path, so that it is clear "
            "what would be replaced"
        )


def check_length(destination: Path) -> None:
    """OSError (ENAMETOOLONG) where the destination, or a name that it has meanwhile, is too long for the system."""
    partial = partial_name(destination, "0" * 8)
    for path in (destination, partial, *([] if is_file_name(destination) else [partial / _LONGEST])):
        try:
            os.lstat(path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise


def _check_inputs(destination: Path, inputs: list[Path]) -> None:
    for path in inputs:
        if destination.exists() and path.exists() and os.path.samefile(path, destination):
            raise DestinationError(f"{destination} is the source itself; choose another destination")
        if destination.is_dir() and destination.resolve() in path.resolve().parents:
            raise DestinationError(f"{destination} holds the source {path.name}; choose another destination")


def _check_meant(destination: Path) -> None:
    if meant := meant_file(destination):
        raise DestinationError(
            f"{file_name(destination)}: looks like the name of a file, but only {', '.join(WRITTEN)} files are "
            f"written. Did you mean {quoted(meant)}? For a folder choose a name without {plain(destination.suffix)}"
        )


def _check_there(destination: Path, force: bool, replaces: Collection[str], is_folder: bool) -> None:
    if not destination.exists():
        return
    if not destination.is_dir() and not destination.is_file():
        raise DestinationError(f"{destination} is neither a file nor a folder; choose another destination")
    if is_folder and os.path.ismount(destination):
        raise DestinationError(f"{destination} is a mount point, which cannot be replaced; choose a folder in it")
    if destination.is_dir() != is_folder:
        there, wanted = ("file", "folder") if is_folder else ("folder", "file")
        raise DestinationError(f"{destination} is a {there}, a {wanted} was to be written; choose another destination")
    if is_folder and not any(destination.iterdir()):
        return
    if not force:
        raise DestinationError(f"{destination} exists; --force replaces it")
    if is_folder:
        replaceable(destination, replaces)


def replaceable(folder: Path, replaces: Collection[str] = ()) -> frozenset[str]:
    """The names of all files in `folder`. DestinationError if one is neither `recorded` nor in `replaces`."""
    ours = recorded(folder) - {RESIDUE} | {*replaces}
    with os.scandir(folder) as entries:
        there = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    if foreign := sorted(name for name, is_file in there.items() if name not in ours or not is_file):
        if foreign == [RESIDUE]:
            raise DestinationError(
                f"{folder} holds {RESIDUE}, which --force would lose, and nothing else has what is in it. Move it, or "
                "choose another destination; `convert --keep-residue` replaces it by the new one"
            )
        foreign = [name for name in foreign if name != RESIDUE]
        raise DestinationError(
            f"{folder} holds files that no conversion wrote ({listed(foreign, 5)}); --force would lose them. Move them "
            "or choose another destination"
        )
    return frozenset(there)


def recorded(folder: Path) -> frozenset[str]:
    """Names of the files in `folder` that were written there together, by their own record; none without one.

    OSError if the system does not let it be read.
    """
    try:
        ledger = read_json(folder / LEDGER)
        if not isinstance(ledger, dict) or not isinstance(ledger["tensors"], dict):
            return frozenset()
        # older ones do not name the files
        names = ledger[FOLDER] if FOLDER in ledger else [LEDGER, CONFIG, RESIDUE, *_weights(folder)]
        return frozenset({*os.listdir(folder)}.intersection(names if isinstance(names, list) else ()))
    except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset()


def _weights(folder: Path) -> list[str]:
    if not (folder / INDEX_NAME).exists():
        return ["model.safetensors"]
    return [INDEX_NAME, *read_json(folder / INDEX_NAME)["weight_map"].values()]
