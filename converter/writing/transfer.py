"""Moving tensors: steps of a plan executed in threads, from an open checkpoint to places in open files.

Reading, CRC, SHA-256 and writing all release the interpreter lock: while one tensor is hashed another is read and a
third is written, and the disk is at work on what was written before. A step that only renames, casts or joins along the
first axis flows through in chunks; only one that moves elements about holds its tensors in memory, and only one such at
a time.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.checkpoint.arrays import np
from converter.checkpoint.storage import CHUNK
from converter.display import file_name
from converter.errors import DestinationError
from converter.mapping.cast import cast
from converter.mapping.ops import Array, apply_ops, keep_order
from converter.planning.plan import Step
from converter.writing.commit import signals_held
from converter.writing.destination import writing
from converter.writing.names import ARCHIVES
from converter.writing.shards import nbytes
from converter.writing.staging import write_at

_THREADS = 4  # on two cores: two compute while others wait for the disk


def _from_libc() -> Any:
    """sync_file_range(2), or None where there is no such call: it only saves time."""
    try:
        import ctypes

        call = ctypes.CDLL(None).sync_file_range
    except (ImportError, OSError, TypeError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


_sync_file_range = _from_libc()
_WRITE = 2  # SYNC_FILE_RANGE_WRITE of linux/fs.h


def begin_flush(descriptor: int, position: int, size: int) -> None:
    """Have the disk begin with what was written there, and do not wait until it has it: little is left to the last
    fsync, which reports what fails. The last page is left to who writes its rest."""
    if _sync_file_range is not None:
        begin, end = (place - place % mmap.PAGESIZE for place in (position, position + size))
        if end > begin:  # a length of 0 is the rest of the file
            _sync_file_range(descriptor, begin, end - begin, _WRITE)


class _Buffer(threading.local):
    """A buffer for each thread: memory that is new for every tensor costs as much time as a copy."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(CHUNK))


class _Cancelled(Exception):
    """Another thread failed; its error is the one to show."""


@dataclass(eq=False)
class Transfer:
    """Executes steps, in threads; `run` gives the sha256 of every target, and of every source as `source NAME`.

    `crcs` are the CRC-32 of the targets, which one kind of file needs.
    """

    checkpoint: Checkpoint
    places: Mapping[str, tuple[int, int]]
    destination: Path
    on_bytes: Callable[[int], None]
    crcs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._wants_crcs = self.destination.suffix in ARCHIVES
        self._hashes: dict[str, str] = {}
        self._cancelled = threading.Event()
        self._materialising = threading.Lock()
        self._buffer = _Buffer()

    def run(self, steps: Iterable[Step]) -> dict[str, str]:
        # large ones first, so that no thread is left alone with one at the end
        ordered = sorted(steps, key=lambda step: -sum(map(nbytes, step.targets)))
        pool = ThreadPoolExecutor(_THREADS)
        try:
            try:
                moving = [pool.submit(self._run, step) for step in ordered]
            except RuntimeError as error:
                raise DestinationError(
                    f"{file_name(self.destination)} cannot be written: {error}; end other programs, or raise the limit "
                    "of processes (ulimit -u)"
                ) from error
            done, _ = wait(moving, return_when=FIRST_EXCEPTION)
            for future in done:
                if not isinstance(future.exception(), _Cancelled):
                    future.result()
        finally:  # on Ctrl-C too: the others stop at their next chunk
            self._cancelled.set()
            with signals_held():  # a second Ctrl-C must not leave threads that write to what is closed by then
                pool.shutdown(cancel_futures=True)
        return self._hashes

    def _run(self, step: Step) -> None:
        if len(step.targets) == 1 and keep_order(step.ops):
            self._stream(step)
        else:
            with self._materialising:
                self._materialise(step)

    def _stream(self, step: Step) -> None:
        """Source after source, chunk by chunk: their bytes in C order are the target's."""
        (target,) = step.targets
        descriptor, position = self.places[target.name]
        whole = hashlib.sha256()
        crc = 0
        same_bytes = len(step.sources) == 1 and not step.casts
        for source in step.sources:
            part = hashlib.sha256()
            for chunk in self._chunks(source.name):
                part.update(chunk)
                if source.dtype != target.dtype:
                    array = np.frombuffer(chunk, dtype=source.dtype.carrier)
                    chunk = raw_bytes(cast(array, source.dtype, target.dtype, source.name))
                if not same_bytes:
                    whole.update(chunk)
                crc = zlib.crc32(chunk, crc) if self._wants_crcs else 0
                self._put(descriptor, chunk, position)
                position += len(chunk)
            self._hashes[f"source {source.name}"] = part.hexdigest()
        self._hashes[target.name] = part.hexdigest() if same_bytes else whole.hexdigest()
        self.crcs[target.name] = crc

    def _materialise(self, step: Step) -> None:
        arrays = []
        for source in step.sources:
            array = self.checkpoint.read(source.name)
            self._hashes[f"source {source.name}"] = sha256_of(array)
            arrays.append(array)
        for target, array in zip(step.targets, made_by(step, arrays), strict=True):
            data = raw_bytes(array)
            self._hashes[target.name] = hashlib.sha256(data).hexdigest()
            self.crcs[target.name] = zlib.crc32(data)
            self.put(target.name, data)

    def put(self, name: str, data: memoryview) -> None:
        """Write all of a tensor's bytes."""
        descriptor, position = self.places[name]
        self._put(descriptor, data, position)

    def copy(self, name: str, size: int, to: str) -> None:
        """Write the `size` bytes that were written under one name under another, too."""
        (descriptor, position), (into, start) = self.places[name], self.places[to]
        done = 0
        while done < size:
            with writing(self.destination):
                data = os.pread(descriptor, min(CHUNK, size - done), position + done)
            if not data:
                raise DestinationError(f"{file_name(self.destination)} was cut off while it was written. Try again")
            self._put(into, memoryview(data), start + done)
            done += len(data)

    def _chunks(self, name: str) -> Iterator[memoryview]:
        for chunk in self.checkpoint.chunks(name, buffer=self._buffer.view):
            if self._cancelled.is_set():
                raise _Cancelled
            yield chunk

    def _put(self, descriptor: int, data: memoryview, position: int) -> None:
        with writing(self.destination):
            write_at(descriptor, data, position)
        if len(data) >= CHUNK // 4:  # a chunk, or what a cast leaves of one
            begin_flush(descriptor, position, len(data))
        self.on_bytes(len(data))


def made_by(step: Step, arrays: Sequence[Array]) -> list[Array]:
    """The targets of a step, of the values of its sources. PlanError for a value that a cast cannot hold."""
    joined = [cast(a, s.dtype, step.joined_as, s.name) for s, a in zip(step.sources, arrays, strict=True)]
    results = zip(step.targets, apply_ops(step.ops, joined), strict=True)
    return [cast(array, step.joined_as, target.dtype, target.name) for target, array in results]


def sha256_of(array: Array) -> str:
    """The hash by which a tensor is known in a ledger."""
    return hashlib.sha256(raw_bytes(array)).hexdigest()


def raw_bytes(array: Array) -> memoryview:
    """The array's bytes in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
