"""Official key lists as the index of a checkpoint, without any file."""

from __future__ import annotations

from dataclasses import dataclass

from converter.checkpoint import DTYPES, DType
from scripts.synthetic_checkpoint import manifest


@dataclass(frozen=True)
class IndexEntry:
    """What a plan looks at of a `TensorInfo`."""

    name: str
    shape: tuple[int, ...]
    dtype: DType


def official_index(model: str) -> dict[str, IndexEntry]:
    """The tensors of an official checkpoint, as `Checkpoint.tensors` would list them."""
    return {key: IndexEntry(key, shape, DTYPES[dtype]) for key, shape, dtype in manifest(model)}
