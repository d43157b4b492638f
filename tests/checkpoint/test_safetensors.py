"""Safetensors, in one file and in shards: what the library writes is read, and what it would refuse is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.checkpoint import open_checkpoint
from converter.errors import CheckpointError, CorruptCheckpointError, NotACheckpointError, RootError
from tests.support.craft_files import entry, safetensors
from tests.support.craft_pickle import SIX
from tests.support.reading import SIX as SIX_BITS
from tests.support.reading import Apart, contents, loaded, refusal

STATE_DICT = {
    "z": torch.arange(6.0).view(2, 3),
    "a": torch.tensor(1.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3, dtype=torch.int32),
    "flags": torch.tensor([True, False]),
    "Ünïcode \"quoted\"": torch.arange(3, dtype=torch.int16),
}  # fmt: skip
DTYPES = [
    "bool", "uint8", "int8", "int16", "uint16", "float16", "bfloat16", "int32", "uint32", "float32", "float64",
    "int64", "uint64", "float8_e4m3fn", "float8_e5m2", "complex64",
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def save_shards(folder: Path, **changes: object) -> Path:
    """Two shards and their index, as the Hub lays them out; `changes` replace fields of the index."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file({"a": torch.arange(6.0), "b": torch.ones(2)}, folder / names[0], {"format": "pt"})
    save_file({"c": torch.zeros(3)}, folder / names[1], {"format": "pt"})
    weight_map = {"a": names[0], "b": names[0], "c": names[1]} | changes.pop("weight_map", {})
    index = folder / "model.safetensors.index.json"
    weight_map = {key: name for key, name in weight_map.items() if name is not None}
    index.write_text(json.dumps({"metadata": {"total_size": 44}, "weight_map": weight_map, **changes}))
    return index


def test_one_file(path: Path) -> None:
    save_file(STATE_DICT, path)
    assert contents(path) == loaded(load_file(path))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str, path: Path) -> None:
    raw = torch.arange(64, dtype=torch.uint8) % (2 if dtype == "bool" else 251)
    state_dict = {"w": raw.view(getattr(torch, dtype))}
    save_file(state_dict, path)
    assert contents(path) == loaded(state_dict)


def test_layout_metadata_and_root(path: Path) -> None:
    save_file(STATE_DICT, path, {"format": "pt", "epoch": "3"})
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.layout, checkpoint.metadata, checkpoint.root, checkpoint.roots
    assert found == ("safetensors", {"format": "pt", "epoch": "3"}, "", {"": len(STATE_DICT)})


def test_tensors_come_in_the_order_in_which_they_lie(path: Path) -> None:
    path.write_bytes(safetensors({"b": entry(24, 48), "a": entry()}, SIX + SIX))
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]


def test_no_tensors_at_all(path: Path) -> None:
    save_file({}, path)
    assert contents(path) == {}


def test_another_suffix(tmp_path: Path) -> None:
    save_file(STATE_DICT, tmp_path / "weights.bin")
    assert contents(tmp_path / "weights.bin") == loaded(STATE_DICT)


@pytest.mark.parametrize("length", [*range(80, 80 + 256), 0x0A0A, 0x3C20, 0x8B1F])
def test_a_header_of_any_length(length: int, path: Path) -> None:
    header = json.dumps({"w": entry()}).ljust(length)
    path.write_bytes(safetensors(header, SIX))
    assert contents(path) == SIX_BITS


def test_bytes_that_tar_has_at_that_place(path: Path) -> None:
    header = f'{{"w": {json.dumps(entry())}, "{"x" * 100}ustar": {json.dumps(entry(24, 24, [0]))}}}'
    spaces = " " * (257 - 8 - header.index("ustar"))
    path.write_bytes(safetensors("{" + spaces + header[1:], SIX))
    assert (path.read_bytes()[257:262], len(contents(path))) == (b"ustar", 2)


def test_a_root_cannot_be_chosen(path: Path) -> None:
    save_file(STATE_DICT, path)
    assert "--root" in refusal(path, RootError, root="model")


def nested(depth: int) -> str:
    return '{"w": ' + "[" * depth + "]" * depth + "}"


W = json.dumps(entry())
LIES: dict[str, bytes] = {
    "length beyond the file": safetensors({"w": entry()}, SIX, length=1000),
    "length of 2^63": safetensors({"w": entry()}, SIX, length=1 << 63),
    "length of 2^64 - 1": safetensors({"w": entry()}, SIX, length=(1 << 64) - 1),
    "length of 0": safetensors({"w": entry()}, SIX, length=0),
    "length one short": safetensors({"w": entry()}, SIX, length=len(json.dumps({"w": entry()})) - 1),
    "length into the data": safetensors({"w": entry()}, SIX, length=len(json.dumps({"w": entry()})) + 4),
    "no JSON": safetensors("{w: 1}"),
    "two objects": safetensors("{}{}"),
    "a list": safetensors("[]"),
    "a number": safetensors("1"),
    "empty": safetensors(""),
    "not UTF-8": safetensors(b'{"\xff": ' + W.encode() + b"}", SIX),
    "UTF-16": safetensors(json.dumps({"w": entry()}).encode("utf-16-le"), SIX),
    "byte order mark": safetensors(b"\xef\xbb\xbf" + json.dumps({"w": entry()}).encode(), SIX),
    "NaN": safetensors('{"w": NaN}'),
    "Infinity": safetensors('{"w": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 24]}}', SIX),
    "deep lists": safetensors(nested(100_000)),
    "deep objects": safetensors('{"w":' * 100_000 + "1" + "}" * 100_000),
    "number of 5000 digits": safetensors('{"w": ' + "9" * 5000 + "}"),
    "name twice": safetensors(f'{{"w": {W}, "w": {W}}}', SIX),
    "name twice by an escape": safetensors(f'{{"w": {W}, "\\u0077": {W}}}', SIX),
    "field twice": safetensors('{"w": {"dtype": "I8", "dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}', SIX),
    "metadata that is a list": safetensors({"__metadata__": [], "w": entry()}, SIX),
    "metadata that is null": safetensors({"__metadata__": None, "w": entry()}, SIX),
    "metadata of numbers": safetensors({"__metadata__": {"a": 1}, "w": entry()}, SIX),
    "metadata of objects": safetensors({"__metadata__": {"a": {}}, "w": entry()}, SIX),
    "metadata twice": safetensors(f'{{"__metadata__": {{}}, "__metadata__": {{}}, "w": {W}}}', SIX),
    "bytes after the data": safetensors({"w": entry()}, SIX + b"\0"),
    "bytes missing": safetensors({"w": entry()}, SIX[:-1]),
    "no data": safetensors({"w": entry()}),
    "bytes of no tensor": safetensors({}, SIX),
    "tensor that is null": safetensors({"w": None}, SIX),
    "tensor that is a list": safetensors({"w": []}, SIX),
    "tensor without a shape": safetensors({"w": {"dtype": "F32", "data_offsets": [0, 24]}}, SIX),
    "tensor with another field": safetensors({"w": {**entry(), "strides": [1, 2]}}, SIX),
    "gap before": safetensors({"w": entry(4, 28)}, bytes(4) + SIX),
    "gap between": safetensors({"v": entry(), "w": entry(28, 52)}, SIX + bytes(4) + SIX),
    "overlap": safetensors({"v": entry(), "w": entry(20, 44)}, SIX + SIX[:20]),
    "two tensors at one place": safetensors({"v": entry(), "w": entry()}, SIX),
    "end before the beginning": safetensors({"w": entry(24, 0)}, SIX),
    "negative beginning": safetensors({"w": entry(-24, 0)}, SIX),
    "end of 2^63": safetensors({"w": entry(0, 1 << 63)}, SIX),
    "end of 2^62, and so the shape": safetensors({"w": entry(0, 1 << 62, [1 << 60])}, SIX),
    "one offset": safetensors({"w": {**entry(), "data_offsets": [24]}}, SIX),
    "three offsets": safetensors({"w": {**entry(), "data_offsets": [0, 24, 48]}}, SIX),
    "offsets that are floats": safetensors({"w": entry(0.0, 24.0)}, SIX),
    "offsets that are text": safetensors({"w": entry("0", "24")}, SIX),
    "offsets that are truth": safetensors({"w": entry(False, True, [1], "U8")}, b"\0"),
    "larger dtype": safetensors({"w": entry(dtype="F64")}, SIX),
    "smaller dtype": safetensors({"w": entry(dtype="F16")}, SIX),
    "dtype that is null": safetensors({"w": entry(dtype=None)}, SIX),
    "dtype that is a list": safetensors({"w": entry(dtype=["F32"])}, SIX),
    "larger shape": safetensors({"w": entry(shape=[2, 4])}, SIX),
    "smaller shape": safetensors({"w": entry(shape=[2, 2])}, SIX),
    "negative shape": safetensors({"w": entry(shape=[-2, -3])}, SIX),
    "shape that wraps": safetensors({"w": entry(shape=[2, (1 << 63) + 3])}, SIX),
    "shape that is text": safetensors({"w": entry(shape="23")}, SIX),
    "shape that is null": safetensors({"w": entry(shape=None)}, SIX),
    "shape of floats": safetensors({"w": entry(shape=[2.0, 3.0])}, SIX),
    "shape of truth": safetensors({"w": entry(0, 4, [True])}, SIX[:4]),
    "1000 dimensions": safetensors({"w": entry(0, 4, [1] * 1000)}, SIX[:4]),
    "escape in a broken name": safetensors({"w\x1b[2J\n": entry(4, 28)}, bytes(4) + SIX),
    "long broken name": safetensors({"w" * 1_000_000: entry(4, 28)}, bytes(4) + SIX),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_the_header_is_refused(lie: str, path: Path) -> None:
    path.write_bytes(LIES[lie])
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
    refusal(path)


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.startswith(("larger", "smaller", "gap", "overlap"))])
def test_a_tensor_that_lies_is_named(lie: str, path: Path) -> None:
    path.write_bytes(LIES[lie])
    assert "'w'" in refusal(path, CorruptCheckpointError)


@pytest.mark.parametrize("shape", [[0, 1 << 62], [1 << 62, 0, 1 << 62], [1 << 62, 0]], ids=str)
def test_a_tensor_without_elements_is_empty_or_refused(shape: list[int], path: Path) -> None:
    path.write_bytes(safetensors({"w": entry(0, 0, shape)}))
    try:
        found = contents(path)["w"]
    except CheckpointError:
        return
    assert found == ("float32", tuple(shape), b"")


def test_a_tensor_of_unknown_dtype_is_refused_and_its_neighbours_read(path: Path) -> None:
    path.write_bytes(safetensors({"w": entry(), "x": entry(24, 48, dtype="F3")}, SIX + SIX))
    message = refusal(path)
    assert ("'x'" in message, "'F3'" in message, contents(path)) == (True, True, SIX_BITS)


def test_large_headers_take_little(apart: Apart, tmp_path: Path) -> None:
    many = "{" + ",".join(f'"{i}":{json.dumps(entry(0, 0, [0]))}' for i in range(100_000))
    files = {
        "names": many + "}",
        "last name twice": "{" + "".join(f'"{i}":1,' for i in range(30_000)) + '"last":1, "last":1}',
        "lists": '{"w": [' + "[]," * 8_000_000 + "[]]}",
        "texts": '{"w": [' + '"ab",' * 6_500_000 + '""]}',
        "blanks": "{" + " " * 40_000_000 + "}",
        "metadata": json.dumps({"__metadata__": {str(i): "" for i in range(500_000)}}),
    }
    for name, header in files.items():
        (tmp_path / name).write_bytes(safetensors(header))
    outcomes = apart(*(tmp_path / name for name in files))
    slow = {name: outcome.seconds for name, outcome in zip(files, outcomes, strict=True) if outcome.seconds > 5}
    large = {name: outcome.growth for name, outcome in zip(files, outcomes, strict=True) if outcome.growth > 300}
    assert (slow, large) == ({}, {})


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    index = save_shards(tmp_path)
    assert contents(index) == loaded({"a": torch.arange(6.0), "b": torch.ones(2), "c": torch.zeros(3)})


def test_layout_files_and_size_of_shards(tmp_path: Path) -> None:
    with open_checkpoint(save_shards(tmp_path)) as checkpoint:
        found = checkpoint.layout, checkpoint.size, [file.name[:11] for file in checkpoint.files]
    shards = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert found == ("safetensors-sharded", shards, ["model-00001", "model-00002"])


def test_a_folder_of_shards(tmp_path: Path) -> None:
    assert contents(save_shards(tmp_path).parent) == contents(tmp_path / "model.safetensors.index.json")


def test_a_folder_of_one_file(path: Path) -> None:
    save_file(STATE_DICT, path)
    assert contents(path.parent) == loaded(STATE_DICT)


def test_shards_that_are_links_as_in_the_hubs_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    save_shards(blobs)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("..") / "blobs" / blob.name)
    assert len(contents(snapshot)) == 3


FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX_LIES = {
    "shard that is missing": {"weight_map": {"c": "model-00003-of-00002.safetensors"}},
    "tensor in the wrong shard": {"weight_map": {"a": SECOND}},
    "tensor that no shard has": {"weight_map": {"d": FIRST}},
    "tensor that the index lacks": {"weight_map": {"b": None}},
    "shard above": {"weight_map": {"c": f"../{SECOND}"}},
    "shard in a folder": {"weight_map": {"c": f"sub/{SECOND}"}},
    "shard at an absolute path": {"weight_map": {"c": "/etc/passwd"}},
    "shard that is a folder": {"weight_map": {"c": "."}},
    "shard that is the folder above": {"weight_map": {"c": ".."}},
    "shard without a name": {"weight_map": {"c": ""}},
    "shard with a NUL": {"weight_map": {"c": "a\0b"}},
    "shard with an escape": {"weight_map": {"c": "a\x1b[2J\n"}},
    "shard with a long name": {"weight_map": {"c": "a" * 100_000}},
    "shard that is the index": {"weight_map": {"c": "model.safetensors.index.json"}},
    "shard that is a number": {"weight_map": {"c": 1}},
    "shard that is a list": {"weight_map": {"c": [SECOND]}},
}


@pytest.mark.parametrize("lie", INDEX_LIES)
def test_a_lie_in_the_index_is_refused(lie: str, tmp_path: Path) -> None:
    index = save_shards(tmp_path, **INDEX_LIES[lie])
    with pytest.raises(CheckpointError) as caught:
        contents(index)
    assert (str(tmp_path) in str(caught.value), str(caught.value).isprintable()) == (True, True)


NO_INDEX = [
    "",
    "[]",
    "{}",
    "{",
    "null",
    '{"weight_map": []}',
    '{"weight_map": {}, "weight_map": {}}',
    "\ufeff{}",
    "[" * 100_000,
]


@pytest.mark.parametrize("text", NO_INDEX, ids=lambda text: text[:40])
def test_an_index_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    refusal(index, CorruptCheckpointError)


def test_a_shard_that_is_no_safetensors_is_refused_by_its_name(tmp_path: Path) -> None:
    index = save_shards(tmp_path)
    (tmp_path / SECOND).write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match=SECOND):
        open_checkpoint(index)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    assert "model.safetensors" in refusal(tmp_path, NotACheckpointError)


def test_values_are_never_converted(path: Path) -> None:
    signalling = np.array([0x7FA00001, 0xFFC12345, 0x00000001], "<u4")
    path.write_bytes(safetensors({"w": entry(0, 12, [3])}, signalling.tobytes()))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("w").view("<u4").tolist() == signalling.tolist()
