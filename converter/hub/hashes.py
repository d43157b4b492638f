"""A file's hashes, as the Hub states them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converter.display import file_name
from converter.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Hashes:
    """A file's size in bytes, and its hashes as the Hub states them: of LFS files and of git blobs."""

    size: int
    sha256: str
    blob: str

    def beside(self, remote: RepoFile) -> tuple[str, str]:
        """Our hash and the Hub's, of the kind that the Hub states."""
        if remote.lfs is not None:
            return self.sha256, remote.lfs.sha256
        return self.blob, remote.blob_id

    def match(self, remote: RepoFile) -> bool:
        """Whether `remote` is this content."""
        own, stated = self.beside(remote)
        return own == stated


def hash_bytes(content: bytes) -> Hashes:
    """The hashes of a file that holds `content`."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return Hashes(len(content), hashlib.sha256(content).hexdigest(), blob.hexdigest())


def hash_file(path: Path, on_bytes: Callable[[int], object] = lambda count: None) -> Hashes:
    """Read a file once. Raises HubError if it cannot be read or changes meanwhile."""
    sha256 = hashlib.sha256()
    try:
        size = path.stat().st_size
        blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        read = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                blob.update(chunk)
                read += len(chunk)
                on_bytes(len(chunk))
    except OSError as error:
        raise HubError(f"{file_name(path)}: cannot be read: {error.strerror}. Check the path.") from None
    if read != size:
        raise HubError(f"{file_name(path)}: changed while it was read. Wait until it is written, and try again.")
    return Hashes(size, sha256.hexdigest(), blob.hexdigest())
