"""The opcodes of a pickle, one after another, each with its argument: what `pickletools.genops` gives.

A checkpoint with its optimizer has a hundred thousand. The kinds of argument of almost all of them are read here; those
of the others as that module does.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator
from typing import IO, Any


class Unsound(ValueError):
    """What cannot be read as an opcode and its argument; `position` is that of the opcode."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def opcodes(stream: IO[bytes]) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and position of each opcode, up to and with STOP. Raises Unsound."""
    read, tell = stream.read, stream.tell
    while True:
        position = tell()
        try:
            code = read(1)
            if code not in _KNOWN:
                raise ValueError(f"opcode {code!r} unknown" if code else "pickle exhausted before seeing STOP")
            name, argument_in = _KNOWN[code]
            argument = None if argument_in is None else argument_in(stream)
        except (ValueError, OverflowError) as error:  # all that pickletools raises
            raise Unsound(str(error), position) from None
        yield name, argument, position
        if code == b".":
            return


def _number(layout: str) -> Callable[[IO[bytes]], int]:
    size, unpack = struct.calcsize(layout), struct.Struct(layout).unpack

    def read(stream: IO[bytes]) -> int:
        data = stream.read(size)
        if len(data) < size:
            raise ValueError(f"not enough data in stream to read a number of {size} bytes")
        found: int = unpack(data)[0]
        return found

    return read


_text_length = _number("<I")


def _text(stream: IO[bytes]) -> str:
    count = _text_length(stream)
    data = stream.read(count)
    if len(data) < count:
        raise ValueError(f"expected {count} bytes in a text, but only {len(data)} remain")
    return data.decode("utf-8", "surrogatepass")


_READ_HERE: dict[str, Callable[[IO[bytes]], Any]] = {
    "uint1": _number("B"),
    "uint2": _number("<H"),
    "uint4": _number("<I"),
    "int4": _number("<i"),
    "unicodestring4": _text,
}
_KNOWN = {
    opcode.code.encode("latin-1"): (
        opcode.name,
        None if opcode.arg is None else _READ_HERE.get(opcode.arg.name, opcode.arg.reader),
    )
    for opcode in pickletools.opcodes
}
