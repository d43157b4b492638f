"""What is written in the layout of torch.save is loaded by torch as what it was, and by everything that reads zip."""

from __future__ import annotations

import hashlib
import io
import pickletools
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from converter.checkpoint import DTYPES
from converter.errors import DestinationError
from converter.planning.plan import Tensor
from converter.writing.shards import nbytes
from converter.writing.torch_archive import lay_out_archive
from tests.support.archives import NOTES, bits, check_read_by_all, content, expected, pieces_of, write

TYPED = [
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
]
SHAPES = [
    (),
    (0,),
    (1,),
    (7,),
    (255,),
    (256,),
    (65_535,),
    (65_536,),
    (2, 3),
    (3, 0, 2),
    (2, 3, 4, 5),
    (1, 2, 1, 3, 1, 2),
]
HOSTILE = [
    *("", ".", "..", "../../etc/passwd", "/absolute", "a\\b", "a/b", "data.pkl", "archive/data/0", "version"),
    *("a\nb", "a\0b", "c__builtin__\neval\n", ".", "\x80\x02", "naïve", "層.权重", "🦙", "\ud800", "\udcff.x"),
    *("\u202egnp", "x" * 1000, "__class__", "self"),
]


EVERYTHING = content(*((f"{dtype}.{'x'.join(map(str, s))}", s, dtype) for dtype in TYPED for s in SHAPES))
SMALL = content(("a.weight", (2, 3), "float32"), ("a.bias", (3,), "float32"), ("steps", (), "int64"))


@pytest.mark.parametrize("root", ["", "model", "state_dict", "模型"])
def test_every_dtype_and_shape_is_read_as_it_was(tmp_path: Path, root: str) -> None:
    check_read_by_all(write(tmp_path / "w.pth", EVERYTHING, root), EVERYTHING, root)


def test_every_dtype_of_a_typed_storage_was_tried() -> None:
    assert set(TYPED) == {dtype.name for dtype in DTYPES.values() if hasattr(torch, dtype.storage or "")}


def test_the_whole_file_can_be_unpickled_by_pickle_itself(tmp_path: Path) -> None:
    loaded = torch.load(write(tmp_path / "w.pth", EVERYTHING), weights_only=False)
    assert {name: bits(tensor) for name, tensor in loaded.items()} == expected(EVERYTHING)


def test_old_readers_know_all_that_is_in_the_pickle(tmp_path: Path) -> None:
    with zipfile.ZipFile(write(tmp_path / "w.pth", EVERYTHING, "model")) as archive:
        opcodes = list(pickletools.genops(archive.read("archive/data.pkl")))
    assert max(opcode.proto for opcode, _, _ in opcodes) == 2
    named = {argument for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}
    assert named - {f"torch {dtype.storage}" for dtype in DTYPES.values()} == {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
    }


def test_bare_root_is_an_ordered_dict(tmp_path: Path) -> None:
    assert type(torch.load(write(tmp_path / "w.pth", SMALL), weights_only=True)) is OrderedDict


def test_named_root_is_an_ordered_dict_in_a_dict(tmp_path: Path) -> None:
    loaded = torch.load(write(tmp_path / "w.pth", SMALL, "model"), weights_only=True)
    assert type(loaded) is dict
    assert list(loaded) == ["model"]
    assert type(loaded["model"]) is OrderedDict


def test_a_state_dict_of_nothing(tmp_path: Path) -> None:
    assert torch.load(write(tmp_path / "w.pth", {}, "model"), weights_only=True) == {"model": OrderedDict()}


def test_tensors_are_plain_leaves_as_torch_lays_them_out(tmp_path: Path) -> None:
    loaded = torch.load(write(tmp_path / "w.pth", EVERYTHING), weights_only=True)
    for tensor in loaded.values():
        assert type(tensor) is torch.Tensor
        assert (tensor.requires_grad, tensor.storage_offset(), tensor.device.type) == (False, 0, "cpu")
        assert tensor.stride() == torch.empty(tensor.shape).stride()


def test_tensors_share_neither_storages_nor_hooks(tmp_path: Path) -> None:
    loaded = torch.load(write(tmp_path / "w.pth", EVERYTHING), weights_only=True)
    for tensor in loaded.values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    filled = [tensor for tensor in loaded.values() if tensor.numel()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in filled}) == len(filled)
    assert len({id(tensor._backward_hooks) for tensor in filled}) == len(filled)
    assert all(type(tensor._backward_hooks) is OrderedDict and not tensor._backward_hooks for tensor in filled)


def test_python_finds_the_zip_archive_sound(tmp_path: Path) -> None:
    with zipfile.ZipFile(write(tmp_path / "w.pth", EVERYTHING)) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_records_are_those_of_torch_and_the_notes(tmp_path: Path) -> None:
    with zipfile.ZipFile(write(tmp_path / "w.pth", SMALL)) as archive:
        assert archive.namelist() == [
            *("archive/data.pkl", "archive/byteorder", "archive/data/0", "archive/data/1", "archive/data/2"),
            *("archive/version", "archive/conversion.json"),
        ]
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/conversion.json") == NOTES


def test_local_headers_say_what_the_directory_says(tmp_path: Path) -> None:
    raw = write(tmp_path / "w.pth", SMALL).read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for info in archive.infolist():
            header = raw[info.header_offset :]
            crc, packed, size = (int.from_bytes(header[i : i + 4], "little") for i in (14, 18, 22))
            assert (crc, packed, size) == (info.CRC, info.file_size, info.file_size)


def test_frame_and_tensors_cover_every_byte_once() -> None:
    size, pieces = pieces_of(EVERYTHING, "model")
    end = 0
    for position, piece in sorted(piece for piece in pieces if piece[1]):
        assert position == end
        end += len(piece)
    assert end == size


def test_tensors_lie_on_multiples_of_64_where_torch_finds_them(tmp_path: Path) -> None:
    archive = lay_out_archive([tensor for tensor, _ in EVERYTHING.values()], "", len(NOTES))
    reader = torch._C.PyTorchFileReader(str(write(tmp_path / "w.pth", EVERYTHING)))
    for key, name in enumerate(EVERYTHING):
        assert archive.offsets[name] % 64 == 0
        assert reader.get_record_offset(f"data/{key}") == archive.offsets[name]


def test_torch_does_not_compute_offsets_from_a_layout_that_is_not_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", EVERYTHING)
    archive = lay_out_archive([tensor for tensor, _ in EVERYTHING.values()], "", len(NOTES))
    with FakeTensorMode():
        fake = torch.load(path, weights_only=True)
    assert {name: t.untyped_storage()._checkpoint_offset for name, t in fake.items()} == archive.offsets
    config = pytest.importorskip("torch.utils.serialization.config", reason="this torch never computes offsets")
    with config.patch("load.calculate_storage_offsets", True):
        loaded = torch.load(path, weights_only=True, mmap=True)
    assert {name: bits(tensor) for name, tensor in loaded.items()} == expected(EVERYTHING)


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.pth", SMALL, "model"), write(tmp_path / "other.pth", SMALL, "model")
    assert one.read_bytes() == other.read_bytes()


def test_bytes_are_those_that_were_always_written(tmp_path: Path) -> None:
    """Published files are named by their hash: a change of layout is to be seen here first."""
    tensors = {name: (tensor, bytes(range(nbytes(tensor)))) for name, (tensor, _) in SMALL.items()}
    digest = hashlib.sha256(write(tmp_path / "w.pth", tensors, "model").read_bytes()).hexdigest()
    assert digest == "f80433b52d3b5c54a76fb84550625d7ea53c08c02d04c4cf078d138f863e877a"


def test_names_are_data_and_never_members_or_opcodes(tmp_path: Path) -> None:
    tensors = content(*((name, (index,), "int16") for index, name in enumerate(HOSTILE)))
    path = write(tmp_path / "w.pth", tensors, "model")
    check_read_by_all(path, tensors, "model")
    with zipfile.ZipFile(path) as archive:
        assert {name for name in archive.namelist() if "data/" in name} == {
            f"archive/data/{key}" for key in range(len(tensors))
        }


@settings(max_examples=60)
@given(
    described=st.lists(
        st.tuples(st.text(st.characters()), st.lists(st.integers(0, 5), max_size=5).map(tuple), st.sampled_from(TYPED)),
        min_size=1,
        max_size=12,
        unique_by=lambda item: item[0],
    ),
    root=st.text(st.characters(exclude_categories=["Cs"]), max_size=200),  # as in a table
    seed=st.integers(0, 9),
)
def test_any_names_shapes_and_dtypes(
    tmp_path: Path, described: list[tuple[str, tuple[int, ...], str]], root: str, seed: int
) -> None:
    tensors = content(*described, seed=seed)
    path = write(tmp_path / "w.pth", tensors, root)
    check_read_by_all(path, tensors, root)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(
    "dtype", sorted(dtype.name for dtype in DTYPES.values() if not hasattr(torch, dtype.storage or ""))
)
def test_a_dtype_that_torch_stores_without_a_type_is_refused(dtype: str) -> None:
    tensors = [Tensor("fine", (2,), DTYPES["float32"]), Tensor("layer.scale", (2,), DTYPES[dtype])]
    with pytest.raises(DestinationError) as caught:
        lay_out_archive(tensors, "model", 2)
    step = "write safetensors instead" if DTYPES[dtype].safetensors else "choose a dtype that it has"
    assert str(caught.value) == f"'layer.scale' is {dtype}, for which torch has no typed storage class; {step}"


@pytest.mark.parametrize("notes", [b"", NOTES + b" ", NOTES[:-1]])
def test_notes_of_another_size_than_was_laid_out_are_refused(notes: bytes) -> None:
    archive = lay_out_archive([], "", len(NOTES))
    with pytest.raises(ValueError, match=r"archive/conversion\.json has"):
        list(archive.frame({}, notes))


def test_damage_to_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", SMALL)
    raw = bytearray(path.read_bytes())
    raw[lay_out_archive([t for t, _ in SMALL.values()], "", len(NOTES)).offsets["a.bias"]] ^= 1
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() == "archive/data/1"


def test_what_is_laid_out_is_as_long_as_its_elements() -> None:
    for tensor, raw in EVERYTHING.values():
        assert len(raw) == prod(tensor.shape) * tensor.dtype.itemsize
