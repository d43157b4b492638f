"""Tensors that lie about their storage, shape, strides, offset or dtype are refused when the file is opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from converter.checkpoint import DTYPES, Checkpoint, TensorInfo, open_checkpoint
from converter.checkpoint.index import PIECES_LIMIT
from converter.checkpoint.source import SourceFile
from converter.checkpoint.storage import CHUNK, Storage
from converter.errors import CheckpointError, CorruptCheckpointError, UnsupportedCheckpointError
from tests.support.craft_files import Pack, Write, torch_zip
from tests.support.craft_pickle import SIX, Opcodes, call, name, op, storage, tensor, value
from tests.support.reading import check_message, contents, refusal

V2 = name("torch._utils", "_rebuild_tensor_v2")
V3 = name("torch._utils", "_rebuild_tensor_v3")
FLOAT = name("torch", "float32")


def rebuilt(*arguments: object, function: Opcodes = V2) -> Opcodes:
    return call(function, *arguments)


def referring(*reference: object) -> Opcodes:
    return Opcodes(value(reference) + op("BINPERSID"))


def untyped(numel: object, dtype: object, shape: tuple[int, ...] = (6,)) -> Opcodes:
    strides = (1,) * len(shape)
    return rebuilt(storage("0", numel, "UntypedStorage"), 0, shape, strides, False, None, dtype, function=V3)


LIES = {
    # what it says of its storage
    "storage larger than its data": tensor(numel=7),
    "storage smaller than its data": tensor(shape=(2, 2), numel=4),
    "storage of 2^62 elements": tensor(numel=1 << 62),
    "storage of 2^62 elements, and so the tensor": tensor(shape=(1 << 62,)),
    "storage of 2^64 elements": tensor(numel=1 << 64),
    "storage of -1 elements": tensor(numel=-1),
    "storage of a float": tensor(numel=6.0),
    "storage of True": tensor(shape=(1,), numel=True),
    "storage of text": tensor(numel="6"),
    "storage of None": tensor(numel=value(None)),
    "storage of another itemsize": tensor(kind="DoubleStorage"),
    "storage that is missing": tensor(key="1"),
    "storage above the folder": tensor(key="../data.pkl"),
    "storage that is another member": tensor(key="../byteorder"),
    "storage at an absolute path": tensor(key="/etc/passwd"),
    "storage with a NUL in its key": tensor(key="0\x00"),
    "storage without a key": tensor(key=""),
    "storage with a number for a key": tensor(key=0),
    "storage with a tuple for a key": tensor(key=("0",)),
    "no reference to a storage": rebuilt(None, 0, (2, 3), (3, 1), False, None),
    "reference to a module": rebuilt(referring("module", FLOAT, "0", "cpu", 6), 0, (2, 3), (3, 1), False, None),
    "reference that is too short": rebuilt(referring("storage", FLOAT, "0"), 0, (2, 3), (3, 1), False, None),
    "reference that is too long": rebuilt(referring("storage", *"abcdefg"), 0, (2, 3), (3, 1), False, None),
    "reference that is empty": rebuilt(referring(), 0, (2, 3), (3, 1), False, None),
    "reference that is text": rebuilt(Opcodes(op("PERSID", "0")), 0, (2, 3), (3, 1), False, None),
    "reference without a class": rebuilt(referring("storage", "FloatStorage", "0", "cpu", 6), 0, (6,), (1,), 0, 0),
    # shape, strides and offset
    "negative length": tensor(shape=(-2, -3), numel=6),
    "one negative length": tensor(shape=(2, -3), strides=(3, 1), numel=6),
    "length of 2^62": tensor(shape=(1 << 62,), numel=6),
    "length of 2^64": tensor(shape=(1 << 64,), numel=6),
    "product beyond 2^64": tensor(shape=(1 << 31, 1 << 31, 1 << 31), numel=6),
    "product that wraps to 0": tensor(shape=(1 << 32, 1 << 32), numel=6),
    "product that wraps to 6": tensor(shape=(2, (1 << 63) + 3), numel=6),
    "shape that is a list": tensor(shape=Opcodes(value([2, 3])), strides=(3, 1), numel=6),
    "shape that is a number": tensor(shape=value(6), strides=(1,), numel=6),
    "shape with text": tensor(shape=value((2, "3")), strides=(3, 1), numel=6),
    "shape with a float": tensor(shape=value((2, 3.0)), strides=(3, 1), numel=6),
    "shape with True": tensor(shape=value((True, 3)), strides=(3, 1), numel=6),
    "shape with None": tensor(shape=value((2, None)), strides=(3, 1), numel=6),
    "negative stride": tensor(strides=(-3, 1), offset=3),
    "stride of 2^62": tensor(strides=(1 << 62, 1)),
    "stride of -2^63": tensor(strides=(-(1 << 63), 1)),
    "more strides than lengths": tensor(strides=(3, 1, 1)),
    "fewer strides than lengths": tensor(strides=(1,)),
    "no strides": tensor(strides=value(None)),
    "negative offset": tensor(shape=(1,), offset=-1, numel=6),
    "offset behind the storage": tensor(shape=(1,), offset=6, numel=6),
    "offset of 2^62": tensor(offset=1 << 62),
    "offset of 2^63 - 1": tensor(offset=(1 << 63) - 1),
    "offset that is a float": tensor(offset=0.0),
    "one element too many": tensor(shape=(7,), numel=6),
    "one element too far by its offset": tensor(offset=1),
    "one element too far by its stride": tensor(strides=(4, 1)),
    "one row too many of stride 0": tensor(shape=(3, 7), strides=(0, 1), numel=6),
    # the rest
    "conjugated float": tensor(more=[{"conj": True}]),
    "negated bool": tensor(kind="BoolStorage", numel=24, more=[{"neg": True}]),
    "metadata that is text": tensor(more=["conj"]),
    "no arguments": rebuilt(),
    "too few arguments": rebuilt(storage(), 0, (2, 3)),
    "too many arguments": rebuilt(storage(), 0, (2, 3), (3, 1), False, None, {}, 1, 2),
    "arguments in a list": Opcodes(V2 + value([storage(), 0, (2, 3), (3, 1), False, None]) + op("REDUCE")),
    "no dtype": untyped(24, None),
    "dtype that is text": untyped(24, "float32"),
    "dtype that is a function": untyped(24, name("os", "system")),
    "untyped storage one byte short": untyped(23, FLOAT),
    "untyped storage counted in elements": untyped(6, FLOAT),
    "dtype larger than what is there": untyped(24, name("torch", "float64")),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_with_the_name_of_the_tensor(lie: str, write: Write) -> None:
    message = refusal(write(torch_zip({"model": {"layer.weight": LIES[lie]}}, {"0": SIX})), CorruptCheckpointError)
    assert "'layer.weight'" in message


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_when_the_file_is_opened(lie: str, pack: Pack) -> None:
    path = pack({"model": {"layer.weight": LIES[lie]}})
    with pytest.raises(CorruptCheckpointError) as caught:
        open_checkpoint(path)
    check_message(str(caught.value), path)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_a_state_dict_that_is_not_taken_does_no_harm(lie: str, write: Write) -> None:
    path = write(torch_zip({"model": {"w": tensor()}, "model_ema": {"w": LIES[lie]}}, {"0": SIX}))
    assert list(contents(path)) == ["w"]


UNREADABLE = {
    "33 dimensions": tensor(shape=(1,) * 33, numel=6),
    "65 dimensions": tensor(shape=(1,) * 65, numel=6),
    "10000 dimensions": tensor(shape=(1,) * 10_000, numel=6),
    "expansion to 2^40 elements": tensor(shape=(1 << 40,), strides=(0,), numel=6),
    "expansion to 2^124 elements": tensor(shape=(1 << 62, 1 << 62), strides=(0, 0), numel=6),
    "overlap of 2^40 elements": tensor(shape=(1 << 20, 1 << 20), strides=(0, 0), numel=6),
    "unknown dtype": untyped(24, name("torch", "float9")),
    "unknown storage": tensor(kind="FutureStorage"),
    "storage of another package": rebuilt(
        referring("storage", name("os", "FloatStorage"), "0", "cpu", 6), 0, (6,), (1,), False, None
    ),
    "quantised storage": tensor(kind="QInt32Storage"),
    "untyped storage": tensor(kind="UntypedStorage", numel=24),
    "unknown metadata": tensor(more=[{"future": True}]),
    "state after it was built": Opcodes(tensor() + value({"x": 1}) + op("BUILD")),
    "parameters in parameters": value(None),
}
for _ in range(20):
    wrapped = UNREADABLE["parameters in parameters"]
    UNREADABLE["parameters in parameters"] = call(name("torch._utils", "_rebuild_parameter"), wrapped, True, None)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_tensor_beyond_what_is_read_is_refused_when_it_is_read(kind: str, write: Write) -> None:
    message = refusal(write(torch_zip({"good": tensor(), "layer.weight": UNREADABLE[kind]}, {"0": SIX})))
    assert "'layer.weight'" in message


@pytest.mark.parametrize("kind", UNREADABLE)
def test_it_does_not_keep_others_from_being_read(kind: str, write: Write) -> None:
    path = write(torch_zip({"good": tensor(), "layer.weight": UNREADABLE[kind]}, {"0": SIX}))
    assert list(contents(path)) == ["good"]


@pytest.mark.parametrize("shape", [(0, 1 << 62), (1 << 62, 0, 1 << 62), (0, 3), (1 << 62, 0)], ids=str)
@pytest.mark.parametrize("offset", [0, 6, 1 << 62])
def test_a_tensor_without_elements_is_empty_or_refused(shape: tuple[int, ...], offset: int, pack: Pack) -> None:
    path = pack({"w": tensor(shape=shape, strides=(1,) * len(shape), offset=offset, numel=6)})
    try:
        found = contents(path)["w"]
    except CheckpointError:
        return
    assert found == ("float32", shape, b"")


def test_a_small_expansion_is_read(pack: Pack) -> None:
    assert contents(pack({"w": tensor(shape=(2, 6), strides=(0, 1), numel=6)}))["w"][2] == SIX * 2


def test_any_stride_is_read_where_a_length_is_one(pack: Pack) -> None:
    path = pack({"w": tensor(shape=(3, 1, 2), strides=(1, (1 << 63) - 1, 3), numel=6)})
    assert contents(path) == contents(pack({"w": tensor(shape=(3, 1, 2), strides=(1, 1, 3), numel=6)}))


def test_a_bool_that_is_neither_0_nor_1_is_refused_when_it_is_read(write: Write) -> None:
    path = write(torch_zip({"flag": tensor(kind="BoolStorage", shape=(4,))}, {"0": b"\0\1\2\1"}))
    assert "'flag'" in refusal(path, CorruptCheckpointError)


def test_elements_far_apart_are_read_without_what_is_between(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pth"
    far = 1 << 20
    storage_of = torch.zeros(7 * far + 1)
    storage_of[::far] = torch.arange(8.0)
    torch.save({"w": storage_of[::far]}, path)
    assert contents(path)["w"] == ("float32", (8,), np.arange(8, dtype="<f4").tobytes())


def test_too_many_elements_far_apart_are_refused(tmp_path: Path) -> None:
    count, far = PIECES_LIMIT + 1, CHUNK // 4 + 1
    path = tmp_path / "far.safetensors"
    numel = (count - 1) * far + 1
    with path.open("wb") as file:
        file.truncate(4 * numel)  # a hole, which takes no room on the disk
    storage = Storage(SourceFile(path), "0", "storage", 0, 4 * numel)
    info = TensorInfo("w", DTYPES["float32"], (count,), (far,), storage)
    checkpoint = Checkpoint(path=path, layout="torch-zip", tensors={"w": info}, sources=(storage.source,))
    with checkpoint, pytest.raises(UnsupportedCheckpointError, match="places far apart"):
        checkpoint.read("w")
