"""The SHA-256 of every tensor of a checkpoint, by which a copy is told from a change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from converter.checkpoint.index import Checkpoint


def tensor_hashes(checkpoint: Checkpoint, on_bytes: Callable[[int], object] = lambda count: None) -> dict[str, str]:
    """SHA-256 of every tensor's bytes, by name."""
    hashes = {}
    for name in checkpoint.tensors:
        digest = hashlib.sha256()
        for chunk in checkpoint.chunks(name):
            digest.update(chunk)
            on_bytes(len(chunk))
        hashes[name] = digest.hexdigest()
    return hashes
