"""A signature's bundle read from its file, before anybody trusts it: how it was signed, and which files it names.

Sigstore's bundle with the statement that model-signing writes. What is read here is what the file says: whether the
signature holds is for signature.py. Nothing but Python is needed.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from converter.checkpoint.strict_json import OBJECT_LIMIT, parse_json, read_limited
from converter.display import file_name, plain, quoted
from converter.errors import CaptureError, HubError
from converter.hub.hashes import hash_file
from converter.hub.resolve import SIGNATURE

GIT = (".git", ".gitattributes", ".github", ".gitignore")  # git's own, which model-signing leaves out
_STATEMENT, _PREDICATE = "https://in-toto.io/Statement/v1", "https://model_signing/signature/v1.0"
_MOST_FILES = 10_000
_MOST_CERTIFICATES = 10
_NOT_SIGNED = "not signed"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle says, which is to be believed only if its signature holds.

    `method`: "key", "certificate" or "sigstore"; `key`: a SHA-256 of the public key's PEM; `certificates` in DER, the
    signer's first; `name`: what the folder was called; `files`: the SHA-256 of each.
    """

    path: Path
    content: bytes = field(repr=False)
    method: str
    key: str | None
    certificates: tuple[bytes, ...] = field(repr=False)
    name: str
    files: Mapping[str, str] = field(repr=False)

    def differences(self, hashes: Mapping[str, str]) -> list[str]:
        """A line for each file that is not as signed, of a folder with these SHA-256 of its files."""
        signed = self.files
        lines = [f"{plain(name)}: signed, and not here" for name in sorted(signed.keys() - hashes.keys())]
        lines += [f"{plain(name)}: {_NOT_SIGNED}" for name in sorted(hashes.keys() - signed.keys())]
        changed = sorted(name for name in hashes.keys() & signed.keys() if hashes[name] != signed[name])
        lines += [f"{plain(name)}: other content than signed" for name in changed]
        telling = [name for name in hashes if name == "conversion.json" or name.endswith(".safetensors")]
        if telling and all(signed.get(name) not in (None, hashes[name]) for name in telling):
            lines.insert(0, f"{SIGNATURE}: is of another model, which was called {quoted(self.name)}")
        return lines


class _LeavesOut(ValueError):
    """A signature that may hold, and is not of the whole folder."""


def bundle_beside(folder: Path) -> Bundle | None:
    """The bundle in a folder, if there is one. CaptureError if it cannot be read as one."""
    path = folder / SIGNATURE
    return read_bundle(path) if os.path.lexists(path) else None


def read_bundle(path: Path) -> Bundle:
    """A bundle by model-signing, over whole files by SHA-256. CaptureError, in one sentence, for anything else."""
    try:
        content = read_limited(path, OBJECT_LIMIT)
    except OSError as error:
        raise CaptureError(f"{file_name(path)}: cannot be read: {error.strerror}. Check the path.") from None
    except ValueError as error:
        raise CaptureError(f"{file_name(path)}: is no signature: it is {error}.") from None
    try:
        document = parse_json(content)
        material = _at(document, "verificationMaterial", dict)
        method, key, certificates = _signed_with(material)
        envelope = _at(document, "dsseEnvelope", dict)
        if len(_at(envelope, "signatures", list)) != 1:
            raise ValueError("it does not hold one signature")
        statement = parse_json(_decoded(_at(envelope, "payload", str)))
        name, files = _statement(statement)
    except _LeavesOut as error:
        raise CaptureError(f"{file_name(path)}: {error}. Whoever signed it has to sign all.") from None
    except ValueError as error:
        raise CaptureError(
            f"{file_name(path)}: is not a signature that can be read: {error}. It is damaged, or was not made by "
            "model-signing; get it again, or sign again."
        ) from None
    return Bundle(path, content, method, key, certificates, name, files)


def _signed_with(material: dict[str, Any]) -> tuple[str, str | None, tuple[bytes, ...]]:
    """The method, the hash of the key, and the certificates. Only Sigstore's bundles have entries of its log."""
    logged = _at(material, "tlogEntries", list) if "tlogEntries" in material else []
    kinds = [kind for kind in ("publicKey", "certificate", "x509CertificateChain") if material.get(kind) is not None]
    if len(kinds) != 1 or (kinds == ["publicKey"] and logged):
        raise ValueError("it does not say in one way with what it was signed")
    if kinds == ["publicKey"]:
        key = _at(material, "publicKey", dict)
        if key.get("hint") is None:
            raise ValueError("it does not say which key it is by, as model-signing before 1.1 did not")
        return "key", _sha256(_at(key, "hint", str)), ()
    if kinds == ["certificate"]:
        chain = [_at(material, "certificate", dict)]
    else:
        chain = _at(_at(material, "x509CertificateChain", dict), "certificates", list)
    if not 0 < len(chain) <= _MOST_CERTIFICATES:
        raise ValueError(f"it has {len(chain)} certificates, expected 1 to {_MOST_CERTIFICATES}")
    is_public = bool(logged) or kinds == ["certificate"]
    certificates = tuple(_decoded(_at(certificate, "rawBytes", str)) for certificate in chain)
    return "sigstore" if is_public else "certificate", None, certificates


def _statement(statement: Any) -> tuple[str, dict[str, str]]:
    """The folder's name, and the SHA-256 of each file by its name."""
    stated = _at(statement, "_type", str), _at(statement, "predicateType", str)
    if stated != (_STATEMENT, _PREDICATE):
        raise ValueError(f"it states {plain(stated[1])}, expected {_PREDICATE}")
    predicate = _at(statement, "predicate", dict)
    how = _at(predicate, "serialization", dict)
    if (how.get("method"), how.get("hash_type")) != ("files", "sha256"):
        raise ValueError("it is not over whole files by SHA-256")
    ignored = {
        str(PurePosixPath(str(path))) for path in (_at(how, "ignore_paths", list) if "ignore_paths" in how else [])
    }
    if left_out := sorted(ignored - {SIGNATURE, *GIT}):
        raise _LeavesOut(
            f"it leaves out {plain(', '.join(left_out))}, which is not accepted: every file is to be signed"
        )
    resources = _at(predicate, "resources", list)
    if not 0 < len(resources) <= _MOST_FILES:
        raise ValueError(f"it names {len(resources)} files, expected 1 to {_MOST_FILES}")
    files: dict[str, str] = {}
    for resource in resources:
        name = _relative(_at(resource, "name", str))
        if _at(resource, "algorithm", str) != "sha256" or name in files:
            raise ValueError(f"it has no one SHA-256 of {quoted(name)}")
        files[name] = _sha256(_at(resource, "digest", str))
    subjects = _at(statement, "subject", list)
    return _at(subjects[0], "name", str) if subjects else "", files


def _at(value: Any, key: str, kind: type) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise ValueError(f"it has no {quoted(key)} as it should be")
    return found


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError("a part of it is not base64") from None


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"{quoted(text)} is not a SHA-256")
    return text


def _relative(name: str) -> str:
    """The name of a file in the folder. ValueError for what leads out of it, or has another spelling."""
    path = PurePosixPath(name)
    if not name.isprintable() or str(path) != name or path.is_absolute() or ".." in path.parts or name == ".":
        raise ValueError(f"{quoted(name)} is not the name of a file in a folder")
    return name


def hash_folder(
    folder: Path, on_bytes: Callable[[int], object] = lambda count: None
) -> tuple[dict[str, str], list[str]]:
    """The SHA-256 of all files that a signature has to name, and a line for each thing that none can be of.

    That is all but the bundle and git's own. Raises CaptureError for what cannot be read.
    """
    hashes, problems = {}, []
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if not path.is_file():
            problems.append(f"{plain(name)}: is neither a file nor a folder, and {_NOT_SIGNED}")
        elif path.is_symlink() and not is_inside(path.resolve(), folder.resolve()):
            problems.append(f"{plain(name)}: linked to a file elsewhere, and {_NOT_SIGNED}")
        else:
            try:
                hashes[name] = hash_file(path, on_bytes).sha256
            except HubError as error:
                raise CaptureError(str(error)) from None
    return hashes, problems


def _walk(folder: Path) -> Iterator[Path]:
    """Everything in a folder but folders that are none of a link, the bundle and git's own. CaptureError.

    A stranger's folders may be nested deeper than Python lets functions call themselves, as its os.walk does.
    """
    folders = [folder]
    while folders:
        above = folders.pop()
        try:
            with os.scandir(above) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            raise CaptureError(f"{file_name(above)}: cannot be read: {error.strerror}. Check the path.") from None
        for entry in entries:
            if above == folder and entry.name in (SIGNATURE, *GIT):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            else:
                yield Path(entry.path)


def is_inside(target: Path, folder: Path) -> bool:
    """Whether a link's target is in the folder, or in huggingface_hub's cache, whose snapshots are links."""
    in_cache = target.parent.name == "blobs" and (target.parent.parent / "snapshots").is_dir()
    return in_cache or folder in target.parents
