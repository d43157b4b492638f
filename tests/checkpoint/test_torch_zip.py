"""The zip layout: its records, its byte order, and what writers of archives vary."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from converter.checkpoint import open_checkpoint
from converter.errors import CorruptCheckpointError
from tests.support.craft_files import FULL, Write, torch_members, torch_zip, zip_file
from tests.support.craft_pickle import SIX, tensor
from tests.support.reading import SIX as SIX_BITS
from tests.support.reading import contents, loaded, refusal

ITEM = {"w": tensor()}


def test_a_zip_by_hand_is_what_torch_reads(write: Write) -> None:
    path = write(torch_zip(ITEM, {"0": SIX}))
    assert contents(path) == loaded(torch.load(path)) == SIX_BITS


def test_layout_size_and_files(write: Write) -> None:
    path = write(torch_zip(ITEM, {"0": SIX}))
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.layout, checkpoint.size, checkpoint.files
    assert found == ("torch-zip", path.stat().st_size, [path])


@pytest.mark.parametrize("root", ["archive", "model_final", "archive.tmp-1", "Ünïcode folder"])
def test_the_root_folder_may_have_any_name(root: str, write: Write) -> None:
    members = torch_members(ITEM, {"0": SIX}, root)
    assert contents(write(zip_file(list(members.values())))) == SIX_BITS


def test_files_before_torch_2_1_have_no_byte_order(write: Write) -> None:
    members = torch_members(ITEM, {"0": SIX})
    del members["byteorder"]
    assert contents(write(zip_file(list(members.values())))) == SIX_BITS


BIG_ENDIAN = {  # storage class: dtype of its components
    "DoubleStorage": ">f8",
    "FloatStorage": ">f4",
    "HalfStorage": ">f2",
    "BFloat16Storage": ">u2",
    "LongStorage": ">i8",
    "IntStorage": ">i4",
    "ShortStorage": ">i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": ">f4",
    "ComplexDoubleStorage": ">f8",
}


@pytest.mark.parametrize("kind", BIG_ENDIAN)
def test_big_endian_storages(kind: str, write: Write) -> None:
    numbers = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1]) if kind == "BoolStorage" else np.arange(12)
    swapped = numbers.astype(BIG_ENDIAN[kind])
    pairs = 2 if kind.startswith("Complex") else 1
    whole = tensor(kind=kind, shape=(12 // pairs,))
    strided = tensor(kind=kind, shape=(2,), strides=(3,), offset=1, numel=12 // pairs)
    members = torch_members({"whole": whole, "strided": strided}, {"0": swapped.tobytes()})
    members["byteorder"].data = b"big"
    native = numbers.astype(BIG_ENDIAN[kind].replace(">", "<")).reshape(-1, pairs)
    found = contents(write(zip_file(list(members.values()))))
    assert [item[2] for item in found.values()] == [native.tobytes(), native[1:5:3].tobytes()]


def test_an_unknown_byte_order_is_refused(write: Write) -> None:
    members = torch_members(ITEM, {"0": SIX})
    members["byteorder"].data = b"middle"
    assert "byteorder" in refusal(write(zip_file(list(members.values()))), CorruptCheckpointError)


def test_zip64_end_records(write: Write) -> None:
    assert contents(write(torch_zip(ITEM, {"0": SIX}, end64={}))) == SIX_BITS


@pytest.mark.parametrize("end64", [None, {}], ids=["zip", "zip64"])
def test_zip64_sizes_and_offsets(end64: dict[str, int] | None, write: Write) -> None:
    members = list(torch_members(ITEM, {"0": SIX}).values())
    start = 0
    for member in members:
        size = len(member.data)
        wide = {"size": FULL, "compressed": FULL}
        member.local |= {**wide, "extra": struct.pack("<2H2Q", 1, 16, size, size)}
        member.central |= {**wide, "start": FULL, "extra": struct.pack("<2H3Q", 1, 24, size, size, start)}
        start += len(member.header()) + size
    assert contents(write(zip_file(members, end64=end64))) == SIX_BITS


def test_data_may_be_aligned_with_an_extra_field(write: Write) -> None:
    members = torch_members(ITEM, {"0": SIX})
    members["data/0"].local["extra"] = b"FB" + struct.pack("<H", 50) + b"Z" * 50
    assert contents(write(zip_file(list(members.values())))) == SIX_BITS


def test_sizes_may_follow_the_data(write: Write) -> None:
    members = torch_members(ITEM, {"0": SIX})
    for member in members.values():
        member.local |= {"flags": 0x808, "crc": 0, "size": 0, "compressed": 0}
        member.central |= {"flags": 0x808}
    assert contents(write(zip_file(list(members.values())))) == SIX_BITS


def test_members_that_are_not_needed_are_not_read(write: Write) -> None:
    members = torch_members(ITEM, {"0": SIX, "unused": SIX})
    members["data/unused"].local["crc"] = members["data/unused"].central["crc"] = 1
    assert contents(write(zip_file(list(members.values())))) == SIX_BITS


def test_pieces_of_any_size_add_up(write: Write) -> None:
    numbers = np.arange(300_000, dtype="<f8")
    item = {"w": tensor(kind="DoubleStorage", shape=(300_000,)), "t": tensor(kind="DoubleStorage", shape=(300_000,))}
    with open_checkpoint(write(torch_zip(item, {"0": numbers.tobytes()}))) as checkpoint:
        found = [b"".join(map(bytes, checkpoint.chunks("w", size))) for size in (1 << 22, 65_536, 4_100)]
    assert found == [numbers.tobytes()] * 3


def test_pieces_are_as_large_as_asked(write: Write) -> None:
    with open_checkpoint(write(torch_zip({"w": tensor(shape=(100,))}, {"0": bytes(400)}))) as checkpoint:
        assert [len(piece) for piece in checkpoint.chunks("w", 160)] == [160, 160, 80]
