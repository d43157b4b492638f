"""The SHA-256 of every tensor of a checkpoint; and stamps of files, which show whether they were changed meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from converter.checkpoint.index import Checkpoint, TensorInfo

Stamps: TypeAlias = dict[Path, tuple[int, int, int]]


def stamps(paths: Iterable[Path]) -> Stamps:
    """Inode, size and modification time of each file: they differ once a process writes to the file or replaces it."""
    found = {path: path.stat() for path in paths}
    return {path: (status.st_ino, status.st_size, status.st_mtime_ns) for path, status in found.items()}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_hashes(
    checkpoint: Checkpoint,
    on_bytes: Callable[[int], object] = lambda count: None,
    look: Callable[[TensorInfo, memoryview], object] = lambda tensor, chunk: None,
) -> dict[str, str]:
    """SHA-256 of every tensor's bytes, by name. `look` gets them too, in chunks of whole elements."""
    hashes = {}
    for name, tensor in checkpoint.tensors.items():
        digest = hashlib.sha256()
        for chunk in checkpoint.chunks(name):
            digest.update(chunk)
            look(tensor, chunk)
            on_bytes(len(chunk))
        hashes[name] = digest.hexdigest()
    return hashes
