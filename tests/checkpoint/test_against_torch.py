"""What is accepted is what `torch.load(weights_only=True)` reads, bit for bit; all else is refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter.errors import CorruptCheckpointError, UnsupportedCheckpointError
from tests.support.against_torch import ON_PURPOSE, OUTSIDE, compare
from tests.support.craft_files import Member, Write, torch_legacy, torch_members, zip_file
from tests.support.craft_pickle import SIX, Opcodes, call, floats, name, op, ordered, pickled, storage, tensor, value
from tests.support.random_torch import LAYOUTS, filled
from tests.support.reading import refusal

FUZZED = 600  # files of each layout
ORDERED, COUNTER = name("collections", "OrderedDict"), name("collections", "Counter")
V3, STATE = name("torch._utils", "_rebuild_tensor_v3"), name("torch._utils", "_rebuild_parameter_with_state")
PARAMETER = name("torch._utils", "_rebuild_parameter")
OTHER = floats(9, 8, 7, 6, 5, 4)
COMPLEX = {"shape": (3,), "kind": "ComplexFloatStorage"}


def put(place: int, what: Opcodes) -> Opcodes:
    return Opcodes(what + op("BINPUT", place))


def get(place: int, then: bytes = b"") -> Opcodes:
    return Opcodes(op("BINGET", place) + then)


def pair(key: str, item: Opcodes) -> Opcodes:
    return value([key, item])


def v3(dtype: str, numel: int, kind: str = "UntypedStorage", count: int = 6, **more: object) -> Opcodes:
    return call(V3, storage("0", numel, kind), 0, (count,), (1,), False, None, name("torch", dtype), *more.values())


def with_state(inner: Opcodes, attribute: str, item: object) -> Opcodes:
    return call(STATE, inner, False, call(ORDERED), {attribute: item})


GROWN = {"w": tensor("1"), "x": get(1, pair("w", tensor()) + op("APPEND"))}
# each was read as something else, or read although torch refuses it: the item, what is done to the archive
DIFFERENT: dict[str, object] = {
    "a storage that two tensors claim under two dtypes": {"w": tensor(), "v": tensor(kind="IntStorage")},
    "a storage of another dtype first, in what is not taken": {"x": (tensor(kind="IntStorage"),), "w": tensor()},
    "a storage of another size first, in what is not taken": {"x": (tensor(numel=4),), "w": tensor()},
    "an OrderedDict of a list that grows afterwards": {
        "model": call(ORDERED, put(1, value([pair("w", tensor())]))),
        "x": get(1, pair("v", tensor("1")) + op("APPEND")),
    },
    "an OrderedDict of a pair that grows to one afterwards": {
        "x": put(1, value(["w"])), "model": call(ORDERED, value([get(1)])), "y": get(1, tensor() + op("APPEND")),
    },
    "an OrderedDict of a list, that is filled afterwards": {
        "model": Opcodes(call(ORDERED, [pair("w", tensor())]) + filled([(value("v"), tensor("1"))]))
    },
    "an OrderedDict of a dict that grows afterwards": {
        "model": call(ORDERED, put(1, value({"w": tensor()}))), "x": get(1, value("v") + tensor("1") + op("SETITEM")),
    },
    "an OrderedDict of a list in which a text is a pair": call(ORDERED, [pair("w", tensor()), "wx"]),
    "a Counter of a dict": Opcodes(call(COUNTER, {"w": tensor()}) + filled([(value("v"), tensor("1"))])),
    "items that __new__ leaves out": Opcodes(
        ORDERED + value(([pair("v", tensor("1"))],)) + op("NEWOBJ") + filled([(value("w"), tensor())])
    ),
    "a name that is no string": {"w": tensor(), 7: tensor("1")},
    "a name that is nothing": ordered({"w": tensor(), None: tensor("1")}),  # type: ignore[dict-item]
    "a name of Python 2 in UTF-8": Opcodes(
        op("EMPTY_DICT") + filled([(Opcodes(op("SHORT_BINSTRING", "é")), tensor())])
    ),
    "a lazy bit that is set afterwards": {
        "w": tensor(more=[put(1, Opcodes(op("EMPTY_DICT")))], **COMPLEX),
        "x": get(1, value("conj") + value(True) + op("SETITEM")),
    },
    "a lazy bit that is stated as false": {"w": tensor(more=[{"neg": False}])},
    "a lazy bit after three others": {
        "w": tensor(more=[Opcodes(op("EMPTY_DICT") + filled([(value("neg"), value(True))] * 3
                                  + [(value("conj"), value(True))]))], **COMPLEX),
    },
    "values of another tensor": {"w": with_state(tensor(), "data", tensor("1"))},
    "values that a call writes into a shared storage": {
        "x": (with_state(tensor(), "real", tensor("1")),), "w": tensor(),
    },
    "a part of a storage in a zip": {"w": tensor(view=(("v", 1, 3),), shape=(2,), numel=6)},
    "gradients that are neither true nor false": {"w": call(PARAMETER, tensor(), 1, None)},
    "gradients of integers": {"w": call(PARAMETER, tensor(kind="IntStorage"), True, None)},
    "attributes of a dict": Opcodes(value({"w": tensor()}) + value({"x": 1}) + op("BUILD")),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENT)
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_it_is_refused_or_what_torch_reads(what: str, layout: str, write: Write) -> None:
    blobs = {"0": SIX, "1": OTHER}
    item = DIFFERENT[what]
    if layout == "zip":
        path = write(zip_file(list(torch_members(item, blobs).values())))
    else:
        referred = op("TUPLE") + op("BINPERSID")
        pickle = pickled(item).replace(referred, op("NONE") + referred)  # where the legacy layout says of which part
        path = write(torch_legacy(pickle, [(key, 6, data) for key, data in blobs.items() if value(key) in pickle]))
    assert compare(path) in ("refused", "equal")


def changed(change: Callable[[dict[str, Member]], object], item: object = None) -> bytes:
    """An archive after a change to its members."""
    members = torch_members(item or {"w": tensor()}, {"0": SIX})
    change(members)
    return zip_file(list(members.values()))


def set_data(name: str, data: bytes) -> Callable[[dict[str, Member]], object]:
    return lambda members: members.update({name: Member(f"archive/{name}", data)})


def capitals(name: str, data: bytes) -> Callable[[dict[str, Member]], object]:
    return lambda members: members.update({name: Member(f"archive/{name.upper()}", data)})


ARCHIVES = {
    "two members that differ in capitals": changed(set_data("DATA/0", OTHER)),
    "a pickle in capitals before that in small letters": zip_file(
        [Member("archive/DATA.PKL", b"\x80\x02}."), *torch_members({"w": tensor()}, {"0": SIX}).values()]
    ),
    "a byte order in capitals": changed(capitals("byteorder", b"big")),
    "a storage in capitals": changed(capitals("data/0", SIX)),
    "big-endian bytes without a type": changed(set_data("byteorder", b"big"), {"w": v3("float32", 24)}),
    "big-endian elements of another size": changed(
        set_data("byteorder", b"big"), {"w": v3("float32", 3, "DoubleStorage")}
    ),
    "a version that is none": changed(set_data("version", b"three")),
    "a version of the future": changed(set_data("version", b"11\n")),
    "a version of the future that counts more": changed(set_data(".data/version", b"11\n")),
    "no version": changed(lambda members: members.pop("version")),
}  # fmt: skip


@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_is_refused_or_what_torch_reads(what: str, write: Write) -> None:
    path = write(ARCHIVES[what])
    compare(path)
    refusal(path)


def test_a_byte_order_that_torch_writes_is_read(write: Write) -> None:
    assert compare(write(changed(set_data("byteorder", b"big")))) == "equal"
    assert compare(write(changed(lambda members: members.pop("byteorder")))) == "equal"


LEGACY: dict[str, object] = {
    "a part that is elsewhere another one": {
        "x": tensor(view=(("v", 1, 2),), shape=(2,), numel=6), "w": tensor(view=(("v", 3, 2),), shape=(2,), numel=6),
        "y": tensor("1", view=(None,)),
    },
    "a part that has the name of a storage": {
        "x": tensor("1", view=(None,)), "w": tensor(view=(("1", 0, 6),)),
    },
    "a part of another storage": {
        "x": tensor("1", view=(("v", 0, 6),)), "w": tensor(view=(("v", 0, 6),)),
    },
}  # fmt: skip


@pytest.mark.parametrize("what", LEGACY)
def test_a_part_is_one_thing(what: str, write: Write) -> None:
    path = write(torch_legacy(LEGACY[what], [("0", 6, SIX), ("1", 6, OTHER)]))
    assert compare(path) == "refused"
    assert "'w'" in refusal(path, CorruptCheckpointError)


def test_a_list_that_a_thousand_calls_are_given_is_no_bomb(write: Write) -> None:
    shared = put(1, value([value([str(number), 1]) for number in range(2000)]))
    again = value([call(ORDERED, get(1)) for _ in range(2000)])
    members = torch_members({"x": shared, "y": again, "w": tensor()}, {"0": SIX})
    assert "gives calls more than" in refusal(write(zip_file(list(members.values()))), UnsupportedCheckpointError)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_files_are_refused_or_what_torch_reads(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "random.pth"
    outcomes: Counter[str] = Counter()
    for seed in range(FUZZED):
        path.write_bytes(LAYOUTS[layout](random.Random(seed)))
        try:
            outcomes[compare(path)] += 1
        except AssertionError as error:
            raise AssertionError(f"{layout}, seed {seed}: {error}") from None
    assert set(outcomes) <= {"refused", "equal", OUTSIDE, *ON_PURPOSE}
    assert outcomes["refused"] > FUZZED / 10
    assert outcomes["equal"] > FUZZED / 30  # or the files are too odd to reach every part


# what torch refuses and is read here on purpose
PURPOSE: dict[str, object] = {
    "an object": {"model": {"w": tensor()}, "config": call(name("argparse", "Namespace"))},
    "an opcode": Opcodes(value(1) + op("POP") + value({"w": tensor()})),
    "a tensor elsewhere that contradicts its storage": {
        "model": {"w": tensor()},
        "model_ema": {"w": tensor(offset=-1)},
    },
}


@pytest.mark.parametrize("what", PURPOSE)
def test_what_torch_refuses_and_is_read(what: str, write: Write) -> None:
    path = write(zip_file(list(torch_members(PURPOSE[what], {"0": SIX}).values())))
    assert compare(path) in (OUTSIDE, *ON_PURPOSE)


def test_the_comparison_sees_a_difference(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(zip_file(list(torch_members({"w": tensor()}, {"0": SIX}).values())))
    assert compare(path) == "equal"
    other = np.frombuffer(OTHER, "<f4").reshape(2, 3)
    monkeypatch.setattr("converter.checkpoint.index.Checkpoint.read", lambda checkpoint, name: other)
    with pytest.raises(AssertionError):
        compare(path)
