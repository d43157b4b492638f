"""Archives that lie: about where members are, how large they are, what they are called, and what they hold."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint import open_checkpoint
from converter.errors import CorruptCheckpointError, NotACheckpointError
from tests.support.craft_files import FULL, Member, Write, torch_members, torch_zip, zip_file
from tests.support.craft_pickle import SIX, floats, pickled, tensor
from tests.support.reading import SIX as SIX_BITS
from tests.support.reading import Apart, contents, refusal

ITEM = {"layer.weight": tensor()}
OTHER = floats(9, 9, 9, 9, 9, 9)
Members = dict[str, Member]


def sound() -> Members:
    return torch_members(ITEM, {"0": SIX})


def archive(members: Members | list[Member], **changes: object) -> bytes:
    return zip_file(list(members.values()) if isinstance(members, dict) else members, **changes)


def changed(part: str, *, local: dict[str, object] | None = None, central: dict[str, object] | None = None) -> bytes:
    """A sound archive but for some fields of the headers of one member."""
    members = sound()
    members[part].local |= local or {}
    members[part].central |= central or {}
    return archive(members)


def both(part: str, **fields: object) -> bytes:
    return changed(part, local=fields, central=fields)


def renamed(part: str, name: str | bytes) -> bytes:
    members = sound()
    members[part].name = name
    return archive(members)


def repeated(part: str, data: bytes) -> bytes:
    members = sound()
    return archive([*members.values(), Member(members[part].name, data)])


def deflated(part: str) -> bytes:
    members = sound()
    member = members[part]
    packed = zlib.compress(member.data, wbits=-15)
    fields = {"method": 8, "crc": zlib.crc32(member.data), "size": len(member.data), "compressed": len(packed)}
    members[part] = Member(member.name, packed, fields, dict(fields))
    return archive(members)


def overlapping() -> bytes:
    """Two entries of the directory lead to the same member."""
    members = torch_members({"layer.weight": tensor(), "other": tensor("1")}, {"0": SIX, "1": SIX})
    whole = archive(members)
    start = whole.index(b"PK\3\4", whole.index(b"byteorder"))
    name = members["data/0"].name.encode()
    members["data/1"].central |= {"start": start, "name": name}
    return archive(members)


def nested() -> bytes:
    """One member lies inside the data of another."""
    inner = Member("archive/data/0", SIX)
    members = sound()
    outer = Member("archive/blob", inner.header() + SIX)
    del members["data/0"]
    whole = archive([*members.values(), outer])
    inner.central["start"] = whole.index(inner.header())
    directory = [*members.values(), outer, inner]
    body = b"".join(member.header() + member.data for member in directory[:-1])
    starts = [sum(len(m.header()) + len(m.data) for m in directory[:i]) for i in range(len(directory))]
    entries = b"".join(member.entry(start) for member, start in zip(directory, starts, strict=True))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(directory), len(directory), len(entries), len(body), 0)
    return body + entries + end


def wide(*numbers: int, stated: int | None = None) -> bytes:
    """A zip64 extra field."""
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers) if stated is None else stated, *numbers)


def gap(part: str, data: bytes) -> bytes:
    members = sound()
    members[part].gap = data
    return archive(members)


HUGE = (1 << 64) - 1
LIES: dict[str, Callable[[], bytes]] = {
    "deflated data": lambda: deflated("data/0"),
    "deflated pickle": lambda: deflated("data.pkl"),
    "deflated by the directory alone": lambda: changed("data/0", central={"method": 8}),
    "deflated by the header alone": lambda: changed("data/0", local={"method": 8}),
    "encrypted": lambda: both("data/0", flags=1),
    "encrypted by the header alone": lambda: changed("data/0", local={"flags": 1}),
    "data twice": lambda: repeated("data/0", OTHER),
    "pickle twice": lambda: repeated("data.pkl", pickled({})),
    "data twice, the same": lambda: repeated("data/0", SIX),
    "overlapping": overlapping,
    "nested": nested,
    "CRC of the data": lambda: both("data/0", crc=1),
    "CRC of the data in the directory": lambda: changed("data/0", central={"crc": 1}),
    "CRC of the data in the header": lambda: changed("data/0", local={"crc": 1}),
    "CRC of the pickle": lambda: both("data.pkl", crc=1),
    "CRC of the byte order": lambda: both("byteorder", crc=1),
    "size in the directory": lambda: changed("data/0", central={"size": 20, "compressed": 20}),
    "size in the header": lambda: changed("data/0", local={"size": 20, "compressed": 20}),
    "size of the compressed data": lambda: both("data/0", compressed=20),
    "size of the uncompressed data": lambda: both("data/0", size=28),
    "size beyond the file": lambda: both("data/0", size=1 << 20, compressed=1 << 20),
    "size of 4 GiB": lambda: both("data/0", size=FULL - 1, compressed=FULL - 1),
    "size of 2^64 - 1": lambda: both("data/0", size=FULL, compressed=FULL, extra=wide(HUGE, HUGE)),
    "size missing from zip64": lambda: both("data/0", size=FULL, compressed=FULL),
    "zip64 field cut short": lambda: both("data/0", size=FULL, compressed=FULL, extra=wide(24)),
    "zip64 field that leaves the entry": lambda: both("data/0", size=FULL, compressed=FULL, extra=wide(24, stated=99)),
    "start of another member": lambda: changed("data/0", central={"start": 0}),
    "start between members": lambda: changed("data/0", central={"start": 7}),
    "start behind the file": lambda: changed("data/0", central={"start": 1 << 30}),
    "start of 2^64 - 1": lambda: changed("data/0", central={"start": FULL, "extra": wide(HUGE)}),
    "start on another disk": lambda: changed("data/0", central={"disk": 3}),
    "name of another member in the header": lambda: changed("data/0", local={"name": b"archive/data/1"}),
    "longer name in the header": lambda: changed("data/0", local={"name": b"archive/data/00"}),
    "signature of the header": lambda: changed("data/0", local={"signature": b"PK\3\5"}),
    "signature of the entry": lambda: changed("data/0", central={"signature": b"PK\1\3"}),
    "extra field of the header": lambda: changed("data/0", local={"extra_length": 60_000}),
    "comment that leaves the directory": lambda: changed("data/0", central={"comment_length": 999}),
    "two roots": lambda: renamed("data/0", "other/data/0"),
    "two roots, both whole": lambda: archive([*sound().values(), *torch_members(ITEM, {"0": OTHER}, "b").values()]),
    "root above": lambda: renamed("data/0", "../data/0"),
    "name above": lambda: renamed("data/0", "archive/../data/0"),
    "absolute name": lambda: renamed("data/0", "/archive/data/0"),
    "name with a backslash": lambda: renamed("data/0", "archive\\data\\0"),
    "name with a drive": lambda: renamed("data/0", "C:/data/0"),
    "name with an empty part": lambda: renamed("data/0", "archive//data/0"),
    "name with a dot": lambda: renamed("data/0", "archive/./data/0"),
    "name of a folder": lambda: renamed("data/0", "archive/data/0/"),
    "name with a NUL": lambda: renamed("data/0", "archive/data/0\0"),
    "name with an escape": lambda: renamed("data/0", "archive/\x1b[2J"),
    "name that is not UTF-8": lambda: renamed("data/0", b"archive/\xff"),
    "name without a root": lambda: renamed("data/0", "data"),
    "no name": lambda: renamed("data/0", ""),
    "name in other letters": lambda: renamed("data/0", "archive/DATA/0"),
    "junk before": lambda: archive(sound(), before=b"\x7fELF" + bytes(60)),
    "junk before, and offsets that do not know": lambda: bytes(4) + archive(sound()),
    "a member before that the directory leaves out": lambda: archive(
        sound(), before=Member("archive/data/0", OTHER).header() + OTHER
    ),
    "a zip before": lambda: archive(torch_members(ITEM, {"0": OTHER})) + archive(sound()),
    "junk after": lambda: archive(sound(), after=b"junk"),
    "a zero after": lambda: archive(sound(), after=b"\0"),
    "a megabyte after": lambda: archive(sound(), after=bytes(1 << 20)),
    "a comment": lambda: archive(sound(), end={"comment": b"hello"}),
    "an end record in the comment": lambda: archive(sound(), end={"comment": archive({})}),
    "junk before the directory": lambda: archive(sound(), between=bytes(8), end={"size": 8}),
    "directory elsewhere": lambda: archive(sound(), end={"offset": 0}),
    "directory behind the file": lambda: archive(sound(), end={"offset": FULL - 1}),
    "directory larger than it is": lambda: archive(sound(), end={"size": FULL - 1}),
    "directory of no bytes": lambda: archive(sound(), end={"size": 0}),
    "fewer entries than there are": lambda: archive(sound(), end={"count": 2}),
    "more entries than there are": lambda: archive(sound(), end={"count": 60_000}),
    "more entries here than in all": lambda: archive(sound(), end={"here": 9}),
    "no entries": lambda: archive({}),
    "another disk": lambda: archive(sound(), end={"disk": 1}),
    "zip64 record elsewhere": lambda: archive(sound(), end64={"record": 0}),
    "zip64 record behind the file": lambda: archive(sound(), end64={"record": HUGE}),
    "zip64 record without a signature": lambda: archive(sound(), end64={"signature": b"PK\6\5"}),
    "zip64 record of another length": lambda: archive(sound(), end64={"length": 1 << 40}),
    "zip64 directory of 2^63 bytes": lambda: archive(sound(), end64={"size": 1 << 63}),
    "zip64 directory elsewhere": lambda: archive(sound(), end64={"offset": HUGE}),
    "zip64 entries of 2^63": lambda: archive(sound(), end64={"count": 1 << 63}),
    "zip64 on another disk": lambda: archive(sound(), end64={"disk": 1}),
    "zip64 against the end record": lambda: archive(sound(), end64={"count": 3}, end={"count": 4}),
}
READ = {"CRC of the data"}  # all else is found when the file is opened


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(lie: str, write: Write) -> None:
    assert refusal(write(LIES[lie]()))


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie not in READ])
def test_a_lie_is_found_when_the_file_is_opened(lie: str, write: Write) -> None:
    path = write(LIES[lie]())
    with pytest.raises(Exception, match="crafted"):
        open_checkpoint(path)


@pytest.mark.parametrize("part", ["data.pkl", "data/0"])
def test_a_missing_member_is_refused(part: str, write: Write) -> None:
    members = sound()
    del members[part]
    assert part in refusal(
        write(archive(members)), NotACheckpointError if part == "data.pkl" else CorruptCheckpointError
    )


def test_damaged_data_is_found_by_its_crc(write: Write) -> None:
    path = write(both("data/0", crc=1))
    assert "'archive/data/0'" in refusal(path, CorruptCheckpointError)


def test_damaged_data_is_found_by_whoever_streams_it(write: Write) -> None:
    with open_checkpoint(write(both("data/0", crc=1))) as checkpoint, pytest.raises(CorruptCheckpointError):
        list(checkpoint.chunks("layer.weight"))


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 2)], ids=str)
def test_damage_beside_the_part_that_a_tensor_looks_into_is_found(shape: tuple[int, ...], write: Write) -> None:
    members = torch_members({"w": tensor(shape=shape, numel=6)}, {"0": SIX})
    members["data/0"].data = floats(0, 1, 2, 3, 4, 99)
    members["data/0"].local["crc"] = members["data/0"].central["crc"] = zlib.crc32(SIX)
    assert "'archive/data/0'" in refusal(write(archive(members)), CorruptCheckpointError)


def test_bytes_after_the_pickle_are_refused(write: Write) -> None:
    path = write(torch_zip(pickled(ITEM) + b"more", {"0": SIX}))
    assert "archive/data.pkl" in refusal(path, CorruptCheckpointError)


def test_bytes_between_members_are_not_read(write: Write) -> None:
    assert contents(write(gap("data/0", b"PK\3\4 or anything"))) == {"layer.weight": SIX_BITS["w"]}


def test_archives_with_many_or_large_members_take_little(apart: Apart, tmp_path: Path) -> None:
    many = [Member(f"a/data/{i}", b"") for i in range(60_000)]
    files = {
        "many": archive([*torch_members(ITEM, {"0": SIX}, "a").values(), *many]),
        "names": archive([Member(f"a/{i}" + "n" * 60_000, b"") for i in range(300)]),
        "extras": archive([Member(f"a/{i}", b"", {}, {"extra": bytes(60_000)}) for i in range(400)]),
        "pickle": torch_zip(b"\x80\2" + bytes(1) * (65 << 20), {"0": SIX}),
        "byteorder": archive(
            torch_members(ITEM, {"0": SIX}) | {"byteorder": Member("archive/byteorder", bytes(1 << 27))}
        ),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    outcomes = apart(*(tmp_path / name for name in files))
    slow = {name: outcome.seconds for name, outcome in zip(files, outcomes, strict=True) if outcome.seconds > 5}
    large = {name: outcome.growth for name, outcome in zip(files, outcomes, strict=True) if outcome.growth > 300}
    assert (slow, large) == ({}, {})
