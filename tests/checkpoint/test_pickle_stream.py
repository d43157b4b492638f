"""Opcodes are read as Python's own module reads them, whatever the bytes."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.checkpoint.pickle_stream import Unsound, opcodes

VALUE = {
    "w": (1, 300, 70_000, -5, 1 << 40, 1.5, True, None, "ä\udcff", b"x" * 300),
    "again": [[], {}, {1}, frozenset()],
}


def by_python(data: bytes) -> tuple[list[tuple[str, Any, int]], bool]:
    """Names, arguments and positions, and whether all could be read."""
    found = []
    try:
        for opcode, argument, position in pickletools.genops(io.BytesIO(data)):
            found.append((opcode.name, argument, position or 0))
    except (ValueError, OverflowError):
        return found, False
    return found, True


def by_us(data: bytes) -> tuple[list[tuple[str, Any, int]], bool]:
    found = []
    try:
        for item in opcodes(io.BytesIO(data)):
            found.append(item)
    except Unsound as error:
        failed = error.position
        return found, not (found[-1][2] if found else -1) < failed <= len(data)
    return found, True


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read_as_python_reads_it(protocol: int) -> None:
    data = pickle.dumps(VALUE, protocol)
    assert by_us(data) == by_python(data)
    assert by_us(data)[1]


@given(st.integers(0, pickle.HIGHEST_PROTOCOL), st.data())
def test_so_are_damaged_ones(protocol: int, data: st.DataObject) -> None:
    damaged = bytearray(pickle.dumps(VALUE, protocol))
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown escapes in a text opcode
        assert repr(by_us(cut)) == repr(by_python(cut))  # repr: nan is itself


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"X\x03\0\0\0ab", "expected 3 bytes in a text, but only 2 remain"),
        (b"X\x03\0", "not enough data in stream to read a number of 4 bytes"),
        (b"\xff", "opcode b'\\xff' unknown"),
        (b"", "pickle exhausted before seeing STOP"),
    ],
)
def test_what_is_wrong_is_said_at_the_opcode(data: bytes, said: str) -> None:
    with pytest.raises(Unsound, match=re.escape(said)) as caught:
        list(opcodes(io.BytesIO(b"N" + data)))
    assert caught.value.position == 1
