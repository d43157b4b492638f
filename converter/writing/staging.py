"""Files that exist nowhere until all of them are complete, and then all at once.

On Linux they are written without a name (O_TMPFILE), so that even a killed process leaves nothing behind; elsewhere
under a hidden name, which goes on the way out or, after a kill, with the next run. `commit` gives them their names.
Each step of it leaves what was there before, or what is there afterwards:

    one file            a hard link, which fails rather than overwrite; with `force` a rename, which replaces
    a file and others   the others wait, each under its `waiting_name`; the file gets its name, and from then on belongs
                        to those that wait rather than to those that were there; then these get theirs
    a folder            built under a hidden name and renamed, or exchanged with the one that is there
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

from converter.errors import DestinationError
from converter.writing.commit import (
    Parent,
    discard,
    exchange,
    late,
    mark_alive,
    remove_leftovers,
    rename_new,
    signals_held,
    sync_folder,
)
from converter.writing.destination import LEDGER, partial_name, replaceable, writing
from converter.writing.names import is_file_name

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}


class Staging:
    """A context for writing files beside `destination`: when it is left, they have been committed or are gone.

    If `destination` is one file, files of other names belong beside it.
    """

    def __init__(
        self,
        destination: Path,
        *,
        force: bool,
        is_folder: bool | None = None,
        replaces: Collection[str] = (),
        check: Callable[[], object] = lambda: None,
    ) -> None:
        """`is_folder`: by default what the name says; `replaces`: as for `check_destination`.

        `check` is called before anything gets its name, and raises if what arrived meanwhile would be lost.
        """
        self.destination = destination
        self._is_folder = not is_file_name(destination) if is_folder is None else is_folder
        self._force = force
        self._replaces = replaces
        self._check = check
        self._descriptors: list[int] = []
        self._files: dict[str, int] = {}
        self._named: dict[str, Path] = {}
        self._taken: dict[str, Path] = {}
        self._built: Path | None = None

    def __enter__(self) -> Staging:
        remove_leftovers(self.destination)
        with writing(self.destination), Parent(self.destination.parent):
            pass  # who locks it for good is found out now rather than after minutes of writing
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with signals_held():
            # first: some file systems (NFS, FUSE) keep open files, and so their folder, under names of their own
            for descriptor in self._descriptors:
                with suppress(OSError):  # fsync said whether the content arrived
                    os.close(descriptor)
            for path in self._named.values():
                with suppress(OSError):  # the next run removes what cannot be removed now
                    path.unlink(missing_ok=True)
            if self._built is not None:
                shutil.rmtree(self._built, ignore_errors=True)

    def create(self, name: str, size: int) -> int:
        """Descriptor of a new file of `size` bytes. Raises DestinationError where it cannot be made."""
        with writing(self.destination):
            if not self._create_unnamed(name):
                self._create_named(name)
            os.ftruncate(self._files[name], size)
        return self._files[name]

    def _create_named(self, name: str) -> None:
        path = self._partial()
        with Parent(path.parent), signals_held():
            self._files[name] = self._opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
            self._named[name] = path

    def _create_unnamed(self, name: str) -> bool:
        if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
            return False
        try:
            with signals_held():
                self._files[name] = self._opened(self.destination.parent, os.O_TMPFILE | os.O_RDWR)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            return False
        return True

    def _opened(self, path: Path, flags: int) -> int:
        """Descriptor of a file or folder that is marked as being worked on until this is left."""
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        self._descriptors.append(descriptor)
        mark_alive(descriptor)
        return descriptor

    @property
    def names(self) -> tuple[str, ...]:
        """Of all files so far, in order."""
        return tuple(sorted((*self._files, *self._taken)))

    def take(self, name: str, source: Path) -> None:
        """Have the folder hold `source` as `name`: by a hard link, or a copy on another file system."""
        self._taken[name] = source.resolve()

    def _partial(self) -> Path:
        return partial_name(self.destination, secrets.token_hex(4))

    def require_space(self, size: int) -> None:
        """Raise DestinationError now rather than after minutes of writing."""
        with writing(self.destination):
            free = shutil.disk_usage(self.destination.parent).free
        if free < size:
            raise DestinationError(
                f"{self.destination.parent} has {free / 1e9:.2f} GB free, {size / 1e9:.2f} GB are needed; free some "
                "space or choose another destination"
            )

    def commit(self, on_done: Callable[[], object] = lambda: None) -> None:
        """Put everything on disk and give it its name. Raises DestinationError; then nothing has changed.

        `on_done` is called once all of it has its name, before anything else can fail or a signal can act: what cannot
        be done afterwards is a ConverterWarning.
        """
        with writing(self.destination):
            for descriptor in self._files.values():
                os.fsync(descriptor)
            if self._is_folder:
                self._build()
            with Parent(self.destination.parent) as parent, signals_held():
                self._check()
                (self._commit_folder if self._is_folder else self._commit_files)(parent, on_done)

    def _commit_files(self, parent: Parent, on_done: Callable[[], object]) -> None:
        others = [self.destination.with_name(name) for name in self._files if name != self.destination.name]
        try:
            for path in others:
                waiting_name(path).unlink(missing_ok=True)
                self._name(path.name, waiting_name(path), replace=False)
            if others:
                parent.sync()
            self._name(self.destination.name, self.destination, replace=self._force)
        except BaseException:
            for path in others:
                with suppress(OSError):
                    waiting_name(path).unlink(missing_ok=True)
            raise
        on_done()
        with self._outlasting():
            parent.sync()
        for path in others:
            with late(f"{path} is still {waiting_name(path).name}, until the next run"):
                (os.replace if self._force else rename_new)(waiting_name(path), path)
        if others:
            with self._outlasting():
                parent.sync()

    def _outlasting(self) -> AbstractContextManager[None]:
        return late(f"{self.destination} is written, but may not outlast a power cut now")

    def _build(self) -> None:
        """The folder under a hidden name. Its record comes first, so that it is known what else is of it."""
        path = self._partial()
        with Parent(path.parent), signals_held():
            path.mkdir()
            self._built = path
            descriptor = self._opened(path, os.O_RDONLY | os.O_DIRECTORY)
        for name in sorted(self._files, key=lambda name: name != LEDGER):
            self._name(name, path / name, replace=False)
        for name, source in self._taken.items():
            _link_or_copy(source, path / name)
        sync_folder(descriptor)

    def _commit_folder(self, parent: Parent, on_done: Callable[[], object]) -> None:
        assert self._built is not None
        new = self._built
        old: Path | None = None
        if self._force and self.destination.exists() and any(self.destination.iterdir()):
            names = replaceable(self.destination, self._replaces)
            old = exchange(new, self.destination)
        else:
            os.rename(new, self.destination)  # replaces nothing but an empty folder
        self._built = None
        on_done()
        with self._outlasting():
            parent.sync()
        if old is not None:
            with late(f"what {self.destination} was before is still there, as {old.name}, until the next run"):
                discard(old, self.destination, names)

    def _name(self, name: str, path: Path, *, replace: bool) -> None:
        if name not in self._named and not replace:
            self._link(name, path)
            return
        if name not in self._named:
            partial = self._partial()
            self._link(name, partial)
            self._named[name] = partial
        (os.replace if replace else rename_new)(self._named[name], path)
        del self._named[name]

    def _link(self, name: str, path: Path) -> None:
        # only linkat can follow this link to an unnamed file, and os.link calls it only with a folder descriptor
        folder = os.open("/proc/self/fd", os.O_RDONLY)
        try:
            os.link(str(self._files[name]), path, src_dir_fd=folder, follow_symlinks=True)
        finally:
            with suppress(OSError):  # the file has its name, or has not
                os.close(folder)


def waiting_name(path: Path) -> Path:
    """Where a file lies that is complete, and gets its name once the file beside which it belongs has its own."""
    return path.with_name(f".{path.name}.partial")


def write_whole(
    path: Path, content: bytes, *, force: bool = True, on_done: Callable[[], object] = lambda: None
) -> None:
    """Write a single document. An existing `path` is replaced; without `force` it is an error, even if it appeared
    meanwhile.

    Raises DestinationError; then nothing has changed. `on_done`: as for `Staging.commit`.
    """
    with Staging(path, force=force, is_folder=False) as staging, writing(path):
        write_at(staging.create(path.name, len(content)), content, 0)
        staging.commit(on_done)


def write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """All of it, however little the system takes at once."""
    view = memoryview(data)
    while len(view):
        written = os.pwrite(descriptor, view, position)
        view = view[written:]
        position += written


def _link_or_copy(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError as error:
        # across file systems, without hard links, beyond their maximum number, or for a file of another user
        if error.errno not in {errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK, errno.EPERM, errno.EACCES}:
            raise
        shutil.copyfile(source, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
