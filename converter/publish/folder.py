"""What may be published: a folder with a converted model, whose weights are those of its certificate."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from converter.checkpoint import open_checkpoint
from converter.display import counted, file_name, plain
from converter.errors import HubError
from converter.hub import MODEL_FILES, Hashes, hash_file

CONFIG = "config.json"
CARD, CERTIFICATE, REPORT = "README.md", "parity.json", "report.html"
WRITTEN = (*MODEL_FILES, REPORT)  # what this package writes, and deletes from a repository that has it too much
KEPT = (CARD, "LICENSE", "NOTICE")  # may be uploaded, and stay where the folder has none
UNVERIFIED = "unverified"  # the word that the card of weights without a certificate must have
_SMALL = 10 << 20  # bytes up to which a file that is no weights is sent with the commit, from memory


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to publish, and what it held when it was checked; `content` is kept of small ones."""

    name: str
    path: Path
    hashes: Hashes
    content: bytes | None = field(default=None, repr=False)


def read_folder(
    folder: Path, *, unverified: bool = False, on_bytes: Callable[[int], object] = lambda count: None
) -> list[LocalFile]:
    """Every file of a folder that may be published, hashed. Raises HubError listing what may not, or what is missing.

    The weights' tensors are hashed again and compared with the certificate, unless `unverified`.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise HubError(
            f"{file_name(folder)}: is no folder that can be read ({error.strerror}). `convert --dst FOLDER` makes one."
        ) from None
    foreign = [path.name for path in paths if not path.is_file() or not _is_allowed(path.name)]
    if foreign:
        raise HubError(
            f"{file_name(folder)}: holds what is not published: {', '.join(map(plain, foreign[:10]))}"
            f"{', ...' if len(foreign) > 10 else ''}. Move it elsewhere; expected only {', '.join((*KEPT, *WRITTEN))}."
        )
    names = {path.name for path in paths}
    if CONFIG not in names:
        raise HubError(f"{file_name(folder)}: has no {CONFIG}. `convert --dst FOLDER` writes it.")
    with open_checkpoint(folder) as checkpoint:
        used = {path.name for path in checkpoint.files}
    if unused := sorted(name for name in names if name.endswith(".safetensors") and name not in used):
        raise HubError(
            f"{file_name(folder)}: {', '.join(map(plain, unused))} is not of this model, whose weights are in "
            f"{', '.join(map(plain, sorted(used)))}. Move it elsewhere."
        )
    if unverified:
        _check_unverified(folder, names)
    else:
        _check_certificate(folder, names, on_bytes)
    return [_read_file(path, on_bytes) for path in paths]


def _is_allowed(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in (*KEPT, *WRITTEN))


def _check_certificate(folder: Path, there: set[str], on_bytes: Callable[[int], object]) -> None:
    if CERTIFICATE not in there:
        raise HubError(
            f"{file_name(folder)}: has no {CERTIFICATE}, so nothing shows that these weights compute what the official "
            f"code does. Write it: converter certify {shlex.quote(str(folder))} --reference CAPTURE"
        )
    from converter.parity.certificate import compare_tensors

    _, changed, missing, added = compare_tensors(folder, folder / CERTIFICATE, on_bytes)
    problems = [
        f"{counted(len(names), 'tensor')} {word} ({', '.join(map(plain, names[:3]))}{', ...' if names[3:] else ''})"
        for word, names in (("changed", changed), ("missing", missing), ("added", added))
        if names
    ]
    if problems:
        raise HubError(
            f"{file_name(folder)}: {CERTIFICATE} is of other weights: {'; '.join(problems)}. Certify these: "
            f"converter certify {shlex.quote(str(folder))} --reference CAPTURE --force"
        )


def _check_unverified(folder: Path, names: set[str]) -> None:
    if CERTIFICATE in names:
        raise HubError(
            f"{file_name(folder)}: has {CERTIFICATE}, which says that it is verified. Leave out --unverified, or move "
            "the certificate elsewhere."
        )
    card = (folder / CARD).read_text(encoding="utf-8", errors="replace") if CARD in names else ""
    if UNVERIFIED not in card.lower():
        found = "does not say so" if card else "is not there"
        raise HubError(
            f"{file_name(folder)}: is to be published without a certificate, but {CARD} {found}. Write in it that "
            f"these weights are {UNVERIFIED}."
        )


def _read_file(path: Path, on_bytes: Callable[[int], object]) -> LocalFile:
    hashes = hash_file(path, on_bytes)
    content = None
    if hashes.size <= _SMALL and path.suffix != ".safetensors":
        content = path.read_bytes()
    return LocalFile(path.name, path, hashes, content)


def is_written(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in WRITTEN)


def weights_size(folder: Path) -> int:
    """Bytes that `publish` hashes: weights twice, as tensors and as files, others once."""
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return sum(path.stat().st_size * (1 + (path.suffix == ".safetensors")) for path in files)
