"""An opened checkpoint: what tensors it holds, where their bytes lie, and their values one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from converter.checkpoint.adapters import AdapterSettings
from converter.checkpoint.arrays import np
from converter.checkpoint.dtypes import DType
from converter.checkpoint.source import Closing, SourceFile
from converter.checkpoint.storage import CHUNK, Storage
from converter.display import file_name, quoted
from converter.errors import CorruptCheckpointError, UnsupportedCheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECES_LIMIT = 10_000  # reads for one strided tensor
NAME_LIMIT = 1000  # characters; the longest that is known, of modules in modules, has some 150

Layout = Literal["torch-zip", "torch-legacy", "torch-sharded", "safetensors", "safetensors-sharded", "in-memory"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint; its view has been proved to lie inside its storage.

    Args:
        name: exactly as in the file.
        shape, strides: in elements; strides may be 0 (expanded) or overlap.
        offset: first element, counted from the storage's first.
        conjugated, negated: torch's lazy bits; `Checkpoint.read` resolves them.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: Storage = field(repr=False, compare=False)
    offset: int = 0
    conjugated: bool = False
    negated: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements in C order (not of the storage)."""
        return self.numel * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """The elements lie in C order without gaps."""
        if 0 in self.shape:
            return True
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length > 1 and stride != expected:
                return False
            expected *= length
        return True

    @property
    def extent(self) -> tuple[int, int]:
        """First and one past the last element touched, counted in the storage."""
        if self.numel == 0:
            return self.offset, self.offset
        last = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        return self.offset, self.offset + last + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Closing):
    """An open checkpoint. Any thread may read any tensor at any time until `close`.

    Args:
        path: as given.
        layout: how the file is laid out; in-memory: its tensors are made of those of the file when they are read.
        root: name of the state dict that was taken; "" if the file itself is one.
        roots: every state dict found, with its number of tensors.
        tensors: of the root taken, in file order.
        globals: `module.name` of everything the pickle names, sorted; none of it was imported.
        skipped: what was not taken, and why, one sentence each.
        metadata: `__metadata__` of safetensors; of a .pth that `convert` wrote, its `conversion`.
        unsupported: tensors of the root that cannot be read, with the reason.
        adapters: what the file says of low-rank adapters.
        computed: values of tensors that are computed of what is stored, in place of their own.
        objects: what lies among the tensors and is neither a tensor nor a plain value, with a description.
        made_of: what was read, of one that is converted in memory.
    """

    path: Path
    layout: Layout
    tensors: Mapping[str, TensorInfo]
    sources: tuple[SourceFile, ...] = field(repr=False)
    root: str = ""
    roots: Mapping[str, int] = field(default_factory=dict)
    globals: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    objects: Mapping[str, str] = field(default_factory=dict)
    adapters: tuple[AdapterSettings, ...] = ()
    computed: Mapping[str, Callable[[], NDArray[Any]]] = field(default_factory=dict, repr=False)
    made_of: Checkpoint | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Bytes of the file, or of all shards together."""
        return sum(source.size for source in self.sources)

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return [source.path for source in self.sources]

    def read(self, name: str) -> NDArray[Any]:
        """The tensor's values, C-contiguous, in its carrier dtype.

        Memory: the tensor, and for a strided one a buffer of at most twice its size (or `CHUNK` bytes, if larger).
        Raises CorruptCheckpointError if the bytes are damaged, UnsupportedCheckpointError for a tensor that cannot be
        read, KeyError if there is no such tensor.
        """
        if name in self.computed:
            return self.computed[name]()
        info = self._info(name)
        try:
            values = np.empty(info.shape, info.dtype.carrier)
        except ValueError:  # without elements, but with lengths whose product is beyond any memory
            raise UnsupportedCheckpointError(
                f"{file_name(self.path)}: tensor {quoted(name)} of shape {info.shape} is beyond what an array can be. "
                "Leave it out and save again."
            ) from None
        if info.contiguous:
            data = values.reshape(-1).view(np.uint8).data
            if info.numel:
                info.storage.read_into(data, info.offset * info.dtype.itemsize)
                self._repair(info, data)
        else:
            self._gather(info, values)
        if info.conjugated or info.negated:
            _resolve_signs(info, values)
        return values

    def _gather(self, info: TensorInfo, values: NDArray[Any]) -> None:
        """Fill `values` with the elements of a strided tensor, one dense part at a time: large holes are not read."""
        itemsize = info.dtype.itemsize
        strides = [stride if length > 1 else 0 for length, stride in zip(info.shape, info.strides, strict=True)]
        axes = sorted(range(len(strides)), key=lambda axis: -strides[axis])

        def span(inner: list[int]) -> int:
            return itemsize * (1 + sum((info.shape[axis] - 1) * strides[axis] for axis in inner))

        outer: list[int] = []
        while span(axes) > max(CHUNK, 2 * itemsize * prod(info.shape[axis] for axis in axes)):
            outer.append(axes.pop(0))
        part = np.empty(span(axes), np.uint8)
        # unlike as_strided, the constructor itself refuses a view that leaves the buffer
        window: NDArray[Any] = np.ndarray(
            tuple(info.shape[axis] for axis in axes),
            info.dtype.carrier,
            part,
            strides=tuple(strides[axis] * itemsize for axis in axes),
        )
        if (pieces := prod(info.shape[axis] for axis in outer)) > PIECES_LIMIT:
            raise UnsupportedCheckpointError(
                f"{file_name(self.path)}: tensor {quoted(info.name)} lies in {pieces} places far apart, and "
                f"{PIECES_LIMIT} is the limit. Save it as a contiguous tensor."
            )
        target = values.transpose(*outer, *axes)
        for place in np.ndindex(*(info.shape[axis] for axis in outer)):
            first = info.offset + sum(index * strides[axis] for index, axis in zip(place, outer, strict=True))
            info.storage.read_into(part.data, first * itemsize)
            self._repair(info, part.data)
            target[place] = window

    def chunks(self, name: str, size: int = CHUNK, buffer: memoryview | None = None) -> Iterator[memoryview]:
        """The tensor's little-endian bytes in C order, `size` at a time, each valid until the next.

        A contiguous tensor is streamed through one buffer: `buffer`, of `size` bytes, or one of its own. Damage may be
        noticed only after the last piece, so nothing may be trusted until the iterator has ended without an error.
        """
        info = self._info(name)
        size = max(size - size % 16, 16)  # whole elements of every dtype
        if not info.contiguous or info.conjugated or info.negated or name in self.computed:
            flat = self.read(name).reshape(-1).view(np.uint8).data
            for position in range(0, len(flat), size):
                yield flat[position : position + size].toreadonly()
            return
        start = info.offset * info.dtype.itemsize if info.numel else 0
        for piece in info.storage.stream(start, start + info.nbytes, size, buffer):
            self._repair(info, piece)
            yield piece.toreadonly()

    def verify_unchanged(self) -> None:
        """Raise CorruptCheckpointError if a file was written to since opening, or one of several was replaced."""
        for source in self.sources:
            source.verify_unchanged()
            if len(self.sources) > 1:
                source.verify_in_place()

    def close(self) -> None:
        """Close the files."""
        for source in self.sources:
            source.close()

    def _info(self, name: str) -> TensorInfo:
        if reason := self.unsupported.get(name) or self.objects.get(name):
            raise UnsupportedCheckpointError(f"{file_name(self.path)}: {reason}")
        return self.tensors[name]

    def _repair(self, info: TensorInfo, piece: memoryview) -> None:
        """Bring `piece` (whole elements) to little-endian, in place, and refuse bytes that no bool has."""
        component = info.dtype.itemsize // info.dtype.components
        if info.storage.big_endian and component > 1:
            np.frombuffer(piece, f"u{component}").byteswap(inplace=True)
        if info.dtype.kind == "bool" and (np.frombuffer(piece, np.uint8) > 1).any():
            raise CorruptCheckpointError(
                f"{file_name(self.path)}: tensor {quoted(info.name)}: a bool holds a byte other than 0 and 1. "
                "The file is damaged; get it again."
            )


def refuse_long_name(name: str, label: str) -> None:
    """Raise UnsupportedCheckpointError for a name of a tensor that would take long to compare with patterns."""
    if len(name) > NAME_LIMIT:
        raise UnsupportedCheckpointError(
            f"{label}: tensor {quoted(name)}: {NAME_LIMIT} characters are the limit. Save it by a shorter name."
        )


def _resolve_signs(info: TensorInfo, values: NDArray[Any]) -> None:
    """Apply torch's lazy negation and conjugation to C-contiguous `values`, in place, by flipping sign bits."""
    component = info.dtype.itemsize // info.dtype.components
    numbers = values.reshape(-1).view(f"<u{component}")
    sign = numbers.dtype.type(1 << (8 * component - 1))
    if info.negated:
        numbers ^= sign
    if info.conjugated:
        numbers[1::2] ^= sign
