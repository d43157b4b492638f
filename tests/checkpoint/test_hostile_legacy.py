"""Legacy files whose pickles and storages do not fit together are refused before a tensor is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint import open_checkpoint
from converter.errors import CheckpointError, CorruptCheckpointError, UnsupportedCheckpointError
from tests.support.craft_files import MAGIC, Write, torch_legacy
from tests.support.craft_pickle import SIX, Opcodes, call, floats, name, op, pickled, tensor, value
from tests.support.reading import Apart, contents, refusal

ITEM = {"w": tensor()}
ONE = [("0", 6, SIX)]


def part(*view: object, shape: tuple[int, ...] = (2,)) -> dict[str, Opcodes]:
    return {"w": tensor(shape=shape, numel=6, view=(view if len(view) != 1 else view[0],))}


LIES: dict[str, Callable[[], bytes]] = {
    "storage missing from the list": lambda: torch_legacy(ITEM, [], keys=[]),
    "storage missing from the list, but there": lambda: torch_legacy(ITEM, ONE, keys=[]),
    "one of two storages missing from the list": lambda: torch_legacy({**ITEM, "b": tensor("1")}, ONE),
    "storage that no tensor uses": lambda: torch_legacy(ITEM, [*ONE, ("1", 6, SIX)]),
    "storage listed twice": lambda: torch_legacy(ITEM, [*ONE, *ONE]),
    "storage listed, but not there": lambda: torch_legacy(ITEM, [], keys=["0"]),
    "list of numbers": lambda: torch_legacy(ITEM, ONE, keys=[0]),
    "list that is text": lambda: torch_legacy(ITEM, ONE, keys="0"),
    "list that is a dict": lambda: torch_legacy(ITEM, ONE, keys={"0": 1}),
    "list that is called": lambda: torch_legacy(ITEM, ONE, keys=call(name("os", "listdir"), ".")),
    "list with a tuple": lambda: torch_legacy(ITEM, ONE, keys=[("0",)]),
    "list that is None": lambda: torch_legacy(ITEM, ONE, keys=value(None)),
    "more elements than the pickle says": lambda: torch_legacy(ITEM, [("0", 7, SIX + bytes(4))]),
    "fewer elements than the pickle says": lambda: torch_legacy(ITEM, [("0", 5, SIX[:20])]),
    "no elements": lambda: torch_legacy(ITEM, [("0", 0, b"")]),
    "2^62 elements": lambda: torch_legacy({"w": tensor(numel=1 << 62)}, [("0", 1 << 62, SIX)]),
    "-6 elements": lambda: torch_legacy(ITEM, [("0", -6, SIX)]),
    "elements counted in bytes": lambda: torch_legacy(ITEM, [("0", 24, SIX)]),
    "data cut short": lambda: torch_legacy(ITEM, [("0", 6, SIX[:-1])]),
    "bytes after the last storage": lambda: torch_legacy(ITEM, ONE, after=b"\0"),
    "a file after the last storage": lambda: torch_legacy(ITEM, ONE, after=torch_legacy(ITEM, ONE)),
    "one storage of two sizes": lambda: torch_legacy({"w": tensor(), "b": tensor(shape=(5,))}, ONE),
    "one storage of two sizes, the first wrong": lambda: torch_legacy({"b": tensor(shape=(5,)), "w": tensor()}, ONE),
    "one storage of two classes": lambda: torch_legacy({"w": tensor(), "b": tensor(kind="DoubleStorage")}, ONE),
    "part that leaves the storage": lambda: torch_legacy(part("1", 5, 2), ONE),
    "part at a negative offset": lambda: torch_legacy(part("1", -1, 2), ONE),
    "part of a negative size": lambda: torch_legacy(part("1", 0, -2), ONE),
    "part of 2^62 elements": lambda: torch_legacy(part("1", 0, 1 << 62), ONE),
    "part that is too small": lambda: torch_legacy(part("1", 0, 1), ONE),
    "part without a name": lambda: torch_legacy(part(None, 0, 2), ONE),
    "part that is text": lambda: torch_legacy(part("1"), ONE),
    "part of two numbers": lambda: torch_legacy(part("1", 0), ONE),
    "tensor of a storage that is text": lambda: torch_legacy({"w": Opcodes(op("PERSID", "0"))}, []),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_when_the_file_is_opened(lie: str, write: Write) -> None:
    path = write(LIES[lie]())
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
    refusal(path)


@pytest.mark.parametrize("kind", [lie for lie in LIES if "elements" in lie])
def test_a_wrong_size_is_refused_with_the_name_of_the_storage(kind: str, write: Write) -> None:
    assert "'0'" in refusal(write(LIES[kind]()), CorruptCheckpointError)


@pytest.mark.parametrize("protocol", [1000, 1 << 200, -1, "1001", None, (1001,)], ids=repr)
def test_another_protocol_is_unsupported(protocol: object, write: Write) -> None:
    path = write(torch_legacy(ITEM, ONE, protocol=value(protocol)))
    assert "1001" in refusal(path, UnsupportedCheckpointError)


@pytest.mark.parametrize("where", ["protocol", "facts", "keys"])
def test_code_in_the_other_pickles_is_not_run(where: str, write: Write, canary: Path) -> None:
    payload = Opcodes(call(name("os", "mkdir"), str(canary)) + op("POP"))
    sound = {"protocol": 1001, "facts": {}, "keys": ["0"]}[where]
    found = contents(write(torch_legacy(ITEM, ONE, **{where: Opcodes(payload + value(sound))})))
    assert found["w"][2] == SIX


def test_code_before_the_magic_number_is_not_run(write: Write, canary: Path) -> None:
    payload = call(name("os", "mkdir"), str(canary))
    refusal(write(torch_legacy(ITEM, ONE, magic=Opcodes(payload + op("POP") + op("LONG1", MAGIC)))))


def test_names_in_the_other_pickles_are_listed(write: Write) -> None:
    with open_checkpoint(write(torch_legacy(ITEM, ONE, facts={"x": name("os", "system")}))) as checkpoint:
        assert "os.system" in checkpoint.globals


@pytest.mark.parametrize("facts", [value(None), [1], {"little_endian": False, "protocol_version": "x"}], ids=repr)
def test_facts_about_the_machine_are_not_needed(facts: object, write: Write) -> None:
    assert contents(write(torch_legacy(ITEM, ONE, facts=facts)))["w"][2] == SIX


def test_magic_of_another_number_is_not_torchs(write: Write) -> None:
    refusal(write(torch_legacy(ITEM, ONE, magic=Opcodes(op("LONG1", MAGIC + 1)))))


def test_source_code_of_a_pickled_module_is_not_looked_at(write: Write, canary: Path) -> None:
    source = f"import os; os.mkdir({str(canary)!r})"
    module = Opcodes(value(("module", name("torch.nn", "Linear"), "linear.py", source)) + op("BINPERSID"))
    assert contents(write(torch_legacy({"model": ITEM, "net": call(module)}, ONE)))["w"][2] == SIX


def sparse(path: Path, item: object, numel: int) -> Path:
    """A file with one storage of `numel` float32, all of it a hole that takes no disk."""
    head = torch_legacy(item, [("0", numel, b"")], keys=["0"])
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 4 * numel)
    return path


def test_large_holes_take_little_memory(apart: Apart, tmp_path: Path) -> None:
    gigabytes = 1 << 31  # elements: 8 GiB
    files = [
        sparse(tmp_path / "ends.pth", {"w": tensor(shape=(2,), strides=(gigabytes - 1,), numel=gigabytes)}, gigabytes),
        sparse(tmp_path / "part.pth", {"w": tensor(shape=(3,), offset=gigabytes - 3, numel=gigabytes)}, gigabytes),
    ]
    assert max(outcome.growth for outcome in apart(*files)) < 300


def test_a_storage_is_not_taken_for_a_pickle(write: Write) -> None:
    data = pickled({"w": tensor()}).ljust(400, b"\0")
    path = write(torch_legacy({"w": tensor(shape=(100,))}, [("0", 100, data)]))
    assert contents(path)["w"][2] == data


def test_storages_of_no_elements_follow_one_another(write: Write) -> None:
    item = {"a": tensor("a", (0,)), "b": tensor("b", (0,)), "c": tensor("c", (1,))}
    path = write(torch_legacy(item, [("a", 0, b""), ("b", 0, b""), ("c", 1, floats(7))]))
    assert [bits[2] for bits in contents(path).values()] == [b"", b"", floats(7)]
