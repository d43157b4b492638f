"""Results of a long run, one to a line: what was done before the run was stopped is there for the next one.

The first line says what the results depend on, the others are results; all are JSON objects. A line is written in one
piece while signals wait, and flushed. Only `kill -9`, a full disk or a power cut can leave half of one, at the end: the
next run drops it. A lock keeps a second process out for as long as the first is at work.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from converter.checkpoint.strict_json import OBJECT_LIMIT, parse_json
from converter.display import file_name
from converter.errors import DestinationError
from converter.writing.commit import NO_LOCKS, signals_held
from converter.writing.destination import writing
from converter.writing.staging import write_at


class Journal:
    """A file of results; a context that closes it.

    `settings`: its first line, None if there is none yet. The other lines are read when `results` is asked for them, so
    that they may be more than memory holds.
    """

    def __init__(self, path: Path, *, begin_anew: bool = False) -> None:
        """Read it, if it is there, and keep others out. `begin_anew`: what it holds is not read.

        DestinationError if it is no journal, or another process is at work on it. Nothing is changed yet.
        """
        self.path = path
        self.settings: Mapping[str, Any] | None = None
        self._descriptor: int | None = None
        self._end = 0  # of the last whole line that is kept
        try:
            with writing(path):
                self._open(os.O_RDWR)
        except DestinationError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            return
        try:
            if not begin_anew:
                self._read_settings()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others in; a second call does nothing."""
        if self._descriptor is not None:
            with suppress(OSError):  # every line was flushed
                os.close(self._descriptor)
            self._descriptor = None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make it, with its first line; what it held before goes. DestinationError if it cannot be made."""
        with writing(self.path), signals_held():
            if self._descriptor is None:
                self._open(os.O_RDWR | os.O_CREAT | os.O_EXCL)
            self._end = 0
            self._write(settings)
            self.settings = settings

    def add(self, *results: Mapping[str, Any]) -> None:
        """Keep results. DestinationError if they cannot be written; those before them stay."""
        with writing(self.path), signals_held():
            self._write(*results)

    def _write(self, *values: Mapping[str, Any]) -> None:
        assert self._descriptor is not None
        lines = b"".join(json.dumps(v, separators=(",", ":"), allow_nan=False).encode() + b"\n" for v in values)
        os.ftruncate(self._descriptor, self._end)  # half a line, or all that was there
        write_at(self._descriptor, lines, self._end)
        os.fsync(self._descriptor)
        self._end += len(lines)

    def remove(self) -> None:
        """Take it away: all of it is elsewhere by now."""
        with writing(self.path):
            self.path.unlink(missing_ok=True)
        self.close()

    def _open(self, flags: int) -> None:
        self._descriptor = os.open(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            self.close()
            what = "is not a file" if status.st_nlink == 1 else "has another name, under which it would change, too"
            raise DestinationError(f"{file_name(self.path)}: {what}. Choose another folder.")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise DestinationError(
                f"{file_name(self.path)}: another run is at work on it. Wait for its end, or choose another folder."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if not self.path.exists() or not os.path.samestat(os.fstat(self._descriptor), self.path.stat()):
            self.close()
            raise DestinationError(f"{file_name(self.path)}: another run has just finished with it. Run again.")

    def results(self) -> Iterator[dict[str, Any]]:
        """All results that are kept, in the order in which they were written. DestinationError for what is none."""
        if self.settings is None:
            return
        for number, line in enumerate(self._lines(), start=1):
            if number > 1:
                yield self._parsed(line, number)

    def _read_settings(self) -> None:
        line = next(self._lines(), b"")
        if len(line) <= OBJECT_LIMIT and not line.endswith(b"\n"):
            return  # half of one
        self.settings = self._parsed(line, 1)
        self._end = self._whole()

    def _whole(self) -> int:
        """Where the last whole line ends."""
        assert self._descriptor is not None
        end = os.fstat(self._descriptor).st_size
        while end:
            begin = max(0, end - (1 << 16))
            found = os.pread(self._descriptor, end - begin, begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return 0

    def _lines(self) -> Iterator[bytes]:
        """Lines of the file up to where it ends, or to the last whole one where that is known."""
        assert self._descriptor is not None
        with writing(self.path), open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            for line in iter(partial(file.readline, OBJECT_LIMIT + 1), b""):
                yield line
                if self._end and file.tell() >= self._end:
                    return

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            if len(line) > OBJECT_LIMIT:
                raise ValueError(f"larger than {OBJECT_LIMIT >> 20} MiB")
            value = parse_json(line)
            if not isinstance(value, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise DestinationError(
                f"{file_name(self.path)}: line {number} cannot be read ({error}). --force starts over."
            ) from None
        return value


def differences(then: Any, now: Any, name: str = "") -> list[str]:
    """Names of the entries in which two JSON objects differ, `a.b` for one further down."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return [
            found
            for key in sorted({*then, *now})
            for found in differences(then.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if then == now else [name]
