"""Files that end too early, as a download leaves them that broke off: how much there is, of how much."""

from __future__ import annotations

import io
import struct
from contextlib import suppress

from converter.checkpoint.opcodes import interpret
from converter.checkpoint.source import SourceFile
from converter.checkpoint.tensors import Malformed, Unreadable, storage_reference
from converter.display import counted, file_name, gigabytes
from converter.errors import CheckpointError, CorruptCheckpointError

_PICKLE_LIMIT = 16 * 1024 * 1024  # bytes; the largest pickle known has 5 MB
_FIRST_HEADER = struct.Struct("<26x2H")  # of it, the lengths of name and extra field


def cut_off(source: SourceFile, expected: int | None, where: str, *, at_least: bool = False) -> CorruptCheckpointError:
    """The error for a file that ends inside `where`. It should have `expected` bytes, or more, if that is known."""
    amount = gigabytes(source.size)
    if expected is not None:
        there, needed = amount, gigabytes(expected)
        if there == needed:
            there, needed = counted(source.size, "byte"), counted(expected, "byte")
        amount = f"{there} of {'at least ' if at_least else ''}{needed}"
    return CorruptCheckpointError(
        f"{file_name(source.path)}: has {amount}, and ends inside {where}: most likely its download broke off. Get it "
        "again, or resume the download."
    )


def cut_off_zip(source: SourceFile) -> CorruptCheckpointError:
    """The error for a zip archive without an end. How much is missing is known if it begins with torch's pickle."""
    expected = 0
    with suppress(CheckpointError):  # cut off even before the end of the pickle
        expected = _bytes_of_storages(source)
    if expected > source.size:
        return cut_off(source, expected, "the zip archive", at_least=True)
    return cut_off(source, None, "the zip archive, without its directory")


def _bytes_of_storages(source: SourceFile) -> int:
    """The pickle and all storages that it refers to; 0 if torch's pickle is not the first member."""
    lengths: tuple[int, int] = _FIRST_HEADER.unpack(source.read(0, _FIRST_HEADER.size, "zip header"))
    if not source.read(_FIRST_HEADER.size, lengths[0], "name of a zip member").endswith(b"/data.pkl"):
        return 0
    start = _FIRST_HEADER.size + sum(lengths)
    pickle = source.read(start, max(min(source.size - start, _PICKLE_LIMIT), 0), "pickle")
    found = interpret(io.BytesIO(pickle), "pickle")
    sizes: dict[str, int] = {}
    for persistent in found.references:
        with suppress(Malformed, Unreadable):
            reference = storage_reference(persistent)
            sizes[reference.key] = reference.nbytes
    return start + found.end + sum(sizes.values())
