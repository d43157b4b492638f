"""A pickle can name and call anything. Read here, it calls nothing, ends soon, and gives the weights or a reason."""

from __future__ import annotations

import contextlib
import copyreg
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from converter.checkpoint import open_checkpoint
from converter.errors import CorruptCheckpointError, UnsupportedCheckpointError
from tests.support.craft_files import Pack
from tests.support.craft_pickle import Opcodes, call, name, op, ordered, pickled, storage, tensor, value
from tests.support.reading import SIX as SIX_BITS
from tests.support.reading import contents, refusal

MKDIR = name("os", "mkdir")
EXTENSION = 0xC0DE


def stacked(module: str, attribute: str) -> Opcodes:
    return Opcodes(value(module) + value(attribute) + op("STACK_GLOBAL"))


# each of these, in pickle's hands, makes the folder `path`
CALLS: dict[str, Callable[[str], Opcodes]] = {
    "GLOBAL": lambda path: call(MKDIR, path),
    "STACK_GLOBAL": lambda path: call(stacked("os", "mkdir"), path),
    "INST": lambda path: Opcodes(op("MARK") + value(path) + op("INST", "os\nmkdir")),
    "OBJ": lambda path: Opcodes(op("MARK") + MKDIR + value(path) + op("OBJ")),
    "EXT2": lambda path: call(Opcodes(op("EXT2", EXTENSION)), path),
    "EXT4": lambda path: call(Opcodes(op("EXT4", EXTENSION)), path),
    "dotted name": lambda path: call(stacked("os", "path.os.mkdir"), path),
    "name of Python 2": lambda path: call(name("__builtin__", "eval"), f"__import__('os').mkdir({path!r})"),
    "eval": lambda path: call(name("builtins", "eval"), f"__import__('os').mkdir({path!r})"),
    "nested pickle": lambda path: call(
        name("_pickle", "loads"), call(name("_codecs", "encode"), pickled(call(MKDIR, path)).decode("latin-1"), "latin")
    ),
    "argument of a class": lambda path: call(name("collections", "OrderedDict"), {"x": call(MKDIR, path)}),
    "attribute of a module": lambda path: call(
        call(name("builtins", "getattr"), stacked("os", "path.os"), "mkdir"), path
    ),
    "partial": lambda path: call(call(name("functools", "partial"), MKDIR), path),
    "NEWOBJ": lambda path: Opcodes(name("collections", "deque") + value((call(MKDIR, path),)) + op("NEWOBJ")),
    "NEWOBJ_EX": lambda path: Opcodes(
        name("collections", "deque") + value(()) + value({"x": call(MKDIR, path)}) + op("NEWOBJ_EX")
    ),
    "BUILD on a function": lambda path: Opcodes(MKDIR + value({"x": call(MKDIR, path)}) + op("BUILD")),
    "state of an object": lambda path: Opcodes(
        call(name("argparse", "Namespace")) + value({"x": call(MKDIR, path)}) + op("BUILD")
    ),
    "popped": lambda path: Opcodes(call(MKDIR, path) + op("POP") + value(1)),
}


@pytest.fixture
def extension() -> Iterator[None]:
    """An entry in the extension registry, so that EXT opcodes would find something to call."""
    copyreg.add_extension("os", "mkdir", EXTENSION)
    yield
    copyreg.remove_extension("os", "mkdir", EXTENSION)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("way", CALLS)
def test_pickle_itself_would_execute_it(way: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with contextlib.suppress(TypeError, AttributeError):  # after the call
        pickle.loads(pickled(CALLS[way](str(made)), protocol=2 if way == "name of Python 2" else 4))
    assert made.is_dir()


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("way", CALLS)
@pytest.mark.parametrize("place", ["beside", "inside", "key", "attributes", "before", "first"])
def test_code_near_the_weights_is_not_run_and_they_are_read(way: str, place: str, pack: Pack, canary: Path) -> None:
    payload = CALLS[way](str(canary))
    weights = {"w": tensor()}
    item = {
        "beside": {"model": weights, "config": payload},
        "inside": {**weights, "payload": payload},
        "key": {"model": weights, payload: 1},
        "attributes": ordered(weights, {"_metadata": payload}),
        "before": Opcodes(payload + op("POP") + value(weights)),
        "first": {"config": payload, "model": weights},
    }[place]
    assert contents(pack(item)) == SIX_BITS


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("way", CALLS)
@pytest.mark.parametrize("place", ["shape", "offset", "key", "storage", "function", "hooks", "wrapped", "whole file"])
def test_code_where_a_tensor_should_be_is_not_run(way: str, place: str, pack: Pack, canary: Path) -> None:
    payload = CALLS[way](str(canary))
    item = {
        "shape": {"w": tensor(shape=payload, strides=(3, 1), numel=6)},
        "offset": {"w": tensor(offset=payload)},
        "key": {"w": tensor(key=payload)},
        "storage": {"w": call(name("torch._utils", "_rebuild_tensor_v2"), payload, 0, (2, 3), (3, 1), False, None)},
        "function": {"w": tensor(function=payload), "good": tensor()},
        "hooks": {"w": tensor(more=[payload])},
        "wrapped": {"w": call(name("torch._utils", "_rebuild_parameter"), payload, True, None)},
        "whole file": payload,
    }[place]
    refusal(pack(item))
    assert not canary.exists()


def test_names_are_listed_sorted_and_not_imported(pack: Pack) -> None:
    payloads = [name("os", "system"), stacked("nowhere", "a.b"), Opcodes(op("MARK") + op("INST", "zlib\nX"))]
    with open_checkpoint(pack({"model": {"w": tensor(function=name("torch._utils", "_rebuild_tensor_v2"))},
                               "x": payloads})) as checkpoint:  # fmt: skip
        assert checkpoint.globals == (
            "collections.OrderedDict", "nowhere.a.b", "os.system", "torch.FloatStorage",
            "torch._utils._rebuild_tensor_v2", "zlib.X",
        )  # fmt: skip


REBUILDERS = {
    "any function": tensor(function=name("os", "system")),
    "torch function": tensor(function=name("torch", "load")),
    "subclass by any function": call(
        name("torch._tensor", "_rebuild_from_type_v2"), name("os", "system"), name("torch", "Tensor"), ("id",), None
    ),
    "parameter of any function": call(
        name("torch._utils", "_rebuild_parameter"), call(name("os", "system"), "id"), True, None
    ),
    "pickled bytes": call(name("torch.storage", "_load_from_bytes"), "x"),
}


@pytest.mark.parametrize("kind", REBUILDERS)
def test_a_tensor_rebuilt_by_a_function_is_unsupported_and_the_function_named(kind: str, pack: Pack) -> None:
    """Unless it is one of torch's own that has no name for users."""
    path = pack({"good": tensor(), "bad": REBUILDERS[kind]})
    said = {"pickled bytes": "an object of torch", "torch function": "torch.load"}.get(kind, "os.system")
    message = refusal(path, UnsupportedCheckpointError)
    assert ("'bad'" in message, said in message) == (True, True)
    assert "_rebuild" not in message


CONTROL = "a\x1b[2J\r\nb\x00\u202e\ud800"


@pytest.mark.parametrize("item", [
    {CONTROL: tensor(shape=(-1,), numel=6)},
    {"w": tensor(key=CONTROL)},
    {"w": tensor(function=Opcodes(value(CONTROL) + value(CONTROL) + op("STACK_GLOBAL")))},
    {CONTROL: {"w": tensor()}, "other": {"w": tensor()}},
    {CONTROL: call(name("os", "system"), "id"), "w": tensor(offset=-1)},
    value([CONTROL]),
], ids=["tensor", "storage", "function", "root", "payload", "list"])  # fmt: skip
def test_control_characters_in_names_are_shown_escaped(item: object, pack: Pack) -> None:
    message = refusal(pack(item))
    assert message.isprintable()


def test_control_characters_in_what_is_listed_are_escaped(pack: Pack) -> None:
    path = pack({"model": {"w": tensor()}, CONTROL: 1, "x": Opcodes(value(CONTROL) + value("f") + op("STACK_GLOBAL"))})
    with open_checkpoint(path) as checkpoint:
        listed = [*checkpoint.globals, *checkpoint.skipped, *checkpoint.objects.values()]
    assert all(text.isprintable() for text in listed)


@pytest.mark.parametrize("long", ["n" * 1_000_000, "\x00" * 1_000_000], ids=["letters", "zeros"])
def test_long_names_are_cut_in_messages(long: str, pack: Pack) -> None:
    assert len(refusal(pack({long: tensor(offset=-1)}))) < 3000


def test_a_tensor_there_twice_is_refused(pack: Pack) -> None:
    twice = Opcodes(op("EMPTY_DICT") + 2 * (value("w") + tensor() + op("SETITEM")))
    assert "'w'" in refusal(pack({"model": twice}), CorruptCheckpointError)


def test_a_root_there_twice_is_refused(pack: Pack) -> None:
    twice = Opcodes(op("EMPTY_DICT") + 2 * (value("model") + value({"w": tensor()}) + op("SETITEM")))
    assert "'model'" in refusal(pack(twice), CorruptCheckpointError)


DEEP = 5_000  # beyond Python's limit on recursion
ODD = {
    "deep tuple": Opcodes(op("EMPTY_TUPLE") + op("TUPLE1") * DEEP),
    "deep list": Opcodes(op("EMPTY_LIST") * DEEP + op("APPEND") * (DEEP - 1)),
    "deep dict": Opcodes((op("EMPTY_DICT") + op("NONE")) * DEEP + op("NONE") + op("SETITEM") * DEEP),
    "deep call": Opcodes(MKDIR + (op("EMPTY_TUPLE") + op("REDUCE")) * DEEP),
    "deep reference": Opcodes(op("NONE") + op("BINPERSID") * DEEP),
    "list in itself": Opcodes(op("EMPTY_LIST") + op("DUP") + op("APPEND")),
    "dict in itself": Opcodes(op("EMPTY_DICT") + op("BINPUT", 9) + value("x") + op("BINGET", 9) + op("SETITEM")),
    "tuple in itself": Opcodes(op("EMPTY_LIST") + op("BINPUT", 9) + op("TUPLE1") + op("BINPUT", 8) + op("POP")
                               + op("BINGET", 9) + op("BINGET", 8) + op("APPEND") + op("POP") + op("BINGET", 8)),
    "doubled lists": Opcodes(op("EMPTY_TUPLE") + (op("DUP") + op("TUPLE2")) * 64),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", ["key", "value", "beside", "hooks", "attributes"])
def test_deep_and_cyclic_values_do_not_matter(odd: str, place: str, pack: Pack) -> None:
    item = {
        "key": {"w": tensor(), ODD[odd]: 1},
        "value": {"w": tensor(), "x": ODD[odd]},
        "beside": {"model": {"w": tensor()}, ODD[odd]: ODD[odd]},
        "hooks": {"w": call(name("torch._utils", "_rebuild_tensor_v2"), storage(), 0, (2, 3), (3, 1), False, ODD[odd])},
        "attributes": ordered({"w": tensor()}, {"x": ODD[odd]}),
    }[place]
    assert contents(pack(item)) == SIX_BITS


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", ["whole", "shape", "offset", "function", "storage", "arguments"])
def test_deep_and_cyclic_values_in_place_of_a_tensors_parts_are_refused(odd: str, place: str, pack: Pack) -> None:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    item = {
        "whole": ODD[odd],
        "shape": {"w": tensor(shape=ODD[odd], strides=(3, 1), numel=6)},
        "offset": {"w": tensor(offset=ODD[odd])},
        "function": {"w": tensor(), "x": call(ODD[odd])},
        "storage": {"w": call(rebuild, Opcodes(ODD[odd] + op("BINPERSID")), 0, (2, 3), (3, 1), False, None)},
        "arguments": {"w": Opcodes(rebuild + ODD[odd] + op("REDUCE"))},
    }[place]
    assert refusal(pack(item))
