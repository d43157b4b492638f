"""A run of bytes in a file that tensors look into, streamed in pieces and checked against its CRC-32."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from converter.checkpoint.source import SourceFile
from converter.display import file_name
from converter.errors import CorruptCheckpointError

CHUNK = 1024 * 1024  # bytes: the buffers of all threads stay in the cache of the processor


@dataclass(slots=True, eq=False)
class Storage:
    """The bytes of one storage.

    Args:
        source: file that holds them.
        key: name of the storage, unique in the checkpoint; tensors with equal keys share memory.
        label: how messages call it, e.g. `member 'archive/data/0'`.
        offset, nbytes: where it lies in the file.
        crc: CRC-32 of all its bytes, or None where the format keeps none.
        big_endian: multi-byte numbers in it are big-endian.
    """

    source: SourceFile
    key: str
    label: str
    offset: int
    nbytes: int
    crc: int | None = None
    big_endian: bool = False
    _verified: bool = field(init=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._verified = self.crc is None

    def stream(
        self, start: int, stop: int, size: int = CHUNK, buffer: memoryview | None = None
    ) -> Iterator[memoryview]:
        """Bytes `start` to `stop` in pieces of `size`, in one `buffer` of that size: a piece is valid until the next.

        The CRC is checked on the way if all bytes are asked for (the error then comes after the last
        piece), otherwise in a pass of its own before the first piece.
        """
        whole = start == 0 and stop == self.nbytes
        if start == stop and not whole:
            return
        if not whole:
            self.verify()
        if buffer is None:
            buffer = memoryview(bytearray(min(size, stop - start)))
        crc = 0
        for position in range(start, stop, size):
            piece = buffer[: min(size, stop - position)]
            self.source.read_into(piece, self.offset + position, self.label)
            if whole and self.crc is not None:
                crc = zlib.crc32(piece, crc)
            yield piece
        if whole and self.crc is not None:
            self._compare(crc)

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill `view` with the bytes from `start` on, checking the CRC as `stream` does."""
        whole = start == 0 and len(view) == self.nbytes
        if not whole:
            self.verify()
        crc = 0
        for position in range(0, len(view), CHUNK):
            piece = view[position : position + CHUNK]
            self.source.read_into(piece, self.offset + start + position, self.label)
            if whole and self.crc is not None:
                crc = zlib.crc32(piece, crc)
        if whole and self.crc is not None:
            self._compare(crc)

    def verify(self) -> None:
        """Check the CRC of all bytes, once; further calls, from any thread, cost nothing."""
        if self._verified:
            return
        with self._lock:
            if not self._verified:
                for _ in self.stream(0, self.nbytes):
                    pass

    def _compare(self, crc: int) -> None:
        if crc != self.crc:
            raise CorruptCheckpointError(
                f"{file_name(self.source.path)}: {self.label}: CRC-32 is {crc:08x}, expected {self.crc:08x}. "
                "The file is damaged; get it again."
            )
        self._verified = True
