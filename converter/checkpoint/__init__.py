"""Reading checkpoints of any layout without executing anything in them.

In the order in which data passes:

    source.py        a file, read at stated places only
    zip_archive.py   the entries of a zip file, each checked
    opcodes.py       the opcodes of a pickle, interpreted for a closed set of values
    torch_zip.py     files of torch.save, since 1.6: a zip with a pickle
    torch_legacy.py  files of torch.save before that
    storage.py       where the numbers of a storage lie
    tensors.py       tensors as views of storages
    adapters.py      what a file says of low-rank adapters
    modules.py       pickled modules as state dicts
    roots.py         which state dict of a file is meant
    safetensors.py   safetensors, one file or shards
    index.py         what all of these give: a Checkpoint, whose tensors are read one at a time
    dtypes.py        the types of elements
    hashes.py        the SHA-256 of every tensor; whether a file was changed meanwhile
    strict_json.py   JSON that a stranger wrote
"""

from __future__ import annotations

import os
from pathlib import Path

from converter.checkpoint.dtypes import DTYPES, DType
from converter.checkpoint.index import Checkpoint, TensorInfo
from converter.checkpoint.roots import Knows
from converter.checkpoint.safetensors import INDEX_SUFFIX, open_safetensors, open_sharded
from converter.checkpoint.source import SourceFile
from converter.checkpoint.torch_legacy import is_torch_legacy, open_torch_legacy
from converter.checkpoint.torch_zip import open_torch_zip
from converter.display import file_name
from converter.errors import NotACheckpointError

__all__ = ["DTYPES", "Checkpoint", "DType", "TensorInfo", "open_checkpoint"]

_IN_FOLDERS = ("model.safetensors.index.json", "model.safetensors")
# files that people give by mistake, by their first bytes
_KNOWN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself. Run `git lfs pull` in its repository"),
    (b"<", "a web page or XML. The download went wrong; get the file again from its download link"),
    (b"\x1f\x8b", "compressed with gzip. Unpack it first"),
    (b"BZh", "compressed with bzip2. Unpack it first"),
    (b"\xfd7zXZ", "compressed with xz. Unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard. Unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive. Unpack it first"),
    (b"Rar!", "a RAR archive. Unpack it first"),
    (b"\x89HDF", "an HDF5 file. Give the PyTorch checkpoint"),
    (b"GGUF", "a GGUF file. Give the PyTorch checkpoint"),
    (b"PK\5\6", "an empty zip archive. Get the file again"),
)


def open_checkpoint(path: str | Path, root: str | None = None, knows: Knows | None = None) -> Checkpoint:
    """Index the checkpoint at `path`; a context manager that closes its files.

    `path` is a file of torch.save (zip or legacy), a safetensors file, a `.index.json` of shards, or a folder with one
    of the last two under its conventional name. `root` names the state dict to take where there are several, with dots
    for dicts in dicts, or begins the names of the tensors to take; without it, the one of whose names `knows` gives the
    largest share as known is taken, or the one whose name is preferred.

    Raises CheckpointError: NotACheckpointError, CorruptCheckpointError, UnsupportedCheckpointError or RootError.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, says no to a path that is too long
        path = _in_folder(path)
    source = SourceFile(path)
    try:
        return _open(source, root, knows)
    except BaseException:
        source.close()
        raise


def _open(source: SourceFile, root: str | None, knows: Knows | None) -> Checkpoint:
    if source.path.name.endswith(INDEX_SUFFIX):
        return open_sharded(source, root)
    head = source.read(0, min(source.size, 512), "beginning of the file")
    if head.startswith(b"PK\3\4"):
        return open_torch_zip(source, root, knows)
    # before the magic bytes, any of which may be the length of a header
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= source.size - 8:
        return open_safetensors(source, root)
    for magic, what in _KNOWN:
        if head.lstrip().startswith(magic):
            raise NotACheckpointError(f"{file_name(source.path)}: is {what}.")
    if head[257:].startswith(b"ustar"):
        raise NotACheckpointError(
            f"{file_name(source.path)}: is a tar archive. If torch older than 0.1.10 wrote it, load it there and save "
            "it again."
        )
    if head[8:9] == b"{" or source.path.suffix == ".safetensors":
        return open_safetensors(source, root)
    if is_torch_legacy(source):
        return open_torch_legacy(source, root, knows)
    found = f"begins with {head[:8]!r}" if head else "is empty"
    raise NotACheckpointError(
        f"{file_name(source.path)}: {found}, so neither torch.save nor safetensors wrote it. Give the checkpoint "
        "itself, or get it again."
    )


def _in_folder(folder: Path) -> Path:
    found = [folder / name for name in _IN_FOLDERS if (folder / name).exists()]
    if len(found) == 1:
        return found[0]
    there = f"with both {' and '.join(_IN_FOLDERS)}" if found else f"without {' or '.join(_IN_FOLDERS)}"
    raise NotACheckpointError(f"{file_name(folder)}: is a folder {there}. Give the checkpoint file itself.")
