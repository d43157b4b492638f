"""The SHA-256 of every tensor of a checkpoint; and stamps of files, which show whether they were changed meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from converter.checkpoint.index import Checkpoint, TensorInfo
from converter.display import file_name
from converter.errors import unreadable

Stamps: TypeAlias = dict[Path, tuple[int, int, int]]


def stamps(paths: Iterable[Path]) -> Stamps:
    """Inode, size and modification time of each file: they differ once a process writes to the file or replaces it.

    Raises CheckpointError for one that cannot be looked at.
    """
    found = {}
    for path in paths:
        with _reading(path):
            found[path] = path.stat()
    return {path: (status.st_ino, status.st_size, status.st_mtime_ns) for path, status in found.items()}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises CheckpointError if it cannot be read."""
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unreadable(file_name(path), error) from error


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
