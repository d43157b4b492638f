"""The safetensors format, written deterministically: where every tensor goes, and the header that says so.

Format: 8 bytes header length (little-endian), a JSON header padded with spaces to a multiple of 8, then the data.
Tensors are ordered by falling element size and then by name, as the safetensors library does, so that each is
aligned; JSON is compact with sorted keys. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.strict_json import OBJECT_LIMIT, TooMuch, check_marks
from converter.display import size_of
from converter.errors import DestinationError
from converter.planning.plan import Tensor
from converter.writing.ledger import to_json

INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file: its tensors in file order, each with its offset in the data."""

    name: str
    offsets: Mapping[str, int]
    tensors: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Bytes of tensor data."""
        return sum(map(nbytes, self.tensors))

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """Length, JSON and padding. Metadata of the same lengths gives a header of the same length.

        DestinationError where it would be more than is read again.
        """
        content: dict[str, Any] = {"__metadata__": dict(metadata)}
        for tensor in self.tensors:
            start = self.offsets[tensor.name]
            content[tensor.name] = {
                "dtype": tensor.dtype.safetensors,
                "shape": list(tensor.shape),
                "data_offsets": [start, start + nbytes(tensor)],
            }
        text = to_json(content, indent=None)
        text += b" " * (-len(text) % 8)
        try:
            check_marks(text.decode())
            if len(text) > OBJECT_LIMIT:
                raise TooMuch(f"{len(text)} bytes")
        except TooMuch as error:
            raise DestinationError(
                f"{self.name}: the header of {len(self.tensors)} tensors would have {error}; write several files, by a "
                "folder as --dst and --max-shard-size"
            ) from None
        return struct.pack("<Q", len(text)) + text


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's data."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def shard_limit(size: int | str | None) -> int | None:
    """What a shard may have, in bytes, of a number or a text like "500MB". DestinationError."""
    try:
        return size_of(str(size)) if size is not None else None
    except ValueError as error:
        raise DestinationError(f"max_shard_size: {error}") from None


def lay_out(tensors: Iterable[Tensor], file_name: str, max_shard_size: int | None = None) -> list[Shard]:
    """Distribute tensors over shards of at most `max_shard_size` bytes of data, in the Hub's naming.

    Raises DestinationError for a tensor that is larger than a shard may be.
    """
    ordered = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))
    groups: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in ordered:
        size = nbytes(tensor)
        if max_shard_size is not None and size > max_shard_size:
            raise DestinationError(
                f"{tensor.name} has {size} bytes, more than a shard may have ({max_shard_size}); allow larger shards"
            )
        if max_shard_size is not None and groups[-1] and filled + size > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    if len(groups) == 1:
        return [_shard(file_name, groups[0])]
    stem = file_name.removesuffix(".safetensors")
    return [
        _shard(f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors", group)
        for number, group in enumerate(groups, start=1)
    ]


def _shard(name: str, tensors: Sequence[Tensor]) -> Shard:
    offsets = {}
    position = 0
    for tensor in tensors:
        offsets[tensor.name] = position
        position += nbytes(tensor)
    return Shard(name, offsets, tuple(tensors))


def shard_index(shards: Sequence[Shard]) -> bytes:
    """`model.safetensors.index.json` as the Hub's tools read it."""
    return to_json(
        {
            "metadata": {"total_size": sum(shard.size for shard in shards)},
            "weight_map": {tensor.name: shard.name for shard in shards for tensor in shard.tensors},
        }
    )
