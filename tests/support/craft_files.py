"""Files written by hand: zip, legacy and safetensors, each able to lie in any field."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.craft_pickle import pickled

Write = Callable[[bytes], Path]  # the fixture that makes a file of bytes
Pack = Callable[..., Path]  # the fixture that makes a checkpoint of an item

MAGIC = 0x1950A86A20F9469CFC6C
FULL = 0xFFFFFFFF


@dataclass
class Member:
    """One member of a zip archive; `local` and `central` replace fields of the one or the other header."""

    name: str | bytes
    data: bytes
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    gap: bytes = b""  # between the member before and this one

    def fields(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        raw = self.name.encode() if isinstance(self.name, str) else self.name
        true = {
            "version": 0, "flags": 0x800, "method": 0, "time": 0, "date": 0, "crc": zlib.crc32(self.data),
            "compressed": len(self.data), "size": len(self.data), "name": raw, "extra": b"", "comment": b"",
            "disk": 0, "start": None, "signature": None,
        }  # fmt: skip
        return {**true, **changes}

    def header(self) -> bytes:
        """The local header."""
        f = self.fields(self.local)
        common = [f[key] for key in ("version", "flags", "method", "time", "date", "crc", "compressed", "size")]
        signature = f["signature"] or b"PK\3\4"
        lengths = [len(f["name"]), f.get("extra_length", len(f["extra"]))]
        return struct.pack("<4s5H3L2H", signature, *common, *lengths) + f["name"] + f["extra"]

    def entry(self, start: int) -> bytes:
        """The entry in the central directory."""
        f = self.fields(self.central)
        common = [f[key] for key in ("version", "flags", "method", "time", "date", "crc", "compressed", "size")]
        lengths = [len(f["name"]), len(f["extra"]), f.get("comment_length", len(f["comment"]))]
        start = start if f["start"] is None else f["start"]
        signature = f["signature"] or b"PK\1\2"
        fixed = struct.pack("<4s6H3L5H2L", signature, 0, *common, *lengths, f["disk"], 0, 0, start)
        return fixed + f["name"] + f["extra"] + f["comment"]


def zip_file(
    members: Sequence[Member],
    *,
    before: bytes = b"",
    after: bytes = b"",
    end: Mapping[str, Any] | None = None,
    end64: Mapping[str, Any] | None = None,
    between: bytes = b"",
) -> bytes:
    """An archive of `members`. `end` and `end64` replace fields of the end records; with `end64` it is zip64."""
    body, directory = bytearray(before), bytearray()
    for member in members:
        body += member.gap
        directory += member.entry(len(body))
        body += member.header() + member.data
    body += between
    true = {"count": len(members), "size": len(directory), "offset": len(body), "disk": 0, "comment": b"", "here": None}
    wide = {**true, "length": 44, "signature": b"PK\6\6", "record": len(body) + len(directory), **(end64 or {})}
    narrow = {**true, **(dict.fromkeys(("size", "offset"), FULL) if end64 is not None else {}), **(end or {})}
    body += directory
    if end64 is not None:
        counts = [wide["count"] if wide["here"] is None else wide["here"], wide["count"]]
        body += struct.pack("<4sQ2H2L", wide["signature"], wide["length"], 45, 45, wide["disk"], 0)
        body += struct.pack("<4Q", *counts, wide["size"], wide["offset"])
        body += struct.pack("<4sLQL", b"PK\6\7", 0, wide["record"], 1)
    counts = [narrow["count"] if narrow["here"] is None else narrow["here"], narrow["count"]]
    body += struct.pack("<4s4H2L", b"PK\5\6", narrow["disk"], narrow["disk"], *counts, narrow["size"], narrow["offset"])
    return bytes(body) + struct.pack("<H", len(narrow["comment"])) + narrow["comment"] + after


def whole(item: object) -> bytes:
    """The pickle of `item`, or `item` itself where it is one."""
    return item if type(item) is bytes else pickled(item)


def torch_members(item: object, blobs: Mapping[str, bytes], root: str = "archive") -> dict[str, Member]:
    """The members of a checkpoint by short name, to be changed before `zip_file` writes them.

    `item` is what the pickle holds, or the pickle itself as plain bytes.
    """
    parts = {"data.pkl": whole(item), "byteorder": b"little"}
    parts |= {f"data/{key}": data for key, data in blobs.items()}
    parts |= {"version": b"3\n"}
    return {part: Member(f"{root}/{part}", data) for part, data in parts.items()}


def torch_zip(item: object, blobs: Mapping[str, bytes], **changes: Any) -> bytes:
    """A checkpoint in torch's zip layout that holds `item`; `changes` as in `zip_file`."""
    return zip_file(list(torch_members(item, blobs).values()), **changes)


def torch_legacy(
    item: object,
    storages: Sequence[tuple[object, int, bytes]],
    *,
    magic: object = MAGIC,
    protocol: object = 1001,
    facts: object = None,
    keys: object = None,
    after: bytes = b"",
) -> bytes:
    """A checkpoint in the layout before torch 1.6; a storage is key, stated number of elements, bytes.

    `keys` replaces the list of storage keys.
    """
    facts = {"protocol_version": 1001, "little_endian": True} if facts is None else facts
    keys = [key for key, _, _ in storages] if keys is None else keys
    body = b"".join(struct.pack("<q", numel) + data for _, numel, data in storages)
    return b"".join(map(whole, (magic, protocol, facts, item, keys))) + body + after


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; a header that is text or bytes is written as it is, `length` replaces its length."""
    if not isinstance(header, str | bytes):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(begin: int = 0, end: int = 24, shape: object = (2, 3), dtype: object = "F32") -> dict[str, object]:
    """What a safetensors header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
