"""Pickles written by hand: one opcode at a time, so that they can say what no pickler would."""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

CODES = {opcode.name: opcode for opcode in pickletools.opcodes}
# kinds of arguments by how they are written
_NUMBERS = {"uint1": "<B", "uint2": "<H", "int4": "<i", "uint4": "<I", "uint8": "<Q", "float8": ">d"}
_COUNTED = {
    "string1": "<B", "string4": "<i", "bytes1": "<B", "bytes4": "<I", "bytes8": "<Q", "bytearray8": "<Q",
    "unicodestring1": "<B", "unicodestring4": "<I", "unicodestring8": "<Q", "long1": "<B", "long4": "<i",
}  # fmt: skip


class Opcodes(bytes):
    """Opcodes that leave one value on the stack."""


def op(name: str, argument: object = b"", length: int | None = None) -> bytes:
    """One opcode. `length` is what it says of its argument, in place of the truth."""
    code = CODES[name].code.encode("latin-1")
    kind = CODES[name].arg.name if CODES[name].arg else None
    if kind is None:
        return code
    if kind in _NUMBERS:
        return code + struct.pack(_NUMBERS[kind], argument)
    if isinstance(argument, int):
        argument = argument.to_bytes(argument.bit_length() // 8 + 1, "little", signed=True)
    raw = argument.encode() if isinstance(argument, str) else argument
    if kind in _COUNTED:
        return code + struct.pack(_COUNTED[kind], len(raw) if length is None else length) + raw
    return code + raw + b"\n"


def value(item: object) -> Opcodes:
    """Opcodes that push `item`, as pickle's protocol 2 does."""
    if isinstance(item, Opcodes):
        return item
    if item is None or isinstance(item, bool):
        return Opcodes(op({None: "NONE", True: "NEWTRUE", False: "NEWFALSE"}[item]))
    if isinstance(item, int):
        return Opcodes(op("BININT", item) if -(1 << 31) <= item < 1 << 31 else op("LONG1", item))
    if isinstance(item, float):
        return Opcodes(op("BINFLOAT", item))
    if isinstance(item, str):
        return Opcodes(op("BINUNICODE", item.encode("utf-8", "surrogatepass")))
    if isinstance(item, tuple):
        return Opcodes(op("MARK") + b"".join(map(value, item)) + op("TUPLE"))
    if isinstance(item, list):
        return Opcodes(op("EMPTY_LIST") + op("MARK") + b"".join(map(value, item)) + op("APPENDS"))
    if isinstance(item, Mapping):
        return Opcodes(op("EMPTY_DICT") + _filled(item))
    raise TypeError(item)


def _filled(items: Mapping[object, object]) -> bytes:
    return op("MARK") + b"".join(value(key) + value(item) for key, item in items.items()) + op("SETITEMS")


def pickled(item: object, protocol: int = 2) -> bytes:
    """A whole pickle of `item`."""
    return op("PROTO", protocol) + value(item) + op("STOP")


def name(module: str, attribute: str) -> Opcodes:
    """Something that pickle would import."""
    return Opcodes(op("GLOBAL", f"{module}\n{attribute}"))


def call(function: Opcodes, *arguments: object) -> Opcodes:
    """Something that pickle would call."""
    return Opcodes(function + value(arguments) + op("REDUCE"))


def ordered(items: Mapping[str, object], attributes: Mapping[str, object] | None = None) -> Opcodes:
    """An OrderedDict, with the attributes that `Module.state_dict` sets on it."""
    state = value(attributes) + op("BUILD") if attributes else b""
    return Opcodes(call(name("collections", "OrderedDict")) + _filled(items) + state)


def storage(key: object = "0", numel: object = 6, kind: str = "FloatStorage", more: tuple[object, ...] = ()) -> Opcodes:
    """What torch writes in place of a storage."""
    module = "torch.storage" if kind == "UntypedStorage" else "torch"
    return Opcodes(value(("storage", name(module, kind), key, "cpu", numel, *more)) + op("BINPERSID"))


def tensor(
    key: str = "0",
    shape: object = (2, 3),
    strides: object = None,
    offset: object = 0,
    numel: object = None,
    *,
    kind: str = "FloatStorage",
    view: tuple[object, ...] = (),
    more: Sequence[object] = (),
    function: Opcodes | None = None,
) -> Opcodes:
    """What torch writes for a tensor: contiguous and alone in its storage, where nothing else is said."""
    if strides is None:
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if numel is None:
        numel = prod(shape)
    rebuild = function or name("torch._utils", "_rebuild_tensor_v2")
    hooks = call(name("collections", "OrderedDict"))
    return call(rebuild, storage(key, numel, kind, view), offset, shape, strides, False, hooks, *more)


def floats(*numbers: float) -> bytes:
    """The bytes of a float32 storage."""
    return np.array(numbers, "<f4").tobytes()


SIX = floats(0, 1, 2, 3, 4, 5)  # fills the storage of `tensor()`
