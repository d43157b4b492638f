"""Damage of any kind, at any place, ends in a CheckpointError or does no harm; a view is read or refused."""

from __future__ import annotations

import copy
import json
import os
import pickletools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint import open_checkpoint
from converter.errors import CheckpointError, CorruptCheckpointError
from tests.support.craft_files import Write, entry, safetensors, torch_legacy, torch_zip
from tests.support.craft_pickle import CODES, SIX, call, floats, name, op, ordered, pickled, tensor
from tests.support.reading import Bits, check_message, contents, read_everything, refusal

ITEM = {
    "model": ordered(
        {"w": tensor(), "flag": tensor("1", (2,), kind="BoolStorage")}, {"_metadata": {"": {"version": 1}}}
    ),
    "optimizer": {"state": {0: {"exp_avg": tensor("2", (1,))}}, "config": call(name("argparse", "Namespace"))},
    "iteration": 3,
}
BLOBS = {"0": SIX, "1": b"\1\0", "2": floats(7)}
STORAGES = [("0", 6, SIX), ("1", 2, b"\1\0"), ("2", 1, floats(7))]
HEADER = {"__metadata__": {"format": "pt"}, "w": entry(), "flag": entry(24, 26, [2], "BOOL")}
FILES = {
    "zip": torch_zip(ITEM, BLOBS),
    "zip64": torch_zip(ITEM, BLOBS, end64={}),
    "legacy": torch_legacy(ITEM, STORAGES),
    "safetensors": safetensors(HEADER, SIX + b"\1\0"),
}


def reads(path: Path) -> dict[str, Bits] | None:
    """The tensors, or None if the file was refused. Any error but CheckpointError is passed on."""
    try:
        return contents(path)
    except CheckpointError as error:
        check_message(str(error), path)
        return None


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_off_anywhere_is_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut{suffix}"
    for length in range(len(FILES[kind])):
        path.write_bytes(FILES[kind][:length])
        refusal(path)


@pytest.mark.parametrize("kind", ["zip", "zip64"])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_changed_byte_of_a_zip_is_noticed_or_does_not_matter(kind: str, flip: int, write: Write) -> None:
    whole = contents(write(FILES[kind]))
    for position in range(len(FILES[kind])):
        data = bytearray(FILES[kind])
        data[position] ^= flip
        assert reads(write(data)) in (None, whole), position


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_changed_byte_where_there_is_no_checksum_is_survived(kind: str, flip: int, write: Write) -> None:
    for position in range(len(FILES[kind])):
        data = bytearray(FILES[kind])
        data[position] ^= flip
        reads(write(data))


@pytest.mark.parametrize("kind", FILES)
def test_pieces_moved_lost_or_overwritten_are_survived(kind: str, write: Write) -> None:
    choose = random.Random(kind)
    for _ in range(500):
        data = bytearray(FILES[kind])
        for _ in range(choose.randint(1, 3)):
            first, second = sorted(choose.choices(range(len(data) + 1), k=2))
            second = min(second, first + 40)
            match choose.randrange(4):
                case 0:
                    del data[first:second]
                case 1:
                    data[first:first] = data[second : second + 16]
                case 2:
                    data[first:second] = choose.randbytes(second - first)
                case 3:
                    data[first:second] = choose.choice([b"\0", b"\xff"]) * (second - first)
        reads(write(data))


def opcodes(pickle: bytes) -> list[bytes]:
    """A pickle, cut into its opcodes."""
    starts = [position for _, _, position in pickletools.genops(pickle)]
    return [pickle[start:stop] for start, stop in zip(starts, [*starts[1:], len(pickle)], strict=True)]


NASTY = [-1, 0, 1, 255, (1 << 31) - 1]
TEXTS = ["0", "-1", "'x'", "w", "torch\nFloatStorage", "os\nsystem", "collections\nOrderedDict", "9" * 30]


def random_opcode(choose: random.Random) -> bytes:
    opcode = choose.choice([code for code in CODES.values() if code.name not in ("PROTO", "FRAME")])
    kind = opcode.arg.name if opcode.arg else ""
    if kind.startswith("uint"):
        return op(opcode.name, abs(choose.choice(NASTY)) & 0xFF)
    if kind in ("int4", "float8"):
        return op(opcode.name, choose.choice(NASTY))
    text = choose.choice(TEXTS)
    return op(opcode.name, "os\nsystem" if kind.endswith("pair") and "\n" not in text else text)


def mutated(parts: list[bytes], choose: random.Random) -> bytes:
    """The opcodes with a few lost, doubled, exchanged, or replaced by others."""
    parts = list(parts)
    for _ in range(choose.randint(1, 6)):
        first, second = choose.choices(range(len(parts)), k=2)
        match choose.randrange(5):
            case 0:
                del parts[first]
            case 1:
                parts.insert(second, parts[first])
            case 2:
                parts[first], parts[second] = parts[second], parts[first]
            case 3:
                parts[first] = random_opcode(choose)
            case 4:
                parts.insert(first, random_opcode(choose))
    return b"".join(parts)


LAYOUTS: dict[str, Callable[[object], bytes]] = {
    "zip": lambda item: torch_zip(item, BLOBS),
    "legacy": lambda item: torch_legacy(item, STORAGES),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcodes_lost_doubled_or_exchanged_are_survived(layout: str, write: Write) -> None:
    choose = random.Random(layout)
    sound = opcodes(pickled(ITEM))
    outcomes = [reads(write(LAYOUTS[layout](mutated(sound, choose)))) for _ in range(1500)]
    assert None in outcomes
    assert any(outcome is not None for outcome in outcomes)  # the damage must be small enough to reach every part


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcodes_at_random_are_survived(layout: str, write: Write) -> None:
    choose = random.Random(layout)
    for _ in range(1000):
        count = choose.randint(1, 40)
        reads(write(LAYOUTS[layout](b"".join(random_opcode(choose) for _ in range(count)) + op("STOP"))))
        reads(write(LAYOUTS[layout](op("PROTO", 2) + choose.randbytes(count))))


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    6,
    24,
    1.5,
    1 << 62,
    1 << 64,
    "",
    "F32",
    "\x1b",
    [],
    {},
    [0, 24],
    [2, 3],
    [-1],
    [[]],
    {"a": 1},
]


def test_headers_with_anything_anywhere_are_survived(write: Write) -> None:
    choose = random.Random(0)
    for _ in range(1500):
        header = json.loads(json.dumps(HEADER))
        for _ in range(choose.randint(1, 2)):
            place = header
            while (key := choose.choice(list(place))) and isinstance(place[key], dict) and choose.random() < 0.8:
                place = place[key]
                if not place:
                    break
            place[choose.choice([key, key, "other"])] = copy.deepcopy(choose.choice(VALUES))
        reads(write(safetensors(header, SIX + b"\1\0")))


lengths = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=300)
@given(shape=lengths, data=st.data(), offset=st.integers(0, 26), legacy=st.booleans())
def test_a_view_is_read_if_it_lies_in_its_storage_and_refused_otherwise(
    shape: list[int], data: st.DataObject, offset: int, legacy: bool, write: Write
) -> None:
    strides = data.draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    numbers = np.arange(24, dtype="<f4")
    item = {"w": tensor(shape=tuple(shape), strides=tuple(strides), offset=offset, numel=24)}
    path = write(
        torch_legacy(item, [("0", 24, numbers.tobytes())]) if legacy else torch_zip(item, {"0": numbers.tobytes()})
    )
    touched = np.full(shape, offset)
    for axis, stride in enumerate(strides):
        touched += stride * np.arange(shape[axis]).reshape([-1 if other == axis else 1 for other in range(len(shape))])
    if touched.size and touched.max() >= 24:
        assert "'w'" in refusal(path, CorruptCheckpointError)
    else:
        assert contents(path)["w"] == ("float32", tuple(shape), numbers[touched].tobytes())


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("keep", [0, 1, -1])
def test_a_file_cut_off_after_it_was_opened_is_refused(kind: str, keep: int, write: Write) -> None:
    whole = torch_zip({"w": tensor()}, {"0": SIX}) if kind == "zip" else FILES[kind]
    path = write(whole)
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, whole.index(SIX) + keep % len(SIX))
        with pytest.raises(CorruptCheckpointError):
            checkpoint.read("w")
        with pytest.raises(CorruptCheckpointError):
            list(checkpoint.chunks("w"))


@pytest.mark.parametrize("kind", FILES)
def test_a_file_changed_after_it_was_opened_is_noticed_in_the_end(kind: str, write: Write) -> None:
    path = write(FILES[kind])
    with open_checkpoint(path) as checkpoint:
        checkpoint.verify_unchanged()
        path.write_bytes(FILES[kind].replace(SIX, floats(5, 4, 3, 2, 1, 0)))
        with pytest.raises(CorruptCheckpointError, match="changed"):
            checkpoint.verify_unchanged()


def test_a_zip_changed_after_it_was_opened_is_noticed_by_its_crc(write: Write) -> None:
    path = write(FILES["zip"])
    with open_checkpoint(path) as checkpoint:
        path.write_bytes(FILES["zip"].replace(SIX, floats(5, 4, 3, 2, 1, 0)))
        with pytest.raises(CorruptCheckpointError, match="CRC"):
            checkpoint.read("w")


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_replaced_is_read_as_it_was(kind: str, write: Write, tmp_path: Path) -> None:
    path = write(FILES[kind])
    (tmp_path / "new").write_bytes(b"something else")
    with open_checkpoint(path) as checkpoint:
        os.replace(tmp_path / "new", path)
        assert checkpoint.read("w").tobytes() == SIX


@pytest.mark.parametrize("kind", FILES)
def test_threads_may_read_at_once(kind: str, write: Write) -> None:
    with open_checkpoint(write(FILES[kind])) as checkpoint, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: checkpoint.read("w").tobytes(), range(200)))
    assert found == [SIX] * 200


def test_everything_that_a_sound_file_holds_is_read(write: Write) -> None:
    for data in FILES.values():
        read_everything(write(data))
        assert list(contents(write(data))) == ["w", "flag"]
