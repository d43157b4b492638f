"""Archives around a checkpoint: tar, zip and gzip, and the member of them to unpack.

Only names are looked at: of the first headers of a tar, the directory of a zip, the first bytes of a gzip. Nothing is
unpacked to disk, and no size that they state is trusted.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable

from converter.checkpoint.source import SourceFile
from converter.checkpoint.zip_archive import END, ENTRY, PROGRAM, find_directory, is_program
from converter.display import file_name, listed, quoted
from converter.errors import CheckpointError, NotACheckpointError

WEIGHTS = re.compile(r".*\.(?:pth|pt|bin|ckpt|pkl|safetensors)(?:\.tar)?", re.IGNORECASE | re.DOTALL)
_BLOCK = 512  # bytes of a tar header, and what all sizes are rounded up to
_HEADERS = 100  # of a tar
_PEEK = 64 * 1024  # bytes of a gzip that are unpacked
_DIRECTORY_LIMIT = 1024 * 1024  # bytes of a zip directory
_OLD_TORCH = {"storages", "tensors", "pickle"}  # members of the tar files of torch before 0.1.10


def describe_tar(source: SourceFile) -> str | None:
    """What to say of a tar archive; None if the file is none."""
    names = _tar_names(lambda offset, length: source.read(offset, length, "tar header"), source.size)
    if names is None:
        return None
    if set(names) >= _OLD_TORCH:
        return "a tar archive. If torch older than 0.1.10 wrote it, load it there and save it again"
    if found := [name for name in names if WEIGHTS.fullmatch(name)]:
        return f"a tar archive with {listed(map(quoted, found))} in it. Unpack it (tar -xf), and give that file"
    return "a tar archive, without a checkpoint among its first members. Give the checkpoint itself"


def describe_gzip(source: SourceFile) -> str:
    """What to say of a file that begins as gzip does."""
    packed = source.read(0, min(source.size, _PEEK), "gzip")
    try:
        inside = zlib.decompressobj(wbits=31).decompress(packed, _PEEK)
    except zlib.error:
        inside = b""
    if names := _tar_names(lambda offset, length: inside[offset : offset + length], len(inside)):
        found = [name for name in names if WEIGHTS.fullmatch(name)]
        holds = f" with {listed(map(quoted, found))} in it" if found else ""
        return f"a tar archive{holds}, compressed with gzip. Unpack it (tar -xzf), and give the checkpoint in it"
    name = _gzip_name(packed)
    holds = f" from {name}" if name else ""
    kinds = (
        (b"PK\3\4", ": a zip archive, as torch.save writes them"),
        (b"\x80", ": a pickle, as torch.save wrote them"),
    )
    holds += next((kind for magic, kind in kinds if inside.startswith(magic)), "")
    if inside[8:9] == b"{":
        holds += ": safetensors, it seems"
    return f"compressed with gzip{holds}. Unpack it first (gzip -dc)"


def refuse_other_zip(source: SourceFile) -> None:
    """Raise NotACheckpointError if a zip archive holds no pickle of torch.save, saying what it holds instead."""
    names = _zip_names(source)
    if not names or any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names):
        return
    if is_program(names):
        what = PROGRAM
    elif all(name.endswith(".npy") for name in names):
        what = "numpy arrays (.npz), not a checkpoint. Load them with numpy.load and save a state dict with torch.save"
    elif "model.weights.h5" in names or {"config.json", "metadata.json"} <= set(names):
        what = "a Keras model. Give the PyTorch checkpoint"
    elif found := [name for name in names if WEIGHTS.fullmatch(name)]:
        what = f"a zip archive with {listed(map(quoted, found))} in it. Unpack it (unzip), and give that file"
    else:
        what = "a zip archive without data.pkl, so torch.save did not write it. Give the checkpoint itself"
    raise NotACheckpointError(f"{file_name(source.path)}: is {what}.") from None


def _tar_names(read: Callable[[int, int], bytes], size: int) -> list[str] | None:
    """Names of the files among the first members; None if there is no header of tar at the beginning."""
    names: list[str] = []
    position = 0
    for count in range(_HEADERS):
        block = read(position, _BLOCK) if position + _BLOCK <= size else b""
        length = _tar_length(block)
        if length is None:
            return names if count else None
        if block[156:157] in (b"0", b"\0"):  # a file, not a folder, a link or the long name of what follows
            names.append(_text(block[:100].partition(b"\0")[0]))
        position += _BLOCK + -(-length // _BLOCK) * _BLOCK
    return names


def _tar_length(block: bytes) -> int | None:
    """The length of a member's data, if `block` is its header: one whose sum of bytes is what it says."""
    try:
        stated = int(block[148:156].strip(b" \0"), 8)
        is_binary = block[124:125] == b"\x80"  # as sizes beyond 8 GiB are written
        length = int.from_bytes(block[125:136]) if is_binary else int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    is_header = stated == sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    return length if is_header and length >= 0 else None


def _zip_names(source: SourceFile) -> list[str]:
    """Names in the directory of a zip archive, as far as it can be read."""
    start = max(source.size - (END.size + 0xFFFF), 0)
    tail = source.read(start, source.size - start, "end of the zip archive")
    position = tail.rfind(b"PK\5\6")
    if position < 0 or position + END.size > len(tail):
        return []
    try:
        offset, size, _ = find_directory(source, start + position)
    except CheckpointError:
        return []
    if size > _DIRECTORY_LIMIT:
        return []
    data = source.read(offset, size, "zip directory")
    names: list[str] = []
    position = 0
    while position + ENTRY.size <= size:
        signature, *_, name, extra, comment, _, _, _, _ = ENTRY.unpack_from(data, position)
        if signature != b"PK\1\2":
            break
        position += ENTRY.size
        names.append(_text(data[position : position + name]))
        position += name + extra + comment
    return [name for name in names if not name.endswith("/")]


def _gzip_name(packed: bytes) -> str:
    """The name of the file that was compressed, in quotes, if the header keeps it; "" otherwise."""
    position = 10
    flags = packed[3] if len(packed) > position else 0
    if flags & 4:  # an extra field, with its length
        position += 2 + struct.unpack("<H", packed[position : position + 2].ljust(2, b"\0"))[0]
    return quoted(_text(packed[position:].partition(b"\0")[0])) if flags & 8 else ""


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
