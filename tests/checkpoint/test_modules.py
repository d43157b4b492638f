"""A pickled module is read as the state dict that torch makes of it, and nothing of it is imported or run."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

from converter.checkpoint import open_checkpoint
from converter.errors import CorruptCheckpointError, UnsupportedCheckpointError
from tests.checkpoint.test_robustness import BLOBS, STORAGES, mutated, opcodes, reads
from tests.support.craft_files import Pack, Write, torch_legacy, torch_zip
from tests.support.craft_pickle import Opcodes, call, name, op, ordered, pickled, tensor, value
from tests.support.reading import SIX, Apart, contents, loaded, refusal

Save = Callable[..., Path]


@pytest.fixture(params=["zip", "legacy", "zip, protocol 4", "legacy, protocol 1"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Save:
    """torch.save in the layout and pickle protocol under test."""
    layout, _, protocol = request.param.partition(", protocol ")

    def save(item: object) -> Path:
        path = tmp_path / "saved.pth"
        options: dict[str, Any] = {"pickle_protocol": int(protocol)} if protocol else {}
        torch.save(item, path, _use_new_zipfile_serialization=layout == "zip", **options)
        return path

    return save


class Net(nn.Module):
    """Everything that decides what a state dict holds: buffers of both kinds, None, sharing, other attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2)])
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.blocks[0][0].weight
        self.again = self.blocks[1]
        self.nothing = None
        self.register_parameter("absent", None)
        self.register_buffer("index", torch.arange(5).view(1, 5))
        self.register_buffer("mask", torch.ones(2), persistent=False)
        self.register_buffer("lost", None)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.settings = {"loose": torch.ones(3)}
        self.add_module("none", None)


def hooked() -> nn.Module:
    net = weight_norm(nn.Linear(3, 4))
    net.register_forward_hook(print)
    return net


MODULES: dict[str, Callable[[], nn.Module]] = {
    "net": Net,
    "linear": lambda: nn.Linear(2, 3),
    "data parallel": lambda: nn.DataParallel(Net()),
    "half": lambda: Net().half(),
    "hooks": hooked,
    "transformer": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", MODULES)
def test_it_is_its_state_dict(kind: str, save: Save) -> None:
    module = MODULES[kind]()
    path = save(module)
    assert contents(path) == loaded(module.state_dict())
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == list(module.state_dict())


def test_a_module_in_a_dict_is_a_root_as_any_other(save: Save) -> None:
    net, average = Net(), Net()
    path = save({"epoch": 3, "loss": torch.ones(1), "ema": average, "model": net, "optimizer": {"state": {}}})
    assert contents(path) == loaded(net.state_dict())
    assert contents(path, "ema") == loaded(average.state_dict())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.root == "model"
        assert set(checkpoint.roots) == {"", "model", "ema"}


class Average:
    """Holds a module, as timm's ModelEma does, and is none."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.decay = module, 0.999


def test_a_module_in_an_attribute_of_an_object_is_found(save: Save) -> None:
    net = Net()
    path = save({"average": Average(net)})
    assert contents(path) == loaded(net.state_dict())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_is_left_aside_is_listed(save: Save) -> None:
    path = save(nn.Sequential(Net(), hooked()))
    with open_checkpoint(path) as checkpoint:
        said = "\n".join(checkpoint.skipped)
    for part in (
        "torch.nn.modules.container.Sequential", "not imported", "_forward_hooks of 1 module: not run",
        "_forward_pre_hooks of 1 module: not run", "1 buffer that state_dict() leaves out, too: 0.mask", "settings",
    ):  # fmt: skip
        assert part in said


# by hand: what no pickler writes


def module(
    parameters: Mapping[str, object], modules: object = None, more: Mapping[str, object] | None = None
) -> Opcodes:
    return Opcodes(
        call(name("models", "GLIP"))
        + value(
            {"_parameters": ordered(parameters), "_buffers": ordered({}), "_modules": modules or ordered({})}
            | dict(more or {})
        )
        + op("BUILD")
    )


def test_a_class_that_exists_nowhere_is_no_matter(pack: Pack) -> None:
    assert contents(pack(module({"w": tensor()}))) == SIX


def test_its_code_is_not_run(pack: Pack, canary: Path) -> None:
    payload = call(name("os", "mkdir"), str(canary))
    assert contents(pack(module({"w": tensor()}, more={"_forward_hooks": {0: payload}, "x": payload}))) == SIX


def test_a_module_that_is_built_twice_is_none(pack: Pack) -> None:
    """Which state holds would be a guess."""
    twice = Opcodes(module({"w": tensor()}) + value({"_parameters": {"w": tensor("1", (2,))}}) + op("BUILD"))
    assert "state_dict" in refusal(pack({"model": twice}))


def test_a_name_that_is_there_twice_is_refused(pack: Pack) -> None:
    inside = module({"b": tensor()})
    assert "'a.b' is there twice" in refusal(
        pack(module({"a.b": tensor()}, ordered({"a": inside}))), CorruptCheckpointError
    )


def test_what_stands_in_the_place_of_a_module_is_named(pack: Pack) -> None:
    path = pack(module({"w": tensor()}, ordered({"scripted": call(name("os", "system"), "id")})))
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.objects) == ["scripted"]
        assert list(checkpoint.tensors) == ["w"]


def test_a_module_that_contains_itself_ends(pack: Pack) -> None:
    empty = value({"_parameters": ordered({"w": tensor()}), "_buffers": ordered({})})
    itself = ordered({"a": Opcodes(op("BINGET", 7))})
    item = Opcodes(
        call(name("models", "GLIP")) + op("BINPUT", 7)
        + empty + value("_modules") + itself + op("SETITEM") + op("BUILD")
    )  # fmt: skip
    assert "contains itself" in refusal(pack(item), UnsupportedCheckpointError)


def test_shared_modules_that_double_at_every_level_end(pack: Pack) -> None:
    item = module({"w": tensor()})
    for level in range(40):
        below = Opcodes(item + op("BINPUT", level))
        item = module({}, ordered({"a": below, "b": Opcodes(op("BINGET", level))}))
    assert "share modules" in refusal(pack(item), UnsupportedCheckpointError)


def test_objects_that_share_their_attributes_end_soon(pack: Pack, apart: Apart) -> None:
    count = 6000
    shared = Opcodes(value({f"a{i}": None for i in range(count)}) + op("LONG_BINPUT", 9))
    first = Opcodes(call(name("models", "A")) + shared + op("BUILD"))
    again = Opcodes(call(name("models", "A")) + op("LONG_BINGET", 9) + op("BUILD"))
    (outcome,) = apart(pack({"model": {"w": tensor()}, "x": {"first": first} | {str(i): again for i in range(count)}}))
    assert outcome.refusal is None
    assert outcome.seconds < 5


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_module_that_a_call_is_given_is_found(save: Save) -> None:
    """torch.compile's module pickles itself as a call with the module that it was made of."""
    net = Net()
    compiled = torch.compile(net)
    assert contents(save(compiled)) == contents(save({"model": compiled})) == loaded(net.state_dict())


def test_shared_modules_of_many_attributes_end_soon(pack: Pack, apart: Apart) -> None:
    """Each name of a module takes all of its attributes to look through."""
    count = 6000
    shared = Opcodes(module({"w": tensor()}, more={f"a{i}": 1 for i in range(count)}) + op("LONG_BINPUT", 9))
    below: dict[str, object] = {"m": shared} | {f"m{i}": Opcodes(op("LONG_BINGET", 9)) for i in range(count)}
    (outcome,) = apart(pack(module({}, ordered(below))))
    assert outcome.refusal is not None
    assert "share modules" in outcome.refusal
    assert outcome.seconds < 5


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**600, float("inf"), True], ids=["a", "b", "c", "d", "e"])
def test_numbers_that_look_like_an_adapter_are_no_matter(number: object, pack: Pack) -> None:
    settings = {"lora_alpha": number, "r": number, "scaling": number, "lora_r": number}
    assert contents(pack({"model": {"w": tensor()}, "cfg": settings, "module": module({}, more=settings)})) == SIX


CHAIN = module({"w": tensor()}, ordered({"below": module({"flag": tensor("1", (2,), kind="BoolStorage")})}))


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_opcodes_of_modules_lost_doubled_or_exchanged_are_survived(layout: str, write: Write) -> None:
    choose = random.Random(layout)
    sound = opcodes(pickled({"model": CHAIN, "last": tensor("2", (1,))}))
    outcomes = []
    for _ in range(1500):
        pickle = mutated(sound, choose)
        data = torch_zip(pickle, BLOBS) if layout == "zip" else torch_legacy(pickle, STORAGES)
        outcomes.append(reads(write(data)))
    assert None in outcomes
    assert any(outcome and len(outcome) == 2 for outcome in outcomes)


def test_a_real_module_with_bytes_flipped_is_survived(save: Save) -> None:
    path = save(Net())
    sound = path.read_bytes()
    choose = random.Random(0)
    for _ in range(300):
        damaged = bytearray(sound)
        for _ in range(choose.randint(1, 4)):
            damaged[choose.randrange(len(damaged))] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        reads(path)
