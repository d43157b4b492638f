"""Streams of opcodes that are not a sound pickle, or one that grows without bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.errors import CorruptCheckpointError
from tests.support.craft_files import Pack, Write, torch_legacy, torch_zip
from tests.support.craft_pickle import CODES, SIX, Opcodes, name, op, tensor, value
from tests.support.reading import Apart, contents, refusal

SECONDS, MEBIBYTES = 10, 300
HUGE = 1 << 62

BROKEN = {
    "no opcode at all": b"",
    "only STOP": op("STOP"),
    "no STOP": op("PROTO", 2) + value({"w": tensor()}),
    "unknown opcode": op("PROTO", 2) + b"\xff" + op("STOP"),
    "opcode in place of an argument": op("PROTO", 2) + op("BININT", 1)[:2] + op("STOP"),
    "memo never set": op("BINGET", 3) + op("STOP"),
    "memo index 2^32 never set": op("GET", str(1 << 32)) + op("STOP"),
    "negative memo index": op("NONE") + op("PUT", "-1") + op("STOP"),
    "memo of nothing": op("MEMOIZE") + op("STOP"),
    "text that is not a number": op("INT", "0x") + op("STOP"),
    "text that is not a float": op("FLOAT", "one") + op("STOP"),
    "text without quotes": op("STRING", "abc") + op("STOP"),
    "text with a bad escape": op("STRING", r"'\x'") + op("STOP"),
    "unicode with a bad escape": op("UNICODE", rb"\u12") + op("STOP"),
    "unicode that is not UTF-8": op("BINUNICODE", b"\xff\xfe") + op("STOP"),
    "name that is not ASCII": op("GLOBAL", b"os\n\xff") + op("STOP"),
    "number of 5000 digits": op("INT", "9" * 5000) + op("STOP"),
    "line without an end": CODES["UNICODE"].code.encode() + b"a" * 1000,
    "length beyond the end": op("BINUNICODE", b"abc", length=1000) + op("STOP"),
    "length of 2^62": op("BINUNICODE8", b"abc", length=HUGE) + op("STOP"),
    "length of 2^64 - 1": op("BINBYTES8", b"abc", length=(1 << 64) - 1) + op("STOP"),
    "bytearray of 2^62": op("BYTEARRAY8", b"abc", length=HUGE) + op("STOP"),
    "negative length": op("LONG4", b"abc", length=-3) + op("STOP"),
    "negative length of text": op("BINSTRING", b"abc", length=-3) + op("STOP"),
    "number of 2 GiB": op("LONG4", b"abc", length=(1 << 31) - 1) + op("STOP"),
    "buffer outside the file": op("NEXT_BUFFER") + op("STOP"),
    "odd number of items": op("EMPTY_DICT") + op("MARK") + op("NONE") + op("SETITEMS") + op("STOP"),
    "items for a number": op("NONE") + op("NONE") + op("NONE") + op("SETITEM") + op("STOP"),
    "append to a tuple": op("EMPTY_TUPLE") + op("NONE") + op("APPEND") + op("STOP"),
    "pair of one item": op("NONE") + op("TUPLE2") + op("STOP"),
    "triple of two items": op("NONE") * 2 + op("TUPLE3") + op("STOP"),
    "class without a class": op("MARK") + op("OBJ") + op("STOP"),
    "name from numbers": value(1) + value(2) + op("STACK_GLOBAL") + op("STOP"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_pickle_is_refused_with_the_place(kind: str, write: Write) -> None:
    message = refusal(write(torch_zip(BROKEN[kind], {})), CorruptCheckpointError)
    assert ("byte" in message, "archive/data.pkl" in message) == (True, True)


def test_the_place_is_that_of_the_opcode_that_is_broken(write: Write) -> None:
    broken = op("PROTO", 2) + op("NONE") + op("BINBYTES", b"abc", length=1000) + op("STOP")
    assert "byte 3:" in refusal(write(torch_zip(broken, {})))


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("part", ["magic", "protocol", "facts", "item", "keys"])
def test_a_broken_pickle_among_those_of_a_legacy_file_is_refused(kind: str, part: str, write: Write) -> None:
    pickles = {"item": {"w": tensor()}, **{part: BROKEN[kind]}}
    refusal(write(torch_legacy(storages=[("0", 6, SIX)], **pickles)))


@pytest.mark.parametrize("opcode", [code for code in CODES if code not in ("STOP", "PROTO", "FRAME", "MARK")])
def test_an_opcode_that_finds_too_little_is_refused(opcode: str, pack: Pack) -> None:
    kind = CODES[opcode].arg.name if CODES[opcode].arg else ""
    argument = 1 if kind.startswith(("uint", "int", "float8")) else "1\n1" if kind.endswith("pair") else "1"
    refusal(pack(op(opcode, argument) + op("POP") * 2 + op("STOP")))


def test_a_memo_index_of_2_to_the_32_takes_no_memory(pack: Pack) -> None:
    far = str(1 << 32)
    kept = Opcodes(value("w") + op("PUT", far) + op("POP") + op("GET", far))
    assert list(contents(pack({kept: tensor()}))) == ["w"]


def test_a_number_of_many_digits_is_not_shown_whole(pack: Pack) -> None:
    assert "bits" in refusal(pack({"w": tensor(offset=Opcodes(op("LONG4", b"\xff" * 100_000 + b"\x7f")))}))


BOMBS: dict[str, bytes] = {
    "names": b"".join(b"ca\n%d\n" % i for i in range(900_000)) + op("TUPLE1"),
    "names again and again": name("a", "b") * 900_000 + op("TUPLE1"),
    "classes": (op("MARK") + op("INST", "a\nb")) * 1_500_000,
    "calls": name("a", "b") + (op("DUP") + op("EMPTY_TUPLE") + op("REDUCE")) * 1_500_000,
    "dicts in a dict": op("EMPTY_DICT") + op("MARK") + op("EMPTY_DICT") * 999_990 + op("SETITEMS"),
    "memo": op("NONE") + op("MEMOIZE") * 3_000_000,
    "numbers in text": op("INT", b"1" * 30_000_000),
    "text": op("STRING", b"'" + rb"\x41" * 8_000_000 + b"'"),
    "long number": value({"w": tensor(numel=Opcodes(op("LONG4", b"\x7f" * 30_000_000)))}),
    "deep tuple as a key": value({Opcodes(op("EMPTY_TUPLE") + op("TUPLE1") * 900_000): 1, "w": tensor()}),
    "many names of one state dict": op("EMPTY_DICT") + value({"w": tensor()}) + op("BINPUT", 1) + op("POP")
    + op("MARK") + b"".join(value(str(i)) + op("BINGET", 1) for i in range(300_000)) + op("SETITEMS"),
    "many dicts of one list": b"".join([
        value([["k", None]] * 20_000), op("BINPUT", 1), op("POP"), op("EMPTY_DICT"), op("MARK"),
        *(value(str(i)) + name("collections", "OrderedDict") + op("BINGET", 1) + op("TUPLE1") + op("REDUCE")
          for i in range(20_000)), op("SETITEMS"),
    ]),
    "memo indices that collide": op("NONE") + b"".join(op("PUT", str(i * ((1 << 61) - 1))) for i in range(1, 60_000)),
    "many tensors": value({str(i): tensor(shape=(), numel=6) for i in range(30_000)}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "kinds"),
    [("zip", list(BOMBS)), ("legacy", ["names", "long number"])],
)
def test_no_pickle_takes_long_or_much_memory(layout: str, kinds: list[str], apart: Apart, tmp_path: Path) -> None:
    paths = []
    for kind in kinds:
        paths.append(tmp_path / f"{kind}.pth")
        pickle = op("PROTO", 4) + BOMBS[kind] + op("STOP")
        data = torch_zip(pickle, {"0": SIX}) if layout == "zip" else torch_legacy(pickle, [("0", 6, SIX)])
        paths[-1].write_bytes(data)
    outcomes = apart(*paths)
    slow = {kind: outcome.seconds for kind, outcome in zip(kinds, outcomes, strict=True) if outcome.seconds > SECONDS}
    large = {kind: outcome.growth for kind, outcome in zip(kinds, outcomes, strict=True) if outcome.growth > MEBIBYTES}
    assert (slow, large) == ({}, {})
