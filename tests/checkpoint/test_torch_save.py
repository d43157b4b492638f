"""Whatever torch.save writes, in either layout, is read as torch.load reads it."""

from __future__ import annotations

import re
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converter.checkpoint import open_checkpoint
from converter.errors import RootError, UnsupportedCheckpointError
from tests.support.reading import contents, loaded, refusal

Save = Callable[..., Path]

# torch has names for integers of 1 to 7 bits, but cannot save them
DTYPES = sorted(
    {name for name, item in vars(torch).items() if isinstance(item, torch.dtype) and str(item) == f"torch.{name}"}
    - {name for name in vars(torch) if re.fullmatch(r"u?int[1-7]|qu?int.*", name)}
)


@pytest.fixture(params=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Save:
    """torch.save in the layout under test."""

    def save(item: object, **options: Any) -> Path:
        path = tmp_path / "saved.pth"
        torch.save(item, path, _use_new_zipfile_serialization=request.param == "zip", **options)
        return path

    return save


class Net(nn.Module):
    """Parameters, buffers, a shared parameter and modules in modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(3, 4, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("index", torch.arange(5).view(1, 5))


class Labelled(torch.Tensor):
    """A subclass; torch writes it with `_rebuild_from_type_v2`."""


def labelled() -> torch.Tensor:
    tensor = torch.randn(2, 3).as_subclass(Labelled)
    tensor.label = "with an attribute"
    return tensor


def hooked() -> torch.Tensor:
    tensor = torch.randn(2, 3, requires_grad=True)
    tensor.register_hook(print)
    return tensor


def attributed(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = {"lr_scale": 0.5}
    return tensor


TENSORS = {
    "0-d": lambda: torch.tensor(1.5),
    "empty": lambda: torch.empty(0),
    "empty in one of three dimensions": lambda: torch.empty(3, 0, 2, dtype=torch.int16),
    "empty view of something": lambda: torch.arange(6)[6:],
    "one element of many": lambda: torch.arange(6)[3],
    "transposed": lambda: torch.randn(3, 4).t(),
    "permuted": lambda: torch.randn(2, 3, 4, 5).permute(2, 0, 3, 1),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "every other column": lambda: torch.arange(24).view(4, 6)[:, ::2],
    "contiguous part": lambda: torch.randn(8, 3)[2:5],
    "expanded from one": lambda: torch.tensor([2.5]).expand(3, 4),
    "expanded rows": lambda: torch.randn(1, 4).expand(3, 4),
    "overlapping windows": lambda: torch.arange(8).unfold(0, 3, 1),
    "diagonal": lambda: torch.randn(4, 4).diagonal(),
    "any stride where the length is one": lambda: torch.arange(6.0).as_strided((2, 1, 3), (1, 1 << 61, 2)),
    "thirty dimensions": lambda: torch.randn(*[1] * 28, 2, 3),
    "conjugated": lambda: torch.randn(2, 3, dtype=torch.complex64).conj(),
    "conjugated and transposed": lambda: torch.randn(2, 3, dtype=torch.complex128).mH,
    "negated": lambda: torch.randn(2, 3, dtype=torch.complex64).conj().imag,
    "real parts": lambda: torch.randn(2, 3, dtype=torch.complex64).real,
    "special floats": lambda: torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    "every byte": lambda: torch.arange(256).to(torch.uint8),
    "parameter": lambda: nn.Parameter(torch.randn(2, 3)),
    "integer parameter": lambda: nn.Parameter(torch.arange(4), requires_grad=False),
    "buffer": lambda: nn.Buffer(torch.randn(3)),
    "parameter with attributes": lambda: attributed(nn.Parameter(torch.randn(2, 3))),
    "tensor with attributes": lambda: attributed(torch.randn(2, 3)),
    "subclass": labelled,
    "parameter of a subclass": lambda: nn.Parameter(labelled()),
}


def whatever_torch_makes(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dtypes and layouts that are beta or deprecated
        return make()


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_has_the_values_that_torch_gives_it(name: str, save: Save) -> None:
    state_dict = {"w": TENSORS[name]()}
    assert contents(save(state_dict)) == loaded(state_dict)


@pytest.mark.filterwarnings("ignore:backward hook")
def test_a_tensor_with_a_backward_hook(save: Save) -> None:
    state_dict = {"w": hooked()}
    assert contents(save(state_dict)) == loaded(state_dict)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str, save: Save) -> None:
    most = 2 if dtype == "bool" else 256
    raw = torch.randint(0, most, (48,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    typed = raw.view(getattr(torch, dtype))
    state_dict = {"all": typed, "part": typed[1:], "0-d": typed[1], "empty": typed[:0]}
    assert contents(save(state_dict)) == loaded(state_dict)


def test_every_dtype_is_known_before_it_is_read(save: Save) -> None:
    path = save({name: torch.zeros(16, dtype=torch.uint8).view(getattr(torch, name)) for name in DTYPES})
    with open_checkpoint(path) as checkpoint:
        assert [str(info.dtype) for info in checkpoint.tensors.values()] == DTYPES


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_that_torch_allows(protocol: int, save: Save) -> None:
    state_dict = Net().state_dict()
    assert contents(save({"model": state_dict}, pickle_protocol=protocol)) == loaded(state_dict)


def test_a_module_keeps_its_names_in_their_order(save: Save) -> None:
    state_dict = Net().state_dict()
    assert list(contents(save(state_dict))) == list(state_dict)


def test_tensors_in_one_storage_say_so(save: Save) -> None:
    whole = torch.randn(4, 4)
    path = save({"whole": whole, "row": whole[2], "turned": whole.t(), "equal": whole.clone()})
    with open_checkpoint(path) as checkpoint:
        whole_info = checkpoint.tensors["whole"]
        found = {name: whole_info.storage is info.storage for name, info in checkpoint.tensors.items()}
    assert found == {"whole": True, "row": True, "turned": True, "equal": False}


def test_strided_tensors_are_described_as_they_lie(save: Save) -> None:
    with open_checkpoint(save({"w": torch.arange(24.0).view(4, 6)[1:, ::2]})) as checkpoint:
        info = checkpoint.tensors["w"]
    assert (info.shape, info.strides, info.offset, info.contiguous) == ((3, 3), (6, 2), 6, False)


UNSUPPORTED = {
    "sparse_coo": lambda: torch.eye(3).to_sparse(),
    "sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8),
    "quantised by channel": lambda: torch.quantize_per_channel(
        torch.randn(2, 2), torch.ones(2), torch.zeros(2, dtype=torch.int64), 0, torch.quint8
    ),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided),
    "meta": lambda: torch.empty(3, device="meta"),
    "array": lambda: np.arange(3.0),
    "untyped storage": lambda: torch.arange(3).untyped_storage(),
}


@pytest.mark.parametrize("kind", [kind for kind in UNSUPPORTED if "storage" not in kind])
def test_a_special_tensor_is_refused_when_it_is_read(kind: str, save: Save) -> None:
    path = save({"good": torch.arange(2), "special": whatever_torch_makes(UNSUPPORTED[kind])})
    assert "'special'" in refusal(path, UnsupportedCheckpointError)


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_special_tensor_does_not_spoil_its_neighbours(kind: str, save: Save) -> None:
    good = {"first": torch.arange(2), "last": torch.randn(2, 2)}
    path = save({"first": good["first"], "special": whatever_torch_makes(UNSUPPORTED[kind]), "last": good["last"]})
    assert contents(path) == loaded(good)


def test_what_is_no_tensor_is_named_and_left_aside(save: Save) -> None:
    path = save({"w": torch.ones(2), "epoch": 3, 7: 1.5, "deep": {"w": torch.ones(3)}, "none": None})
    with open_checkpoint(path, root="") as checkpoint:
        skipped = " ".join(checkpoint.skipped)
    assert [word in skipped for word in ("epoch", "int", "deep", "none")] == [True] * 4


@pytest.mark.parametrize("key", [7, None, ("w", 1), True], ids=str)
def test_a_tensor_whose_name_is_no_string_is_refused(key: object, save: Save) -> None:
    message = refusal(save({"model": {"w": torch.ones(2), key: torch.ones(1)}}), UnsupportedCheckpointError)
    assert "a tensor in the state dict has a key that is" in message


def trainer_format(save: Save) -> tuple[Path, dict[str, torch.Tensor]]:
    """What a trainer writes after a step, and the weights in it; a configuration is among it."""
    net = Net()
    averaged = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    net.first(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    parts = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "iteration": 12,
        "model_ema": averaged,
        "config": Namespace(lr=1e-3, names=("a", "b"), best=np.float64(0.5)),
    }
    return save(parts), net.state_dict()


def test_the_trainers_format_gives_the_model(save: Save) -> None:
    path, model = trainer_format(save)
    assert contents(path) == loaded(model)


def test_the_trainers_format_names_what_else_is_in_it(save: Save) -> None:
    path, _ = trainer_format(save)
    with open_checkpoint(path) as checkpoint:
        found = [line.partition(":")[0] for line in checkpoint.skipped]
    assert found == ["optimizer", "scheduler", "iteration", "model_ema", "config"]


def test_the_trainers_format_lists_its_globals(save: Save) -> None:
    path, _ = trainer_format(save)
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.globals
    assert {"argparse.Namespace", "collections.OrderedDict", "torch._utils._rebuild_tensor_v2"} <= set(found)


ROOTS = {"model": 1, "state_dict": 2, "model_ema": 3, "other": 4}


def save_roots(save: Save, names: list[str]) -> Path:
    return save({name: {f"w{i}": torch.full((2,), float(ROOTS[name])) for i in range(ROOTS[name])} for name in names})


@pytest.mark.parametrize(
    ("present", "taken"),
    [
        (["model"], "model"),
        (["other"], "other"),
        (["model_ema", "other", "state_dict", "model"], "model"),
        (["model_ema", "state_dict"], "state_dict"),
        (["other", "model_ema"], "model_ema"),
    ],
)
def test_the_root_that_is_preferred(present: list[str], taken: str, save: Save) -> None:
    with open_checkpoint(save_roots(save, present)) as checkpoint:
        assert (checkpoint.root, len(checkpoint.tensors)) == (taken, ROOTS[taken])


def test_all_roots_are_counted(save: Save) -> None:
    with open_checkpoint(save_roots(save, list(ROOTS))) as checkpoint:
        assert checkpoint.roots == ROOTS


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_can_be_chosen(root: str, save: Save) -> None:
    with open_checkpoint(save_roots(save, list(ROOTS)), root=root) as checkpoint:
        assert (checkpoint.root, len(checkpoint.tensors)) == (root, ROOTS[root])


@pytest.mark.parametrize("root", ["ema", "", "Model"])
def test_an_unknown_root_is_refused_with_those_there_are(root: str, save: Save) -> None:
    message = refusal(save_roots(save, list(ROOTS)), RootError, root=root)
    assert [name in message for name in ROOTS] == [True] * len(ROOTS)


def test_several_roots_of_no_known_name_are_refused(save: Save) -> None:
    path = save({"first": {"w": torch.ones(1)}, "second": {"w": torch.ones(1)}})
    assert "--root" in refusal(path, RootError)


def test_a_bare_state_dict_has_the_root_without_a_name(save: Save) -> None:
    with open_checkpoint(save(Net().state_dict())) as checkpoint:
        assert checkpoint.root == ""


@pytest.mark.parametrize("item", [[1, 2], {"a": 1}, torch.ones(2), {}, None, {"model": {}}], ids=repr)
def test_a_file_without_a_state_dict_is_refused(item: object, save: Save) -> None:
    assert "state_dict" in refusal(save(item), RootError)


def test_reading_it_needs_only_its_own_bytes(save: Save) -> None:
    path = save({"first": torch.arange(4.0), "last": torch.arange(4.0) + 0.5})
    position = path.read_bytes().index(torch.tensor(0.5).numpy().tobytes())
    with path.open("r+b") as file:
        file.seek(position)
        file.write(b"damaged!")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("first").tolist() == [0, 1, 2, 3]
