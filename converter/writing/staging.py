"""Files that exist nowhere until all of them are complete, and then all at once.

On Linux they are written without a name (O_TMPFILE), so that even a killed process leaves nothing behind; elsewhere
under a hidden name that is removed on the way out. `commit` gives them their names: one file by a hard link, which
fails rather than overwrite what another writer put there meanwhile; a folder by renaming it into place.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from converter.display import file_name, plain, quoted
from converter.errors import DestinationError
from converter.writing.names import WRITTEN, is_file_name, meant_file

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
_RENAME_EXCHANGE = 2  # linux/fs.h


def check_destination(destination: Path, *, force: bool, inputs: list[Path], also_ours: Collection[str] = ()) -> None:
    """Refuse, before any work, a destination that could not be committed or that would harm something.

    `also_ours`: names of files that `force` may replace, besides those of a conversion.
    """
    with writing(destination):
        _check_destination(destination, force, inputs, also_ours)


def _check_destination(destination: Path, force: bool, inputs: list[Path], also_ours: Collection[str]) -> None:
    if destination.name in ("", "..", *WRITTEN) or "\0" in str(destination):
        raise DestinationError(f"{str(destination)!r} names no file or folder to write; choose another destination")
    parent = destination.parent
    if not parent.is_dir():
        raise DestinationError(f"{parent} is not a folder; create it first or choose another destination")
    if destination.is_symlink():
        raise DestinationError(
            f"{destination} is a symbolic link to {os.readlink(destination)}; name the real path, so that it is clear "
            "what would be replaced"
        )
    for path in inputs:
        if destination.exists() and path.exists() and os.path.samefile(path, destination):
            raise DestinationError(f"{destination} is the source itself; choose another destination")
        if destination.is_dir() and destination.resolve() in path.resolve().parents:
            raise DestinationError(f"{destination} holds the source {path.name}; choose another destination")
    is_file = is_file_name(destination)
    if meant := meant_file(destination):
        raise DestinationError(
            f"{file_name(destination)}: the name reads like a file's, and written are files in {', '.join(WRITTEN)}. "
            f"Did you mean {quoted(meant)}? For a folder choose a name without {plain(destination.suffix)}"
        )
    if not destination.exists():
        return
    if not destination.is_dir() and not destination.is_file():
        raise DestinationError(f"{destination} is neither a file nor a folder; choose another destination")
    if destination.is_dir() == is_file:
        there, wanted = ("folder", "file") if is_file else ("file", "folder")
        raise DestinationError(f"{destination} is a {there}, a {wanted} was to be written; choose another destination")
    if not is_file and not any(destination.iterdir()):
        return
    if not force:
        raise DestinationError(f"{destination} exists; --force replaces it")
    if not is_file:
        foreign = sorted(p.name for p in destination.iterdir() if not _is_ours(p, also_ours))
        if foreign:
            raise DestinationError(
                f"{destination} holds files that no conversion wrote ({', '.join(foreign[:5])}); --force would lose "
                "them. Move them or choose another destination"
            )


def _is_ours(path: Path, also_ours: Collection[str]) -> bool:
    name = path.name
    return path.is_file() and (
        name in {"config.json", "conversion.json", "model.safetensors.index.json", "residue.safetensors", *also_ours}
        or (name.startswith("model") and name.endswith(".safetensors"))
    )


class Staging:
    """A context for writing files beside `destination`: when it is left, they have been committed or are gone.

    If `destination` is one file, files of other names are put beside it, and each gets its name before the main file.
    """

    def __init__(self, destination: Path, *, force: bool) -> None:
        self.destination = destination
        self._force = force
        self._files: dict[str, int] = {}
        self._named: dict[str, Path] = {}
        self._taken: dict[str, Path] = {}

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for path in self._named.values():
            path.unlink(missing_ok=True)
        for descriptor in self._files.values():
            os.close(descriptor)

    def create(self, name: str, size: int) -> int:
        """Descriptor of a new file of `size` bytes. Raises DestinationError where it cannot be made."""
        with writing(self.destination):
            descriptor = self._open(name)
            self._files[name] = descriptor
            os.ftruncate(descriptor, size)
            return descriptor

    def take(self, name: str, source: Path) -> None:
        """Have the folder hold `source` as `name`: by a hard link, or a copy on another file system."""
        self._taken[name] = source.resolve()

    def _open(self, name: str) -> int:
        parent = self.destination.parent
        if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
            try:
                return os.open(parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
        path = parent / f".{self.destination.name}.{name}.{secrets.token_hex(4)}.partial"
        self._named[name] = path
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)

    def require_space(self, size: int) -> None:
        """Raise DestinationError now rather than after minutes of writing."""
        free = shutil.disk_usage(self.destination.parent).free
        if free < size:
            raise DestinationError(
                f"{self.destination.parent} has {free / 1e9:.2f} GB free, {size / 1e9:.2f} GB are needed; free some "
                "space or choose another destination"
            )

    def commit(self) -> None:
        """Put everything on disk and give it its name. Raises DestinationError; then nothing has changed."""
        with writing(self.destination):
            for descriptor in self._files.values():
                os.fsync(descriptor)
            if is_file_name(self.destination):
                self._commit_files()
            else:
                self._commit_folder()
            _sync_folder(self.destination.parent)

    def _commit_files(self) -> None:
        linked: list[tuple[Path, Path]] = []
        try:
            for name in sorted(self._files, key=lambda name: name == self.destination.name):
                final = self.destination.with_name(name) if len(self._files) > 1 else self.destination
                # a link cannot replace, a rename can
                path = final.with_name(f".{name}.{secrets.token_hex(4)}.partial") if self._force else final
                self._link(name, path)
                linked.append((path, final))
            if self._force:
                self._replace(linked)
        except BaseException:
            for path, _ in linked:
                path.unlink(missing_ok=True)
            raise

    def _replace(self, files: list[tuple[Path, Path]]) -> None:
        """Give each file its name; should one fail, those before it get back what they had."""
        before: dict[Path, Path | None] = {}
        try:
            for path, final in files:
                before[final] = None
                if final.exists() and len(files) > 1:
                    old = final.with_name(f".{final.name}.{secrets.token_hex(4)}.partial")
                    os.link(final, old)
                    before[final] = old
                os.replace(path, final)
        except BaseException:
            for final, kept in list(before.items())[:-1]:
                if kept is None:
                    final.unlink()
                else:
                    os.replace(kept, final)
            raise
        finally:
            for kept in before.values():
                if kept is not None:
                    kept.unlink(missing_ok=True)

    def _commit_folder(self) -> None:
        beside = self.destination.with_name(f".{self.destination.name}.{secrets.token_hex(4)}.partial")
        beside.mkdir()
        try:
            for name in self._files:
                self._link(name, beside / name)
            for name, source in self._taken.items():
                _link_or_copy(source, beside / name)
            _sync_folder(beside)
            if self._force and self.destination.exists() and any(self.destination.iterdir()):
                _exchange(beside, self.destination)
            else:
                os.rename(beside, self.destination)  # replaces nothing but an empty folder
        finally:
            if beside.exists():
                shutil.rmtree(beside)

    def _link(self, name: str, path: Path) -> None:
        if name not in self._named:
            # only linkat can follow this link to an unnamed file, and os.link calls it only with a folder descriptor
            folder = os.open("/proc/self/fd", os.O_RDONLY)
            try:
                os.link(str(self._files[name]), path, src_dir_fd=folder, follow_symlinks=True)
            finally:
                os.close(folder)
            return
        try:
            os.link(self._named[name], path)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP}:
                raise
            # a file system without hard links; the check and the rename are two steps there
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.rename(self._named[name], path)


@contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a DestinationError with the next step."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            hint = "something of that name appeared meanwhile; look at it, and run again"
        elif error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            hint = "free some space or choose another destination"
        else:
            hint = "choose another destination"
        raise DestinationError(f"{file_name(destination)} cannot be written: {error.strerror}; {hint}") from error


def write_whole(path: Path, write: Callable[[Path], object], *, force: bool = True) -> None:
    """Have `write` make the file under a temporary name, and rename it to `path` once it is on the disk.

    For single documents. An existing `path` is replaced; without `force` it is an error, even if it appeared meanwhile.
    Raises DestinationError; then nothing has changed.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.touch(exist_ok=False)  # a name that nobody can have planted
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        (os.replace if force else os.link)(partial, path)
    except OSError as error:
        reason = error.strerror or plain(str(error))
        raise DestinationError(f"{file_name(path)} cannot be written: {reason}; choose another place") from error
    finally:
        partial.unlink(missing_ok=True)


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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders, atomically where the system can; afterwards `new` holds what `old` held."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        at_cwd = -100
        if libc.renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), _RENAME_EXCHANGE) == 0:
            return
        if ctypes.get_errno() not in {errno.ENOSYS, errno.EINVAL}:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    aside = old.with_name(f".{old.name}.{secrets.token_hex(4)}.replaced")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
    os.rename(aside, new)
