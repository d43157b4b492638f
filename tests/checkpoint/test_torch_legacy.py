"""The layout before torch 1.6: a chain of pickles and storages, in which only sizes say where anything lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from converter.checkpoint import open_checkpoint
from tests.support.craft_files import Write, torch_legacy
from tests.support.craft_pickle import SIX, Opcodes, call, floats, name, op, tensor, value
from tests.support.reading import SIX as SIX_BITS
from tests.support.reading import contents, loaded

ITEM = {"w": tensor(view=(None,))}


def test_a_file_by_hand_is_what_torch_reads(write: Write) -> None:
    path = write(torch_legacy(ITEM, [("0", 6, SIX)]))
    assert contents(path) == loaded(torch.load(path)) == SIX_BITS


def test_layout_and_size(write: Write) -> None:
    path = write(torch_legacy(ITEM, [("0", 6, SIX)]))
    with open_checkpoint(path) as checkpoint:
        assert (checkpoint.layout, checkpoint.size) == ("torch-legacy", path.stat().st_size)


def test_storages_come_in_the_order_of_the_list_of_keys(write: Write) -> None:
    item = {"a": tensor("x", (2,)), "b": tensor("y", (1,)), "c": tensor("z", (3,), kind="ByteStorage")}
    path = write(torch_legacy(item, [("z", 3, b"\1\2\3"), ("x", 2, floats(1, 2)), ("y", 1, floats(3))]))
    assert {key: bits[2] for key, bits in contents(path).items()} == {
        "a": floats(1, 2),
        "b": floats(3),
        "c": b"\1\2\3",
    }


def test_storages_of_what_is_left_aside_are_stepped_over(write: Write) -> None:
    item = {"optimizer": {"step": tensor("first", (1,), kind="DoubleStorage")}, "model": ITEM}
    path = write(torch_legacy(item, [("first", 1, bytes(8)), ("0", 6, SIX)]))
    assert contents(path) == SIX_BITS


def test_a_storage_may_look_into_a_part_of_another(write: Write) -> None:
    part = ("0:2", 2, 3)  # three elements from the third on, as torch before 0.4 wrote them
    path = write(torch_legacy({"w": tensor(shape=(2,), offset=1, numel=6, view=(part,))}, [("0", 6, SIX)]))
    assert contents(path) == loaded({"w": torch.tensor([3.0, 4.0])})


def test_strings_of_python_2(write: Write) -> None:
    item = {"w": call(name("torch._utils", "_rebuild_tensor"), *_arguments_of_python_2())}
    assert contents(write(torch_legacy(item, [("0", 6, SIX)]))) == SIX_BITS


def test_an_ordered_dict_of_python_2(write: Write) -> None:
    pairs = call(name("collections", "OrderedDict"), [["w", tensor(view=(None,))]])
    path = write(torch_legacy({"model": pairs}, [("0", 6, SIX)]))
    assert contents(path) == loaded(torch.load(path)["model"]) == SIX_BITS


def _arguments_of_python_2() -> list[object]:
    old = [Opcodes(op("SHORT_BINSTRING", text)) for text in ("storage", "0", "cpu")]
    reference = value((old[0], name("torch", "FloatStorage"), old[1], old[2], 6, None))
    return [Opcodes(reference + op("BINPERSID")), 0, (2, 3), (3, 1)]


def test_several_storages_of_every_size(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    state_dict = {str(length): torch.arange(float(length)) for length in (0, 1, 5, 0, 300_000, 2)}
    torch.save(state_dict, path, _use_new_zipfile_serialization=False)
    assert contents(path) == loaded(state_dict)


def test_pieces_of_any_size_add_up(write: Write) -> None:
    numbers = np.arange(300_000, dtype="<f4")
    path = write(torch_legacy({"w": tensor(shape=(300_000,))}, [("0", 300_000, numbers.tobytes())]))
    with open_checkpoint(path) as checkpoint:
        found = [b"".join(map(bytes, checkpoint.chunks("w", size))) for size in (1 << 22, 65_536, 4_100)]
    assert found == [numbers.tobytes()] * 3
