"""torch.save's layout before torch 1.6: five pickles in a row, then the storages, each with its size before it.

The pickles are a magic number, the protocol, facts about the machine, the object itself, and the keys of the storages
in the order in which they follow. Nothing says where a storage begins: that follows from the sizes of those before.
Source: torch/serialization.py (`_legacy_save`) of torch 2.13.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, NoReturn

from converter.checkpoint.index import Checkpoint
from converter.checkpoint.opcodes import BYTE_LIMIT, Global, Unpickled, interpret
from converter.checkpoint.roots import Knows, take_root
from converter.checkpoint.source import SourceFile
from converter.checkpoint.storage import Storage
from converter.checkpoint.tensors import (
    Malformed,
    StorageReference,
    Unreadable,
    first_references,
    refuse_set_values,
    storage_reference,
)
from converter.checkpoint.truncated import cut_off
from converter.display import counted, file_name, number, quoted
from converter.errors import CheckpointError, CorruptCheckpointError, UnsupportedCheckpointError, damaged

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_SMALL = 100  # opcodes; the first three pickles have about ten each


def is_torch_legacy(source: SourceFile) -> bool:
    """The file begins with a pickle of torch's magic number."""
    try:
        return interpret(_Window(source), "magic number", limit=8).value == MAGIC
    except CheckpointError:
        return False


def open_torch_legacy(source: SourceFile, root: str | None, knows: Knows | None) -> Checkpoint:
    """Index the pickles of `source`. Raises CheckpointError."""
    window = _Window(source)
    try:
        found, keys, names = _pickles(window, file_name(source.path))
    except CorruptCheckpointError:
        if window.is_exhausted:
            raise cut_off(source, None, "its pickles") from None
        raise
    refuse_set_values(found.calls, file_name(source.path))
    storages = _Storages(source, found, keys)
    return take_root(source, "torch-legacy", found.value, root, storages.find, names, knows=knows)


def _pickles(window: _Window, label: str) -> tuple[Unpickled, Unpickled, frozenset[Global]]:
    """The object, the keys of the storages, and the names in all pickles."""
    interpret(window, f"{label}: magic number", _SMALL)
    protocol = interpret(window, f"{label}: protocol", _SMALL).value
    if protocol != _PROTOCOL:
        shown = number(protocol) if isinstance(protocol, int) else "of another kind"
        raise UnsupportedCheckpointError(
            f"{label}: is written in protocol {shown} of torch.save, expected "
            f"{_PROTOCOL}. Load it where you trust it and save it again."
        )
    facts = interpret(window, f"{label}: facts about the machine", _SMALL)
    found = interpret(window, f"{label}: object")
    keys = interpret(window, f"{label}: storage keys")
    return found, keys, found.globals | keys.globals | facts.globals


class _File(io.RawIOBase):
    """A source as a stream."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        view = view[: self._source.size - self._position]
        self._source.read_into(view, self._position, "pickle")
        self._position += len(view)
        return len(view)


class _Window(io.BufferedReader):
    """The pickles at the beginning of a source. A length stated in them never reads beyond the end of the file.

    `is_exhausted`: more was asked for than there is, though no more than a sound pickle has.
    """

    def __init__(self, source: SourceFile) -> None:
        super().__init__(_File(source), buffer_size=1 << 16)
        self._size = source.size
        self.is_exhausted = False

    def read(self, size: int | None = -1, /) -> bytes:
        left = min(self._size - self.tell(), BYTE_LIMIT)
        wanted = left if size is None or size < 0 else size
        self.is_exhausted |= left < wanted <= BYTE_LIMIT
        return super().read(min(wanted, left))

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(BYTE_LIMIT)
        self.is_exhausted |= not line.endswith(b"\n") and self.tell() == self._size
        return line


class _Storages:
    """Where each storage lies. The whole chain of them has been checked against the size of the file."""

    def __init__(self, source: SourceFile, found: Unpickled, keys: Unpickled) -> None:
        self._source = source
        self._label = file_name(source.path)
        self._stated = stated = self._stated_by(found)
        self._first_parts = self._parts(found)
        if not isinstance(keys.value, list):
            self._fail("the list of storage keys is not a list")
        self._roots: dict[str, Storage] = {}
        self._views: dict[tuple[str, int, int], Storage] = {}
        position = keys.end
        for key in keys.value:
            if not isinstance(key, str) or key in self._roots:
                self._fail("the list of storage keys has an entry twice, or one that is not a string")
            if key not in stated:
                self._fail(f"storage {quoted(key)} is listed, but no tensor says how large its elements are")
            reference = stated[key]
            if isinstance(reference, Unreadable):
                raise UnsupportedCheckpointError(f"{self._label}: storage {quoted(key)}: {reference}")
            what = f"storage {quoted(key)}"
            if position + 8 > source.size:
                raise cut_off(source, self._needed(keys, stated), what, at_least=True)
            (numel,) = struct.unpack("<q", source.read(position, 8, what))
            if numel != reference.numel:
                self._fail(f"{what}, byte {position}: has {numel} elements, expected {reference.numel}")
            position += 8
            if position + reference.nbytes > source.size:
                raise cut_off(source, self._needed(keys, stated), what, at_least=True)
            self._roots[key] = Storage(source, key, what, position, reference.nbytes)
            position += reference.nbytes
        if position != source.size:
            self._fail(f"{counted(source.size - position, 'byte')} after the last storage, from byte {position} on")

    def find(self, reference: StorageReference) -> Storage:
        """A storage, or the part of one that has a name of its own. Raises Malformed."""
        storage = self._roots.get(reference.key)
        if storage is None:
            raise Malformed(f"its storage {quoted(reference.key)} is missing from the list of storage keys")
        first = self._stated[reference.key]
        if isinstance(first, Unreadable):
            raise first
        reference.check(first)
        if reference.view is None:
            return storage
        name, offset, numel = reference.view
        if name in self._stated or self._first_parts[name] != (reference.key, offset, numel):
            raise Malformed(f"its part {quoted(name)} of storage {quoted(reference.key)} is elsewhere another one")
        if offset + numel > reference.numel:
            raise Malformed(
                f"its part {quoted(name)} of storage {quoted(reference.key)} ends at element {offset + numel} of "
                f"{reference.numel}"
            )
        if reference.view not in self._views:
            start = storage.offset + offset * reference.itemsize
            label = f"part {quoted(name)} of {storage.label}"
            self._views[reference.view] = Storage(self._source, name, label, start, numel * reference.itemsize)
        return self._views[reference.view]

    def _stated_by(self, found: Unpickled) -> dict[str, StorageReference | Unreadable]:
        """What the pickle says of each storage, or why it cannot be known."""
        stated: dict[str, StorageReference | Unreadable] = {}
        for key, persistent in first_references(found.references).items():
            try:
                stated[key] = storage_reference(persistent)
            except Unreadable as error:
                stated[key] = error
            except Malformed as error:
                self._fail(f"storage {quoted(key)}: {error}")
        return stated

    def _parts(self, found: Unpickled) -> dict[str, tuple[object, ...]]:
        """By the name of a part, its storage and place where it is first referred to."""
        parts: dict[str, tuple[object, ...]] = {}
        for persistent in found.references:
            match persistent.reference:
                case ("storage", _, str(key), _, _, (str(name), int(offset), int(numel))):
                    parts.setdefault(name, (key, offset, numel))
        return parts

    def _needed(self, keys: Unpickled, stated: dict[str, StorageReference | Unreadable]) -> int:
        """Bytes of the file if it were whole, as far as the pickles say."""
        listed = {key for key in keys.value if isinstance(key, str)} if isinstance(keys.value, list) else set()
        references = (stated.get(key) for key in listed)
        return keys.end + sum(8 + found.nbytes for found in references if isinstance(found, StorageReference))

    def _fail(self, problem: str) -> NoReturn:
        raise damaged(self._label, problem)
