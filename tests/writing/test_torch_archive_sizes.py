"""Sizes, positions and counts at and beyond what the narrow fields of a zip archive hold."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.checkpoint import DTYPES, open_checkpoint
from converter.checkpoint.source import SourceFile
from converter.checkpoint.zip_archive import ZipArchive
from converter.planning.plan import Tensor
from converter.writing.torch_archive import Archive, lay_out_archive
from tests.support.archives import NOTES, write, write_sparse


def check_wide_fields(path: Path) -> None:
    """A narrow field is full if and only if the zip64 field holds its number, in the order of APPNOTE 4.5.3."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            numbers = (info.file_size, info.file_size, info.header_offset)
            assert info.extra == wide_field([number for number in numbers if number >= 2**32 - 1])
            file.seek(info.header_offset)
            header = file.read(200)
            assert header[18:26] == struct.pack("<2L", *[min(info.file_size, 2**32 - 1)] * 2)
            field = wide_field([number for number in numbers[:2] if number >= 2**32 - 1])
            # the padding follows
            assert header[30 + len(info.filename) :].startswith(field + b"FB")


def wide_field(numbers: list[int]) -> bytes:
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""


def check_sparse(path: Path, archive: Archive, size: int) -> None:
    """A large tensor that ends in `end`, and a small one behind it."""
    write_sparse(path, archive, {"large": (size - 3, b"end"), "small": (0, b"1234")})
    loaded: dict[str, Any] = torch.load(path, weights_only=True, mmap=True)
    assert loaded["large"].shape == (size,)
    assert bytes(loaded["large"][-3:].tolist()) == b"end"
    assert bytes(loaded["small"].tolist()) == b"1234"
    with zipfile.ZipFile(path) as zipped:
        assert zipped.getinfo("archive/data/0").file_size == size
        assert zipped.read("archive/data/1") == b"1234"
        assert zipped.read("archive/conversion.json") == NOTES
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["large"].nbytes == size
        assert checkpoint.tensors["large"].storage.offset == archive.offsets["large"]
        assert checkpoint.read("small").tobytes() == b"1234"
    check_wide_fields(path)


def large_and_small(size: int) -> Archive:
    return lay_out_archive(
        [Tensor("large", (size,), DTYPES["uint8"]), Tensor("small", (4,), DTYPES["uint8"])], "", len(NOTES)
    )


@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 5 * 2**30 + 1])
def test_a_tensor_at_and_beyond_what_32_bits_hold(tmp_path: Path, size: int) -> None:
    check_sparse(tmp_path / "w.pth", large_and_small(size), size)


def test_a_size_and_a_position_beyond_what_32_bits_hold(tmp_path: Path) -> None:
    tensors = [Tensor(name, (2**32 + 5,), DTYPES["uint8"]) for name in ("large", "behind")]
    archive = lay_out_archive([tensors[0], Tensor("small", (4,), DTYPES["uint8"]), tensors[1]], "", len(NOTES))
    check_sparse(tmp_path / "w.pth", archive, 2**32 + 5)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_header_at_the_edge_of_what_32_bits_hold(tmp_path: Path, beyond: int) -> None:
    size = 2**32 - 1 + beyond - large_and_small(2**32 - 1000).offsets["large"]
    archive = large_and_small(size)
    assert archive.records[3].start == 2**32 - 1 + beyond
    check_sparse(tmp_path / "w.pth", archive, size)


def test_a_directory_at_the_edge_of_what_32_bits_hold(tmp_path: Path) -> None:
    spare = large_and_small(2**31)
    size = 2**31 + 2**32 - 1 - spare.records[-1].end
    for adjusted in range(size - 64, size + 65, 16):
        check_sparse(tmp_path / "w.pth", large_and_small(adjusted), adjusted)


@pytest.mark.parametrize("count", [65_531, 65_532])
def test_as_many_records_as_16_bits_count_and_more(tmp_path: Path, count: int) -> None:
    tensors = {str(key): (Tensor(str(key), (1,), DTYPES["uint8"]), bytes([key % 251])) for key in range(count)}
    path = write(tmp_path / "w.pth", tensors)
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert [tensor.item() for tensor in loaded.values()] == [key % 251 for key in range(count)]
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == count + 4
        assert archive.testzip() is None
    with SourceFile(path) as source:
        assert len(ZipArchive(source).members) == count + 4
