"""Reading checkpoints of any layout without executing anything in them.

In the order in which data passes:

    folders.py       which file of a folder is meant
    source.py        a file, read at stated places only
    foreign.py       what is no checkpoint, or a part of one: by name, first bytes or empty tensors
    packed.py        archives around a checkpoint
    truncated.py     files that end too early
    zip_archive.py   the entries of a zip file, each checked
    pickle_stream.py the opcodes of a pickle, with their arguments
    opcodes.py       these opcodes, interpreted for a closed set of values
    torch_zip.py     files of torch.save, since 1.6: a zip with a pickle
    torch_legacy.py  files of torch.save before that
    storage.py       where the numbers of a storage lie
    tensors.py       tensors as views of storages
    adapters.py      what a file says of low-rank adapters
    modules.py       pickled modules as state dicts
    describe.py      values of a pickle in words
    state_dicts.py   every state dict of a file, at any depth
    roots.py         which state dict of a file is meant
    safetensors.py   safetensors
    shards.py        several files of one checkpoint, with an index
    index.py         what all of these give: a Checkpoint, whose tensors are read one at a time
    arrays.py        numpy, once it is needed
    dtypes.py        the types of elements
    hashes.py        the SHA-256 of every tensor; whether a file was changed meanwhile
    strict_json.py   JSON that a stranger wrote
"""

from __future__ import annotations

import os
from pathlib import Path

from converter.checkpoint.dtypes import DTYPES, DType
from converter.checkpoint.folders import find_in_folder
from converter.checkpoint.foreign import refuse_foreign, refuse_parts, refuse_placeholders
from converter.checkpoint.index import Checkpoint, TensorInfo
from converter.checkpoint.packed import refuse_other_zip
from converter.checkpoint.roots import Knows, named
from converter.checkpoint.safetensors import open_safetensors
from converter.checkpoint.shards import INDEX_SUFFIX, alone, open_sharded
from converter.checkpoint.source import SourceFile
from converter.checkpoint.torch_legacy import is_torch_legacy, open_torch_legacy
from converter.checkpoint.torch_zip import open_torch_zip
from converter.display import file_name
from converter.errors import CheckpointError, NotACheckpointError

__all__ = ["DTYPES", "Checkpoint", "DType", "TensorInfo", "open_checkpoint"]


def open_checkpoint(path: str | Path, root: str | None = None, knows: Knows | None = None) -> Checkpoint:
    """Index the checkpoint at `path`; a context manager that closes its files.

    `path` is a file of torch.save (zip or legacy), a safetensors file, a `.index.json` of shards of either kind, or a
    folder with one of these under the name that transformers gives it. `root` names the state dict to take where there
    are several, with dots for dicts in dicts, or begins the names of the tensors to take; without it, the one with most
    names that `knows` counts as known is taken, or the one whose name is preferred.

    Raises CheckpointError: NotACheckpointError, CorruptCheckpointError, UnsupportedCheckpointError or RootError.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, says no to a path that is too long
        path = find_in_folder(path)
    source = SourceFile(path)
    try:
        if path.name.endswith(INDEX_SUFFIX):
            return named(open_sharded(source, lambda shard: _open(shard, None, None)), root)
        checkpoint = alone(_open(source, root, knows))
        refuse_placeholders(checkpoint)
        return checkpoint
    except BaseException:
        source.close()
        raise


def _open(source: SourceFile, root: str | None, knows: Knows | None) -> Checkpoint:
    refuse_parts(source.path)
    head = source.read(0, min(source.size, 9), "beginning of the file")
    if head.startswith(b"PK\3\4"):
        try:
            return open_torch_zip(source, root, knows)
        except CheckpointError:
            refuse_other_zip(source)
            raise
    # before all other kinds, whose first bytes may be the length of a header
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= source.size - 8:
        return named(open_safetensors(source), root)
    if head.startswith((b"\x80", b"L11954703")) and is_torch_legacy(source):  # a pickle; in text, torch's number
        return open_torch_legacy(source, root, knows)
    refuse_foreign(source)
    if head[8:9] == b"{":
        return named(open_safetensors(source), root)
    raise NotACheckpointError(
        f"{file_name(source.path)}: begins with {head[:8]!r}, so neither torch.save nor safetensors wrote it. Give the "
        "checkpoint itself, or get it again."
    )
