"""Files of torch.save that no torch.save writes, drawn at random: each part of one as it is, or a little off.

Values are kept in the memo and changed after they were used, storages are claimed twice, dicts are made in every way
that `torch.load` knows, and names in the archive differ in case. Only opcodes that its unpickler knows are used.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

from tests.support.craft_files import Member, torch_legacy, torch_members, zip_file
from tests.support.craft_pickle import Opcodes, call, name, op, storage, value

T = TypeVar("T")
BYTES = 48  # of every storage, unless it is a little off
KINDS = {"FloatStorage": 4, "IntStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2,
         "LongStorage": 8, "ByteStorage": 1, "ComplexFloatStorage": 8, "UntypedStorage": 1}  # fmt: skip
DTYPES = {"float32": 4, "int32": 4, "uint16": 2, "float64": 8, "complex64": 8, "uint8": 1}
ORDERED, COUNTER = name("collections", "OrderedDict"), name("collections", "Counter")
_NAMES = ["w", "b", "é", "x.y"]
_OTHER_KEYS: list[object] = [0, 1, True, None, (), 1.5, ("w",)]
_FLAGS = ("data", "real", "imag", "requires_grad", "names", "grad")  # attributes that a tensor has already


def filled(pairs: list[tuple[Opcodes, Opcodes]]) -> bytes:
    return op("MARK") + b"".join(key + item for key, item in pairs) + op("SETITEMS")


@dataclass
class _Writer:
    """Draws opcodes; `oddness` is how often, in percent, a part is what no torch.save writes."""

    choose: random.Random
    legacy: bool
    oddness: int
    kinds: dict[str, str]
    memo: dict[int, str] = field(default_factory=dict)

    def pick(self, *options: T) -> T:
        return self.choose.choice(options)

    def odd(self) -> bool:
        return self.choose.randrange(100) < self.oddness

    def put(self, what: bytes, kind: str) -> Opcodes:
        """`what`, kept in the memo as one of its kind, mostly in a new place."""
        place = self.choose.randrange(4) if self.odd() else len(self.memo) + 4
        self.memo[place] = kind
        return Opcodes(what + op("LONG_BINPUT", place))

    def kept(self, kind: str) -> list[Opcodes]:
        return [Opcodes(op("LONG_BINGET", place)) for place, there in self.memo.items() if there == kind]

    def reference(self) -> tuple[Opcodes, str, int]:
        """A storage, its kind, and how many elements it has."""
        key = self.pick(*self.kinds)
        kind = self.pick(*KINDS) if self.odd() else self.kinds[key]
        numel = BYTES // KINDS[kind]
        stated = self.pick(numel - 1, numel + 1, 0, 1, True, -1) if self.odd() else numel
        more: tuple[object, ...] = ()
        if self.legacy != self.odd():
            odd_view = (self.pick("v", "u", key), self.pick(0, 1, 2), self.pick(1, 2, numel))
            more = (
                odd_view
                if self.odd()
                else self.pick(None, None, None, (f"{key}v", 0, numel), (f"{key}w", 1, numel - 1)),
            )
        return storage(key, stated, kind, more), kind, numel

    def tensor(self) -> Opcodes:
        """A tensor, built in any of torch's ways."""
        if self.odd() and (kept := self.kept("tensor")):
            return self.pick(*kept)
        reference, kind, numel = self.reference()
        rebuild = self.pick("_rebuild_tensor_v2", "_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_tensor_v3")
        if kind == "UntypedStorage" and not self.odd():
            rebuild = "_rebuild_tensor_v3"
        dtype = self.pick(*DTYPES)
        if rebuild == "_rebuild_tensor_v3":
            numel = BYTES // DTYPES[dtype]
        shape = self.pick((2, 2), (2,), (), (1, 3), (numel,), (0,), (0, 2))
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        if self.odd():
            strides = tuple(self.pick(0, 1, 2, -1, 1 << 40) for _ in range(self.pick(len(shape), len(shape) + 1)))
        offset = self.pick(-1, numel, numel - 1, 1 << 40, 1.0, True) if self.odd() else self.pick(0, 0, 1)
        arguments: list[object] = [reference, offset, self.pick(shape, [*shape]) if self.odd() else shape, strides]
        if rebuild != "_rebuild_tensor":
            arguments += [self.pick(1, None, "x", True) if self.odd() else False, self.hooks()]
        if rebuild == "_rebuild_tensor_v3":
            arguments.append(name("torch", dtype))
        if rebuild != "_rebuild_tensor" and self.odd():
            arguments.append(self.metadata())
        if self.odd():
            arguments = self.pick(arguments[:-1], [*arguments, None])
        made = call(name("torch._utils", rebuild), *arguments)
        for _ in range(self.pick(0, 0, 0, 1, 1, 2)):
            made = self.wrapped(made)
        if self.odd():
            made = Opcodes(made + value(self.pick({}, {"x": 1}, (), None)) + op("BUILD"))
        return self.put(made, "tensor")

    def metadata(self) -> Opcodes:
        count = self.pick(0, 1, 1, 2, 4)
        pairs = [(value(self.pick("conj", "neg")), value(self.pick(True, False))) for _ in range(count)]
        return self.put(self.pick(op("EMPTY_DICT"), call(ORDERED)) + filled(pairs), "metadata")

    def hooks(self) -> object:
        return self.pick(None, {}, 1, ()) if self.odd() else self.pick(call(ORDERED), None)

    def wrapped(self, tensor: Opcodes) -> Opcodes:
        """A tensor as a parameter, or with attributes."""
        flag = self.pick(1, None) if self.odd() else self.pick(True, False)
        if (way := self.pick("parameter", "state", "type")) == "parameter":
            return call(
                name("torch._utils", "_rebuild_parameter"), tensor, flag, *([] if self.odd() else [self.hooks()])
            )
        attributes: object = {self.pick("note", "_x"): 1}
        if self.odd():
            attributes = {self.pick(*_FLAGS): self.pick(value(True), *self.kept("tensor"))}
        attributes = self.put(value(attributes), "metadata")
        state = self.pick(attributes, attributes, None, (attributes, None), (None, {}))
        if way == "state":
            return call(name("torch._utils", "_rebuild_parameter_with_state"), tensor, flag, self.hooks(), state)
        function = name("torch._utils", "_rebuild_parameter")
        kind = self.pick(name("torch", "Tensor"), name("torch.nn.parameter", "Parameter"))
        return call(name("torch._tensor", "_rebuild_from_type_v2"), function, kind, (tensor, flag, self.hooks()), state)

    def key(self) -> Opcodes:
        """A name; once in a while one that is there already, of Python 2, or none."""
        if self.odd():
            return value(self.pick(*_OTHER_KEYS))
        text = self.pick(*_NAMES) if self.odd() else f"{self.pick(*_NAMES)}{self.choose.randrange(1 << 30)}"
        if self.odd():
            return Opcodes(op("SHORT_BINSTRING", text.encode(self.pick("utf-8", "latin-1"))))
        return value(text)

    def item(self, depth: int) -> Opcodes:
        """What may stand in a dict. A tensor in a tuple is no weight, but what its making does to others is done."""
        kind = self.pick("tensor", "tensor", "tensor", "tensor", "value", "dict" if depth else "tensor")
        if self.odd():
            kind = self.pick("in a tuple", "grown", "grown", "list")
        if kind == "tensor":
            return self.tensor()
        if kind == "dict":
            return self.dict(depth - 1)
        if kind == "in a tuple":
            return value((self.tensor(),))
        if kind == "list":
            return self.put(value([value([value(self.pick(*_NAMES)), self.tensor()])]), "list")
        if kind == "grown":
            return self.grown()
        return value(self.pick(1, "x", None, 2.5, [1], (1, "w")))

    def grown(self) -> Opcodes:
        """Something of the memo, to which something is added after it was used."""
        kind = self.pick("list", "pair", "dict", "metadata")
        if not (kept := self.kept(kind)):
            return value(None)
        target = self.pick(*kept)
        if kind == "list":
            return Opcodes(target + value([value(self.pick(*_NAMES)), self.tensor()]) + op("APPEND"))
        if kind == "pair":
            return Opcodes(target + self.pick(self.tensor(), value(1)) + op("APPEND"))
        if kind == "dict":
            return Opcodes(target + self.key() + self.tensor() + op("SETITEM"))
        return Opcodes(
            target + value(self.pick("conj", "neg", *_FLAGS)) + self.pick(value(True), self.tensor()) + op("SETITEM")
        )

    def dict_of(self, pairs: list[tuple[Opcodes, Opcodes]]) -> bytes:
        """A dict of pairs, in one of the ways to make one."""
        way = self.pick("plain", "plain", "ordered")
        if self.odd():
            way = self.pick("items", "of a dict", "counter", "new", "both")
        if way == "plain":
            return op("EMPTY_DICT") + filled(pairs)
        if way == "ordered":
            return call(ORDERED) + filled(pairs)
        if way == "counter":
            return call(COUNTER) + filled(pairs)
        items = [
            self.put(value([k, v]), "pair") if self.odd() else self.pick(value((k, v)), value([k, v])) for k, v in pairs
        ]
        if self.odd():
            items.append(self.pick(value("wx"), value(()), value((1,)), value(("w", 1, 2)), value(1)))
        kept = self.put(value(items), "list")
        if way == "items":
            return call(ORDERED, kept)
        if way == "both":
            return call(ORDERED, kept) + filled([(self.key(), self.tensor())])
        if way == "of a dict":
            return call(self.pick(ORDERED, COUNTER), self.put(op("EMPTY_DICT") + filled(pairs), "dict"))
        return ORDERED + value((kept,) if self.odd() else ()) + op("NEWOBJ") + filled(pairs)

    def dict(self, depth: int) -> Opcodes:
        if self.odd() and (kept := self.kept("dict")):
            return self.pick(*kept)
        pairs = [(self.key(), self.item(depth)) for _ in range(self.choose.randrange(4))]
        made = self.put(self.dict_of(pairs), "dict")
        for _ in range(self.pick(0, 0, 1, 2) if self.odd() else 0):
            made = Opcodes(made + value(self.pick({"_metadata": 1}, {"items": 1}, {}, {"w": 1})) + op("BUILD"))
        return made


def random_pickle(choose: random.Random, *, legacy: bool, kinds: dict[str, str]) -> bytes:
    """A whole pickle. Values beside the result are left on the stack, where nothing looks for them."""
    writer = _Writer(choose, legacy, choose.choice((0, 2, 5, 10, 20)), kinds)
    before = [writer.item(0) for _ in range(choose.randrange(3) if writer.odd() else 0)]
    root = writer.dict(1)
    if choose.random() < 0.5:
        root = Opcodes(
            op("EMPTY_DICT") + filled([(value(choose.choice(["model", "x"])), root), (value("epoch"), value(3))])
        )
    after = [writer.grown() for _ in range(choose.randrange(4) if writer.odd() else 0)]
    root = Opcodes(root + op("LONG_BINPUT", 1 << 20))
    return op("PROTO", 2) + b"".join([*before, root, *after]) + op("LONG_BINGET", 1 << 20) + op("STOP")


def random_blobs(choose: random.Random) -> tuple[dict[str, str], dict[str, bytes]]:
    """By key, the kind of a storage, and its bytes."""
    keys = choose.sample(["0", "1", "a", "A", "É", "é", "10"], choose.choice((1, 2, 2, 3)))
    return {key: choose.choice(list(KINDS)) for key in keys}, {key: choose.randbytes(BYTES) for key in keys}


def random_legacy(choose: random.Random) -> bytes:
    """A file in the layout before torch 1.6."""
    kinds, blobs = random_blobs(choose)
    oddness = choose.choice((0, 0, 3, 10))

    def odd() -> bool:
        return choose.randrange(100) < oddness

    storages = [
        (key, BYTES // KINDS[kinds[key]] + (choose.choice((-1, 1)) if odd() else 0), blobs[key]) for key in kinds
    ]
    if odd():
        choose.shuffle(storages)
    keys: list[object] = [key for key, _, _ in storages]
    if odd():
        keys = choose.choice((keys[:-1], [*keys, keys[0]], [*keys, f"{keys[0]}v"], [*keys, 1]))
    facts = {"protocol_version": 1001, "little_endian": not odd()}
    pickle = random_pickle(choose, legacy=True, kinds=kinds)
    return torch_legacy(pickle, storages, facts=facts, keys=keys, after=b"\0" * odd())


def random_zip(choose: random.Random) -> bytes:
    """A file in the zip layout."""
    kinds, blobs = random_blobs(choose)
    members = torch_members(random_pickle(choose, legacy=False, kinds=kinds), blobs, "archive")
    oddness = choose.choice((0, 0, 3, 10))

    def odd() -> bool:
        return choose.randrange(100) < oddness

    if odd():
        members["byteorder"].data = choose.choice((b"big", b"little\n", b"BIG", b""))
    if choose.random() < 0.1:
        members["byteorder"].data = b"big"
    if odd():
        members["version"].data = choose.choice((b"1", b"2", b"9\n", b"11\n", b"x", b"", b"-3", b"3junk"))
    if odd():
        del members[choose.choice(("version", "byteorder", "data.pkl"))]
    found = list(members.values())
    extras = {".format_version": b"1", ".storage_alignment": b"64", ".data/version": b"2", "BYTEORDER": b"big",
              ".data/serialization_id": b"1", "DATA.PKL": b"junk", "DATA/0": b"\7" * BYTES, "Version": b"99",
              "data/unused": b""}  # fmt: skip
    for _ in range(choose.randrange(1, 4) if odd() else 0):
        extra = choose.choice(list(extras))
        found.insert(choose.randrange(len(found) + 1), Member(f"archive/{extra}", extras[extra]))
    for member in found:
        if odd():
            member.name = choose.choice(
                (str(member.name).upper(), str(member.name).title(), "archive/data/0", "Archive/x")
            )
        if odd():
            member.local = choose.choice(
                ({"flags": 0x808, "crc": 0, "size": 0, "compressed": 0}, {"extra": b"FB\2\0ZZ"})
            )
        if odd():
            member.central = {"comment": b"x"}
        if odd():
            member.gap = b"\0" * choose.randrange(1, 70)
    end = {"comment": b"c"} if odd() else {}
    return zip_file(found, before=b"x" * odd(), after=b"x" * odd(), end=end, end64={} if odd() else None)


LAYOUTS = {"zip": random_zip, "legacy": random_legacy}
