"""A regular file that is read by position: safe for threads, and truncation is an error, never a signal."""

from __future__ import annotations

import os
import stat
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from converter.display import file_name
from converter.errors import CorruptCheckpointError, NotACheckpointError

# file systems tell time in steps: FAT in 2 s, others in 1 s, exFAT in 10 ms (its specification, 7.4.5 to 7.4.9).
# (what the time of a file in such steps is a multiple of, how long a second change may leave it the same), in ns
_STEPS = ((10**9, 2 * 10**9), (10**7, 10**7))


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

    __slots__ = ("_fd", "_status", "path", "size")

    def __init__(self, path: Path) -> None:
        """Open `path`; a FIFO, a device or a folder is refused at once, before a byte is read.

        Where the file system tells time in coarse steps, a file of this very moment is waited for, at most 2 s: before
        the step is over, `verify_unchanged` could not see that it is written again.
        """
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
        self._status = status
        try:
            _refuse_special(path, status.st_mode)
            if step := _rest_of_step(status.st_mtime_ns):
                time.sleep(step / 1e9)
                self.verify_unchanged()
        except BaseException:
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
        """Raise CorruptCheckpointError if the file was written to since it was opened.

        Its time may have been put back after that (cp -p, tar, rsync), which the time of the change of the inode shows;
        a file that another one replaced under its name is as it was.
        """
        try:
            before, now = self._status, os.fstat(self._fd)
        except OSError as error:
            raise CorruptCheckpointError(
                f"{file_name(self.path)}: cannot tell whether it was changed while it was read ({error.strerror}). "
                "Check the disk, and run again."
            ) from error
        if (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
            raise CorruptCheckpointError(
                f"{file_name(self.path)}: was changed while it was read ({before.st_size} bytes at opening, "
                f"{now.st_size} bytes now). Run again once nothing writes to it."
            )
        if before.st_ctime_ns != now.st_ctime_ns and _held(before) == _held(now):
            raise CorruptCheckpointError(
                f"{file_name(self.path)}: was changed while it was read and its time put back, or it was moved or its "
                "attributes set; its times do not tell which. Run again once nothing touches it."
            )

    def verify_in_place(self) -> None:
        """Raise CorruptCheckpointError if its name does not lead to this file any more.

        Of one file, what was opened is a whole; of several, those opened before and after a replacement do not belong
        together.
        """
        try:
            is_there = os.path.samestat(os.stat(self.path), self._status)
        except OSError:
            is_there = False
        if not is_there:
            raise CorruptCheckpointError(
                f"{file_name(self.path)}: was replaced or removed while it was read together with others. Run again "
                "once nothing writes to them."
            )

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            with suppress(OSError):  # nothing was written
                os.close(self._fd)
            self._fd = -1


def _held(status: os.stat_result) -> tuple[int, ...]:
    """What else moves the time of the inode and harms no reader: links to it, its owners and permissions."""
    return status.st_nlink, status.st_mode, status.st_uid, status.st_gid


def _rest_of_step(modified: int) -> int:
    """Nanoseconds until a change of a file of that time would show; 0 where it shows at once."""
    length = next((length for grain, length in _STEPS if modified % grain == 0), 0)
    passed = time.time_ns() - modified
    return length - passed if 0 <= passed < length else 0  # a time to come is another machine's


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
    raise NotACheckpointError(f"{file_name(path)}: is {kind}, not a file. Give the checkpoint file itself.")
