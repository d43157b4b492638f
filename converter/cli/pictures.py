"""Which pictures a command is given: files, folders, patterns, lists of these, and addresses."""

from __future__ import annotations

import glob
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from converter.checkpoint.strict_json import read_limited
from converter.display import counted, plain
from converter.errors import ModelError
from converter.hub.web import check_address, fetch, is_address, shown

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
SUFFIXES = (*JPEG, ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k")
FETCH_LIMIT = 100 << 20  # bytes of a picture from an address
LIST_LIMIT = 16 << 20  # bytes of a list
_MOST_PROBLEMS = 1000  # that are told


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture file, or an address of one; `name`: as the user gave it, or as it was found in a folder."""

    name: str

    @property
    def is_remote(self) -> bool:
        """Whether it has to be fetched."""
        return is_address(self.name)

    @property
    def path(self) -> PurePosixPath | Path:
        """Where it lies, here or at its host."""
        return PurePosixPath(unquote(urlsplit(self.name).path)) if self.is_remote else Path(self.name)

    @property
    def is_jpeg(self) -> bool:
        """Whether its name says that it is one."""
        return self.path.suffix.lower() in JPEG

    def stamp(self) -> list[int] | None:
        """Size and time of change, which differ once the file is another; None for what is not here."""
        if self.is_remote:
            return None
        try:
            status = os.stat(self.name)
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """A path to read it from: the file, or a file without a name that holds what was fetched. ModelError."""
        if not self.is_remote:
            yield Path(self.name)
            return
        content, where = fetch(self.name, FETCH_LIMIT), shown(self.name)
        try:
            with tempfile.TemporaryFile() as file:
                file.write(content)
                file.flush()
                path = Path(f"/dev/fd/{file.fileno()}")
                try:
                    yield path
                except ModelError as error:
                    raise ModelError(str(error).replace(str(path), where)) from None
        except OSError as error:
            raise ModelError(
                f"{where}: cannot be kept to be read: {error.strerror}. Set TMPDIR to another folder."
            ) from None


def find_pictures(arguments: Sequence[str], *, recursive: bool = False, without: Path | None = None) -> list[Picture]:
    """The pictures that the arguments name, in their order, each once, by the name that came first.

    ModelError with all that cannot be found.

    An argument is a file; a folder, of which the files with the names of pictures are taken, sorted, with `recursive`
    those of folders in it, too, but for the folder `without`; a pattern like `photos/*.jpg`; `@list.txt`, a file with
    such an argument on each line; or an http(s) address. What is there is never taken for a pattern or a list.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for argument in arguments:
        try:
            entries = _listed(argument)
        except ModelError as error:
            problems.append(str(error))
            continue
        for entry in entries:
            try:
                for name in _named(entry, recursive, without):
                    found.setdefault(_place(name), name)
            except ModelError as error:
                problems.append(str(error))
                if len(problems) >= _MOST_PROBLEMS:
                    break
    if len(problems) == 1:
        raise ModelError(problems[0])
    if problems:
        raise ModelError(f"{counted(len(problems), 'argument')} cannot be used; nothing was done:", problems)
    return [Picture(name) for name in found.values()]


def _place(name: str) -> str:
    """What all spellings of a path have in common (`a.jpg`, `./a.jpg`); two links to a file stay two."""
    folder, base = os.path.split(name)
    return name if is_address(name) else os.path.join(os.path.realpath(folder), base)


def _listed(argument: str) -> list[str]:
    """The argument, or what stands in it if it is a list."""
    is_list = argument.startswith("@") and not os.path.lexists(argument)
    return _lines(argument[1:]) if is_list else [argument]


def _lines(name: str) -> list[str]:
    """What a list holds, `-` for stdin: no empty lines, and none that begin with `#`."""
    where = "stdin" if name == "-" else plain(name, 1024)
    try:
        content = sys.stdin.buffer.read(LIST_LIMIT + 1) if name == "-" else read_limited(Path(name), LIST_LIMIT)
        if len(content) > LIST_LIMIT:
            raise ValueError(f"larger than {LIST_LIMIT >> 20} MiB")
        if b"\0" in content:
            raise ValueError("it is not text")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{where}: cannot be read as a list of pictures: {reason}.") from None
    lines = (os.fsdecode(line.rstrip(b"\r")) for line in content.split(b"\n"))
    wanted = [line for line in lines if line.strip() and not line.startswith("#")]
    if not wanted:
        raise ModelError(f"{where}: this list names no picture. Put a path, a pattern or an address on each line.")
    return wanted


def _named(argument: str, recursive: bool, without: Path | None) -> list[str]:
    """Names of the pictures of one argument. ModelError where there are none."""
    if is_address(argument):
        check_address(argument)
        return [argument]
    try:
        mode = os.stat(argument).st_mode
    except (OSError, ValueError) as error:
        if glob.has_magic(argument) and isinstance(error, OSError):
            return _matching(argument)
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{plain(argument, 1024)}: can't be read: {reason}.") from None
    if stat.S_ISDIR(mode):
        return _in_folder(argument, recursive, without)
    _check_file(argument, mode)
    return [argument]


def _check_file(name: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ModelError(f"{plain(name, 1024)}: is not a file. Give a picture.")
    if not os.access(name, os.R_OK):
        raise ModelError(f"{plain(name, 1024)}: can't be read: Permission denied.")


def _matching(pattern: str) -> list[str]:
    found = sorted({name for name in _globbed(pattern) if os.path.isfile(name)})
    if not found:
        raise ModelError(f"{plain(pattern, 1024)}: no file matches this pattern. Check the path.")
    return found


def _globbed(pattern: str) -> Iterator[str]:
    """As `glob.iglob`, but `**` goes into no folder by a link, which may lead round in circles without an end."""
    deep = re.search(r"(?<![^/])\*\*(?:/+\*\*)*(?:/+|$)", pattern)
    if deep is None:
        yield from glob.iglob(pattern)
        return
    before, after = pattern[: deep.start()], pattern[deep.end() :] or "*"
    for top in glob.iglob(before) if before else [""]:
        for place, folders, _ in os.walk(top or "."):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = glob.escape(place if top else place[2:])
            yield from _globbed(os.path.join(inside, after))


def _in_folder(folder: str, recursive: bool, without: Path | None) -> list[str]:
    def refuse(error: OSError) -> None:
        raise ModelError(f"{plain(str(error.filename), 1024)}: can't be read: {error.strerror}.")

    found: list[str] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and not _is_same(os.path.join(place, name), without)
        )
        pictures = (name for name in sorted(names) if not name.startswith(".") and name.lower().endswith(SUFFIXES))
        found += [name for name in (os.path.join(place, picture) for picture in pictures) if os.path.isfile(name)]
    if not found:
        hint = "Give another folder" if recursive else "--recursive looks in the folders in it, too"
        raise ModelError(f"{plain(folder, 1024)}: this folder holds no pictures ({', '.join(SUFFIXES)}). {hint}.")
    return found


def _is_same(path: str, other: Path | None) -> bool:
    return other is not None and other.exists() and os.path.samefile(path, other)
