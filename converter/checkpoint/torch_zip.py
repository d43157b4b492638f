"""torch.save's layout since torch 1.6: a zip archive with one pickle, and one member for each storage.

Source: torch/serialization.py and caffe2/serialize/inline_container.cc of torch 2.13.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

from converter.checkpoint.index import Checkpoint
from converter.checkpoint.opcodes import BYTE_LIMIT, Persistent, interpret
from converter.checkpoint.roots import Knows, take_root
from converter.checkpoint.source import SourceFile
from converter.checkpoint.storage import Storage
from converter.checkpoint.tensors import (
    Malformed,
    StorageReference,
    first_references,
    refuse_set_values,
    storage_reference,
)
from converter.checkpoint.zip_archive import ZipArchive, folded
from converter.display import counted, file_name, quoted
from converter.errors import NotACheckpointError, UnsupportedCheckpointError, damaged

NOTES = "conversion.json"  # what a conversion says of itself; torch never asks for it
_NOTES_LIMIT = 16 * 1024 * 1024
_PICKLE = "data.pkl"
_BYTE_ORDER = "byteorder"
_VERSIONS = (".data/version", "version")  # the first one that is there counts
_NEWEST_VERSION = 10
_RECORDS = (_PICKLE, _BYTE_ORDER, *_VERSIONS)


def open_torch_zip(source: SourceFile, root: str | None, knows: Knows | None) -> Checkpoint:
    """Index the zip archive `source`. Raises CheckpointError."""
    label = file_name(source.path)
    archive = ZipArchive(source)
    for name, member in archive.members.items():
        if name not in _RECORDS and folded(name) in _RECORDS:
            raise damaged(label, f"member {quoted(member.name)} is not in small letters, as torch writes it")
    if _PICKLE not in archive.members:
        raise NotACheckpointError(
            f"{label}: is a zip archive without {_PICKLE}, so torch.save did not write it. Give the checkpoint itself."
        )
    found = interpret(io.BytesIO(archive.read(_PICKLE, BYTE_LIMIT)), f"{label}: {archive.label(_PICKLE)}")
    size = archive.members[_PICKLE].size
    if found.end != size:
        raise damaged(
            f"{label}: {archive.label(_PICKLE)}", f"{counted(size - found.end, 'byte')} after the end of the pickle"
        )
    _check_version(archive)
    refuse_set_values(found.calls, label)
    storages = _Storages(archive, _is_big_endian(archive), first_references(found.references))
    return take_root(source, "torch-zip", found.value, root, storages.find, found.globals, _notes(archive), knows)


def _notes(archive: ZipArchive) -> dict[str, str]:
    """What `convert` wrote beside the tensors, as it stands in the metadata of safetensors."""
    if NOTES not in archive.members:
        return {}
    return {"conversion": archive.read(NOTES, _NOTES_LIMIT).decode(errors="replace")}


def _check_version(archive: ZipArchive) -> None:
    """Refuse a file that torch takes for one of another version. Limits: caffe2/serialize/versions.h of torch 2.13."""
    label = file_name(archive.source.path)
    name = next((name for name in _VERSIONS if name in archive.members), None)
    if name is None:
        raise damaged(label, f"has no member {_VERSIONS[-1]!r}")
    stated = archive.read(name, limit=64)
    if not re.fullmatch(rb"[0-9]{1,9}\s*", stated) or int(stated) < 1:
        raise damaged(label, f"{archive.label(name)} is {stated!r}, expected a number")
    if int(stated) > _NEWEST_VERSION:
        raise UnsupportedCheckpointError(
            f"{label}: is written in version {int(stated)} of torch.save's archives, and {_NEWEST_VERSION} is the "
            "newest that is known. Update converter, or save it with an older torch."
        )


def _is_big_endian(archive: ZipArchive) -> bool:
    """What the `byteorder` record says; files before torch 2.1 have none and are little-endian."""
    if _BYTE_ORDER not in archive.members:
        return False
    order = archive.read(_BYTE_ORDER, limit=64)
    if order not in (b"little", b"big"):
        raise damaged(
            file_name(archive.source.path), f"{archive.label(_BYTE_ORDER)} is {order!r}, expected 'little' or 'big'"
        )
    return order == b"big"


class _Storages:
    """The storages of an archive, each made when a tensor first refers to it."""

    def __init__(self, archive: ZipArchive, big_endian: bool, first: Mapping[str, Persistent]) -> None:
        self._archive = archive
        self._first = first
        self._big_endian = big_endian
        self._found: dict[str, Storage] = {}

    def find(self, reference: StorageReference) -> Storage:
        """The member that holds a storage. Raises Malformed if it is missing or of another size."""
        reference.check(storage_reference(self._first[reference.key]))
        if reference.view is not None:
            raise Malformed("it looks into a part of its storage, as only the layout before torch 1.6 has them")
        name = f"data/{reference.key}"
        member = self._archive.members.get(name)
        if member is None:
            raise Malformed(f"its storage, member {quoted(name)}, is missing")
        if member.size != reference.nbytes:
            raise Malformed(
                f"its storage, {self._archive.label(name)}, has {member.size} bytes, expected {reference.nbytes}"
            )
        if reference.key not in self._found:
            self._found[reference.key] = Storage(
                self._archive.source,
                reference.key,
                self._archive.label(name),
                member.offset,
                member.size,
                member.crc,
                self._big_endian,
            )
        return self._found[reference.key]
