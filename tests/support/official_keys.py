"""Official key lists as the index of a checkpoint, without any file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from converter.checkpoint import DTYPES, DType
from scripts.synthetic_checkpoint import manifest


@dataclass(frozen=True)
class IndexEntry:
    """What a plan looks at of a `TensorInfo`."""

    name: str
    shape: tuple[int, ...]
    dtype: DType


@dataclass(frozen=True)
class Index:
    """The tensors that a plan is made of, without a file."""

    tensors: Mapping[str, IndexEntry]
    unsupported: Mapping[str, str] = field(default_factory=dict)
    objects: Mapping[str, str] = field(default_factory=dict)


def official_index(model: str) -> dict[str, IndexEntry]:
    """The tensors of an official checkpoint, as `Checkpoint.tensors` would list them."""
    return {key: IndexEntry(key, shape, DTYPES[dtype]) for key, shape, dtype in manifest(model)}
