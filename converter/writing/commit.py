"""The steps at which names are given: in a folder that is held meanwhile, with signals held back, one after another.

Who dies on the way leaves at most files and folders under hidden names, whose locks die with it: `remove_leftovers`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import signal
import stat
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from converter.display import file_name, listed
from converter.errors import ConverterWarning, DestinationError
from converter.writing.destination import LEDGER, recorded
from converter.writing.shards import INDEX_NAME

_PATIENCE = 60.0  # seconds; names are given in milliseconds, unless the disk is busy
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.ENOSYS}
_NOREPLACE, _EXCHANGE = 1, 2  # linux/fs.h
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def late(what: str) -> Iterator[None]:
    """For what is done once the result has its name: a failure is a warning, since it is no longer undone."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what}: {error.strerror or error}", ConverterWarning, stacklevel=3)


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals that end a program wait until this is left; one that came then acts as ever.

    Without effect in other threads than the main one, in which Python acts on signals.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    with ExitStack() as handlers:
        handlers.callback(_deliver, came)  # the last one called, when all are as before
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN):
                    handlers.callback(signal.signal, number, handler)
                    signal.signal(number, note)
        yield


def _deliver(came: list[int]) -> None:
    if came:
        signal.raise_signal(came[0])


class Parent:
    """The folder in which names are given, held against other runs that give names in it.

    It is not held where the file system has no locks or the folder may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Parent:
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            return self
        try:
            self._wait(self._descriptor)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a process that was forked meanwhile would hold it, too
            with suppress(OSError):
                os.close(self._descriptor)

    def _wait(self, descriptor: int) -> None:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise DestinationError(
                        f"{file_name(self.path)} is locked by another process for {_PATIENCE:.0f} seconds now, this "
                        "one's own `flock`, perhaps; wait until that is done, or choose another destination"
                    ) from None
                time.sleep(0.01)
            except OSError as error:
                if error.errno in NO_LOCKS:
                    return None
                raise

    def sync(self) -> None:
        """Have the names that were given outlast a power cut."""
        os.sync() if self._descriptor is None else sync_folder(self._descriptor)


def sync_folder(descriptor: int) -> None:
    """Flush a folder, where the file system can: some of other systems' and of networks cannot."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise


def mark_alive(descriptor: int) -> None:
    """Say, for as long as this file or folder is open, that whoever made it is at work on it."""
    with suppress(OSError):  # without locks nobody takes it for abandoned, either
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Whether `path` is a file or folder that a dead process left; while this lasts nobody else can find it so."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        mode = os.fstat(descriptor).st_mode
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_abandoned = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    except OSError:  # somebody is at work on it, or there are no locks, so that it cannot be known
        is_abandoned = False
    try:
        yield is_abandoned
    finally:
        with suppress(OSError):
            os.close(descriptor)


def remove_leftovers(destination: Path) -> None:
    """Remove what dead processes left that were to write `destination`. What cannot be removed stays.

    A folder that was put aside, and in whose place there is none, is put back.
    """
    name = re.compile(rf"\.{re.escape(destination.name)}\.[0-9a-f]{{8}}\.(partial|aside)")
    with suppress(OSError):
        left = sorted(entry.path for entry in os.scandir(destination.parent) if name.fullmatch(entry.name))
        if not left:
            return
        with Parent(destination.parent), signals_held():
            for path in map(Path, left):
                with abandoned(path) as is_abandoned, suppress(OSError):
                    if is_abandoned and not path.is_dir():
                        path.unlink()
                    elif is_abandoned and not (path.suffix == ".aside" and _put_back(path, destination)):
                        discard(path, destination, recorded(path))


def _put_back(folder: Path, destination: Path) -> bool:
    try:
        os.rename(folder, destination)  # replaces nothing but an empty folder
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
        return False
    return True


def discard(folder: Path, destination: Path, names: Collection[str]) -> None:
    """Remove a folder and its files `names`. What else is in it, nobody knows why, is moved to `destination`.

    Its record goes last: until then it is known what is to be removed. OSError if it stays.
    """
    there = {*os.listdir(folder)}
    record = [name for name in (INDEX_NAME, LEDGER) if name in there & {*names}]
    for name in there & {*names} - {*record}:
        (folder / name).unlink()
    kept = sorted({*os.listdir(folder)} - {*record})
    for name in kept:
        rename_new(folder / name, destination / name)
    for name in record:
        (folder / name).unlink()
    folder.rmdir()
    if kept:
        said = f"{file_name(destination)}: kept what arrived there meanwhile: {listed(kept)}"
        warnings.warn(said, ConverterWarning, stacklevel=3)


def rename_new(path: Path, final: Path) -> None:
    """Rename without replacing: FileExistsError where `final` exists."""
    if not _rename(path, final, _NOREPLACE):
        # two steps here
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
        os.rename(path, final)


def exchange(new: Path, old: Path) -> Path:
    """Give a folder, under a `partial_name`, the name of another one; where the other is now.

    Where the system cannot do it in one step, the other is put aside first, and only as long as nothing has taken its
    place: `remove_leftovers` puts it back.
    """
    if _rename(new, old, _EXCHANGE):
        return new
    aside = new.with_suffix(".aside")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
    try:
        os.rename(aside, new)
    except OSError:
        return aside
    return new


def _rename(path: Path, final: Path, flags: int) -> bool:
    """renameat2(2); whether the system has it."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd = -100
    if libc.renameat2(at_cwd, os.fsencode(path), at_cwd, os.fsencode(final), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.ENOSYS, errno.EINVAL}:
        return False
    raise OSError(number, os.strerror(number), str(path))
