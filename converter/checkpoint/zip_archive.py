"""The zip layout as torch writes it: stored members, found by the central directory and checked against their headers.

Stricter than zip libraries, because they disagree on what they forgive: nothing before the first member or after the
end record, one root folder, no name twice, no two members sharing a byte, local headers that say what the directory
says. Format: APPNOTE 6.3.10, sections 4.3 and 4.5.3 (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import NoReturn

from converter.checkpoint.source import SourceFile
from converter.checkpoint.truncated import cut_off_zip
from converter.display import counted, file_name, quoted
from converter.errors import NotACheckpointError, UnsupportedCheckpointError, damaged

# the format's records, without what is of variable length
END = struct.Struct("<4s4H2LH")
END64_LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")

DIRECTORY_LIMIT = 16 * 1024 * 1024  # bytes; some 200,000 members
_ENCRYPTED, _SIZES_FOLLOW = 0x0001, 0x0008  # general purpose flags
ZIP64_EXTRA = 1
_SMALL = str.maketrans(ascii_uppercase, ascii_lowercase)
# members that only TorchScript and exported programs have; the last one, of torch before 2.8, is in no folder
_PROGRAM_MEMBERS = {"constants.pkl", "archive_format", "models/model.json", "serialized_exported_program.json"}
PROGRAM = (
    "a TorchScript or exported program, not a checkpoint. Load it with torch.jit.load or torch.export.load where you "
    "trust it, and save its state_dict() with torch.save"
)


@dataclass(frozen=True, slots=True)
class Member:
    """One member. `offset` is that of its data, `start` that of its local header; both in bytes."""

    name: str
    start: int
    offset: int
    size: int
    crc: int
    packed: str = ""  # "compressed" or "encrypted", where it is


def folded(name: str) -> str:
    """A name as torch looks for it in an archive: without regard to ASCII capitals (miniz's default)."""
    return name.translate(_SMALL)


def is_program(names: Iterable[str]) -> bool:
    """Whether an archive with members of these names is a TorchScript or exported program."""
    inner = (name.partition("/")[2] or name for name in names)
    return any(name in _PROGRAM_MEMBERS or name.startswith("code/") for name in inner)


class ZipArchive:
    """The members of an archive, by name without the root folder."""

    def __init__(self, source: SourceFile) -> None:
        """Read the directory of `source` and check all headers.

        Raises CorruptCheckpointError, UnsupportedCheckpointError for compression or encryption, or NotACheckpointError
        for a program.
        """
        self.source = source
        self._label = file_name(source.path)
        offset, size, count = self._find_directory()
        entries = self._read_directory(offset, size, count)
        self._refuse_programs(entries)
        found = [self._check_header(entry, offset) for entry in entries]
        self._refuse_overlaps(found)
        self.members = self._strip_root(found)

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of a member, once their CRC-32 is checked."""
        member = self.members[name]
        if member.size > limit:
            raise UnsupportedCheckpointError(
                f"{self._label}: {self.label(name)} has {member.size} bytes, and {limit} is the limit. Save the "
                "weights alone, without other objects."
            )
        data = self.source.read(member.offset, member.size, self.label(name))
        if zlib.crc32(data) != member.crc:
            self._fail(f"{self.label(name)}: CRC-32 is {zlib.crc32(data):08x}, expected {member.crc:08x}")
        return data

    def label(self, name: str) -> str:
        """How messages call a member."""
        return f"member {quoted(self.members[name].name)}"

    def _fail(self, problem: str) -> NoReturn:
        raise damaged(self._label, problem)

    def _find_directory(self) -> tuple[int, int, int]:
        """`find_directory` of a file that ends with its end record."""
        end = self.source.size - END.size
        if end < 0:
            raise cut_off_zip(self.source)
        signature, *_, comment = END.unpack(self.source.read(end, END.size, "end of the zip directory"))
        if signature != b"PK\5\6" or comment:
            self._refuse_end()
        return find_directory(self.source, end)

    def _refuse_end(self) -> NoReturn:
        """The file does not end as it should: say whether it is cut off, or something was appended."""
        tail = min(self.source.size, 1 << 16)
        position = self.source.read(self.source.size - tail, tail, "end of the zip archive").rfind(b"PK\5\6")
        if position < 0 or tail - position < END.size:
            raise cut_off_zip(self.source)
        self._fail(f"{tail - position - END.size} bytes follow the end of the zip archive, or its comment is cut off")

    def _read_directory(self, offset: int, size: int, count: int) -> list[Member]:
        if size > DIRECTORY_LIMIT:
            raise UnsupportedCheckpointError(
                f"{self._label}: the zip directory has {size} bytes, and {DIRECTORY_LIMIT} is the limit. Save the "
                "weights in several files."
            )
        data = self.source.read(offset, size, "zip directory")
        entries: list[Member] = []
        position = 0
        while position < size:
            if len(entries) == count or size - position < ENTRY.size:
                self._fail(
                    f"byte {offset + position}: the zip directory goes on after {counted(count, 'entry', 'entries')}"
                )
            entry, position = self._read_entry(data, position, offset)
            entries.append(entry)
        if len(entries) != count:
            self._fail(f"the zip directory has {len(entries)} entries, expected {count}")
        return entries

    def _read_entry(self, data: bytes, position: int, base: int) -> tuple[Member, int]:
        """The entry at `position`, its data offset not known yet, and where the next one begins."""
        where = f"byte {base + position}"
        (signature, _, _, flags, method, _, _, crc, compressed, size, *rest) = ENTRY.unpack_from(data, position)
        name_length, extra_length, comment_length, disk, _, _, start = rest
        name_end = position + ENTRY.size + name_length
        extra_end = name_end + extra_length
        if signature != b"PK\1\2" or extra_end + comment_length > len(data):
            self._fail(f"{where}: the zip directory has no entry where one is expected")
        name = self._name(data[position + ENTRY.size : name_end], where)
        wide = self._wide_fields(data[name_end:extra_end], where)
        size, compressed, start = (
            next(wide, value) if value == 0xFFFFFFFF else value for value in (size, compressed, start)
        )  # fmt: skip
        packed = "encrypted" if flags & _ENCRYPTED else "compressed" if method else ""
        if (size != compressed and not packed) or disk not in (0, 0xFFFF):
            self._fail(f"member {quoted(name)} has {size} bytes, but takes {compressed}")
        return Member(name, start, 0, size, crc, packed), extra_end + comment_length

    def _name(self, raw: bytes, where: str) -> str:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            self._fail(f"{where}: the name of a zip member is not UTF-8 ({raw[:80]!r})")
        parts = name.split("/")
        if len(parts) < 2 or not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts):
            self._fail(f"{where}: the zip member {quoted(name)} has a name that torch never gives")
        return name

    def _wide_fields(self, extra: bytes, where: str) -> Iterator[int]:
        """The 64-bit numbers of an entry, in the order of the 32-bit fields that they stand in for."""
        position = 0
        while position + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, position)
            position += 4
            if position + length > len(extra):
                self._fail(f"{where}: an extra field of the zip entry leaves the entry")
            if kind == ZIP64_EXTRA:
                return iter(struct.unpack_from(f"<{length // 8}Q", extra, position))
            position += length
        return iter(())

    def _refuse_programs(self, members: list[Member]) -> None:
        if is_program(member.name for member in members):
            raise NotACheckpointError(f"{self._label}: is {PROGRAM}.")

    def _check_header(self, entry: Member, directory: int) -> Member:
        """The entry with the offset of its data, after its local header was found to agree."""
        label = f"member {quoted(entry.name)}"
        if entry.packed:
            raise UnsupportedCheckpointError(
                f"{self._label}: {label} is {entry.packed}; torch stores members as they are. Unpack the archive and "
                "pack it without compression (zip -0)."
            )
        name = entry.name.encode()
        length = LOCAL.size + len(name)
        if entry.start + length + entry.size > directory:
            self._fail(f"{label}: bytes {entry.start} to {entry.start + length + entry.size} leave the archive")
        header = self.source.read(entry.start, length, label)
        signature, _, flags, method, _, _, crc, compressed, size, name_length, extra_length = LOCAL.unpack_from(header)
        if signature != b"PK\3\4" or name_length != len(name) or header[LOCAL.size :] != name:
            self._fail(f"{label}: its header is not at byte {entry.start}, where the zip directory says it is")
        unknown = {0xFFFFFFFF, 0} if flags & _SIZES_FOLLOW else {0xFFFFFFFF}
        stated = zip((crc, compressed, size), (entry.crc, entry.size, entry.size), strict=True)
        if method or flags & _ENCRYPTED or any(value != fact and value not in unknown for value, fact in stated):
            self._fail(f"{label}: its header at byte {entry.start} contradicts the zip directory")
        offset = entry.start + length + extra_length
        if offset + entry.size > directory:
            self._fail(f"{label}: bytes {offset} to {offset + entry.size} leave the archive")
        return Member(entry.name, entry.start, offset, entry.size, entry.crc)

    def _refuse_overlaps(self, members: list[Member]) -> None:
        end = 0
        before = "the beginning of the file"
        for member in sorted(members, key=lambda member: member.start):
            if member.start < end:
                self._fail(f"zip members {before} and {quoted(member.name)} share bytes")
            if end == 0 and member.start:
                self._fail(f"{member.start} bytes stand before the zip archive")
            end, before = member.offset + member.size, quoted(member.name)

    def _strip_root(self, members: list[Member]) -> dict[str, Member]:
        """By name without the folder that all of them are in."""
        roots = {member.name.partition("/")[0] for member in members}
        if len(roots) > 1:
            first, second = sorted(roots)[:2]
            self._fail(
                f"the zip archive has {len(roots)} root folders, {quoted(first)} and {quoted(second)} among them"
            )
        stripped: dict[str, Member] = {}
        seen: dict[str, Member] = {}
        for member in members:
            name = member.name.partition("/")[2]
            if (other := seen.setdefault(folded(name), member)) is not member:
                self._fail(f"members {quoted(other.name)} and {quoted(member.name)} are one, but for capitals")
            stripped[name] = member
        return stripped


def find_directory(source: SourceFile, end: int) -> tuple[int, int, int]:
    """Offset, size and number of entries of the central directory, by the end record at `end` and that of zip64.

    Raises CorruptCheckpointError if they contradict each other, or if it does not end where they begin.
    """
    label = file_name(source.path)
    _, disk, first_disk, here, count, size, offset, _ = END.unpack(source.read(end, END.size, "end record"))
    if (disk, first_disk) not in ((0, 0), (0xFFFF, 0xFFFF)) or here != count:
        raise damaged(label, f"byte {end}: the zip archive is split over several disks")
    locator = end - END64_LOCATOR.size
    if locator >= END64.size and source.read(locator, 4, "end of the zip directory") == b"PK\6\7":
        end, offset, size, count = _find_directory64(source, label, locator, offset, size, count)
    if offset + size != end:
        problem = f"the zip directory should end at byte {end}, but is said to be bytes {offset} to {offset + size}"
        raise damaged(label, problem)
    return offset, size, count


def _find_directory64(source: SourceFile, label: str, locator: int, *narrow: int) -> tuple[int, int, int, int]:
    """Where the zip64 end record begins, and what it says. `narrow` fields must agree unless all bits are 1."""
    _, disk, record, disks = END64_LOCATOR.unpack(source.read(locator, END64_LOCATOR.size, "zip64 locator"))
    if record != locator - END64.size or disk or disks > 1:
        problem = f"byte {locator}: the zip64 end record is not where its locator says (byte {record})"
        raise damaged(label, problem)
    signature, length, _, _, disk, first_disk, here, count, size, offset = END64.unpack(
        source.read(record, END64.size, "zip64 end record")
    )
    if signature != b"PK\6\6" or length != END64.size - 12 or disk or first_disk or here != count:
        raise damaged(label, f"byte {record}: the zip64 end record contradicts itself")
    for short, full, most in zip(narrow, (offset, size, count), (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF), strict=True):
        if short not in (full, most):
            problem = f"byte {record}: the zip64 end record says {full} where the end record says {short}"
            raise damaged(label, problem)
    return record, offset, size, count
