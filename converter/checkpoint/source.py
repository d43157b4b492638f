"""A regular file that is read by position: safe for threads, and truncation is an error, never a signal."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from converter.display import file_name
from converter.errors import CorruptCheckpointError, NotACheckpointError


class Closing(ABC):
    """A context manager whose `close` is called at its end."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Close what is open; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SourceFile(Closing):
    """An open regular file of known size. There is no shared seek position and no mapping into memory."""

    __slots__ = ("_fd", "_stamp", "path", "size")

    def __init__(self, path: Path) -> None:
        """Open `path` without waiting: a FIFO, a device or a folder is refused before a byte is read."""
        self.path = path
        self._fd = -1
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            _refuse_special(path, os.stat(path).st_mode)
            self._fd = os.open(path, flags)
            status = os.fstat(self._fd)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            message = f"{file_name(path)}: cannot be opened ({reason}). Check the path and its permissions."
            raise NotACheckpointError(message) from error
        self.size = status.st_size
        self._stamp = (status.st_size, status.st_mtime_ns)
        try:
            _refuse_special(path, status.st_mode)
        except NotACheckpointError:
            self.close()
            raise

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Exactly `length` bytes from `offset`; `what` names them in the error if the file is shorter."""
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset, what)
        return bytes(buffer)

    def read_into(self, view: memoryview, offset: int, what: str) -> None:
        """Fill `view` with the bytes from `offset` on."""
        if self._fd < 0:
            raise ValueError(f"{file_name(self.path)}: read after close()")
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise CorruptCheckpointError(
                    f"{file_name(self.path)}: {what}: reading at byte {offset + done} failed "
                    f"({error.strerror}). Check the disk, or copy the file again."
                ) from error
            if count == 0:
                raise CorruptCheckpointError(
                    f"{file_name(self.path)}: {what}: the file ends at byte {offset + done}, expected bytes "
                    f"{offset} to {offset + len(view)}. It is truncated or was changed; get it again."
                )
            done += count

    def verify_unchanged(self) -> None:
        """Raise CorruptCheckpointError if the size or modification time is not what it was at opening."""
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != self._stamp:
            raise CorruptCheckpointError(
                f"{file_name(self.path)}: was changed while it was read ({self._stamp[0]} bytes at opening, "
                f"{status.st_size} bytes now). Run again once nothing writes to it."
            )

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _refuse_special(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    )
    kind = next((name for test, name in kinds if test(mode)), "a special file")
    raise NotACheckpointError(f"{file_name(path)}: is {kind}, not a regular file. Give the checkpoint file itself.")
