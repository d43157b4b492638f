"""Which state dict is taken: the documented one, one that is asked for by its path, or none without a reason."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.checkpoint import open_checkpoint
from converter.errors import RootError
from tests.support.craft_files import Pack
from tests.support.craft_pickle import Opcodes, op, tensor, value
from tests.support.reading import contents, loaded, refusal


def weights(number: int) -> dict[str, torch.Tensor]:
    return {f"w{i}": torch.full((2,), float(number)) for i in range(number)}


def saved(item: Any, tmp_path: Path) -> Path:
    torch.save(item, tmp_path / "saved.pth")
    return tmp_path / "saved.pth"


@pytest.mark.parametrize("root", ["run.weights.model", "run", "run.weights.x", "run.weights"])
def test_a_dotted_path_is_taken(root: str, tmp_path: Path) -> None:
    inner = {"model": weights(3), "x": weights(4), **weights(2)}
    item = {"run": {"weights": inner, **weights(1)}, "model": weights(5)}
    wanted = {"run.weights.model": 3, "run": 1, "run.weights.x": 4, "run.weights": 2}
    assert contents(saved(item, tmp_path), root) == loaded(weights(wanted[root]))


def test_keys_may_have_dots_themselves(tmp_path: Path) -> None:
    path = saved({"a.b": {"c.d": weights(3)}, "e": weights(2)}, tmp_path)
    assert contents(path, "a.b.c.d") == loaded(weights(3))


def test_two_of_the_same_path_are_refused(tmp_path: Path) -> None:
    assert "same path" in refusal(saved({"a.b": weights(1), "a": {"b": weights(2)}}, tmp_path), RootError)


def test_a_dict_under_two_names_is_one(tmp_path: Path) -> None:
    shared = weights(3)
    path = saved({"first": shared, "second": shared}, tmp_path)
    assert contents(path) == contents(path, "first") == contents(path, "second") == loaded(shared)


def test_the_beginning_of_names_is_taken_and_taken_off(tmp_path: Path) -> None:
    both = {f"student.{n}": t for n, t in weights(2).items()} | {f"my.teacher.{n}": t for n, t in weights(3).items()}
    path = saved({"state_dict": both}, tmp_path)
    assert contents(path, "student") == contents(path, "state_dict.student") == loaded(weights(2))
    assert contents(path, "my.teacher") == loaded(weights(3))
    with open_checkpoint(path, "student") as checkpoint:
        assert checkpoint.root == "state_dict.student"
        assert "3 tensors whose names do not begin with 'student.'" in checkpoint.skipped
    refusal(path, RootError, root="stud")


def test_the_beginning_of_names_of_several_needs_the_whole_path(tmp_path: Path) -> None:
    inner = {f"net.{n}": t for n, t in weights(2).items()}
    path = saved({"red": inner, "blue": {f"net.{n}": t for n, t in weights(3).items()}}, tmp_path)
    assert "several state dicts" in refusal(path, RootError, root="net")
    assert contents(path, "blue.net") == loaded(weights(3))


def test_loose_tensors_are_no_reason_for_the_top_level(tmp_path: Path) -> None:
    path = saved({"loss": torch.ones(()), "acc": torch.ones(1), "whatever": weights(20)}, tmp_path)
    assert contents(path) == loaded(weights(20))


@pytest.mark.parametrize("known", ["large", "small"])
def test_one_whose_names_are_known_is_taken_whatever_its_name_and_size(known: str, tmp_path: Path) -> None:
    item = {"model": {f"a{i}": torch.ones(1) for i in range(30)}, "zzz": {f"b{i}": torch.ones(1) for i in range(70)}}
    if known == "large":
        item |= {"zzz": {"b0": torch.ones(1)}}
    letter = "a" if known == "large" else "b"

    def known(names: Collection[str]) -> int:
        return sum(name.startswith(letter) for name in names)

    with open_checkpoint(saved(item, tmp_path), knows=known) as checkpoint:
        assert checkpoint.root == {"a": "model", "b": "zzz"}[letter]


def test_of_two_that_are_known_the_one_that_is_named_so_is_taken(tmp_path: Path) -> None:
    path = saved({"x": weights(3), "model_ema": weights(4), "y": {"net": weights(5)}}, tmp_path)
    with open_checkpoint(path, knows=len) as checkpoint:
        assert checkpoint.root == "model_ema"
    path = saved({"x": weights(3), "y": {"z": weights(5)}}, tmp_path)
    with pytest.raises(RootError, match=r"several state dicts: 'x' \(3 tensors\), 'y.z' \(5 tensors\)") as caught:
        open_checkpoint(path, knows=len)
    assert "--root" in str(caught.value)


# of which of two state dicts, both known, one is taken, if any; "ours" are the weights that are meant
SIBLINGS: dict[str, tuple[Any, str | None]] = {
    "a better name that is known": ({"model": "ours", "model_ema": "other"}, "model"),
    "in a run": ({"run": {"model": "ours", "model_ema": "other"}}, "run.model"),
    "names that say nothing": ({"previous": {"model": "other"}, "current": {"student": "ours"}}, None),
    "names inside of names": ({"pretrained": {"model": "other"}, "finetuned": {"model_ema": "ours"}}, None),
    "a name with something below": ({"model": {"old": "other"}, "ema": "ours"}, None),
    "an optimizer with a name below": ({"optimizer": {"model": "other"}, "final": {"ema": "ours"}}, "final.ema"),
    "gradients": ({"grads": {"model": "other"}, "final": {"ema": "ours"}}, "final.ema"),
    "the state of an optimizer": ({"o": {"state": {"model": "other"}, "param_groups": []}, "ema": "ours"}, "ema"),
}


@pytest.mark.parametrize("case", SIBLINGS)
def test_a_name_decides_among_those_beside_it_alone(case: str, tmp_path: Path) -> None:
    item, root = SIBLINGS[case]
    moved = {name: tensor + 1 for name, tensor in weights(3).items()}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(below) for key, below in value.items()}
        return {"ours": weights(3), "other": moved}[value] if isinstance(value, str) else value

    path = saved(filled(item), tmp_path)
    if root is None:
        with pytest.raises(RootError, match="--root"):
            open_checkpoint(path, knows=len)
        return
    with open_checkpoint(path, knows=len) as checkpoint:
        assert checkpoint.root == root
    assert contents(path, root) == loaded(weights(3))


def test_weights_in_no_known_format_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    item = {"model": {f"detector.{n}": t for n, t in weights(5).items()}, "model_ema": weights(5)}
    path = saved(item, tmp_path)

    def known(names: Collection[str]) -> int:
        return sum(name.startswith("w") for name in names)

    with pytest.raises(RootError, match=r"'model' .* has the better name, but is in no known format"):
        open_checkpoint(path, knows=known)


def test_arrays_are_no_tensors_and_nothing_else_is_taken_for_them(tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in weights(5).items()}
    for item in (arrays, {"model": arrays}, {"model": arrays, "model_ema": weights(5)}):
        path = saved(item, tmp_path)
        with pytest.raises(RootError, match=r"5 numpy arrays by name, and no tensors.*torch\.from_numpy"):
            open_checkpoint(path, knows=len)


@pytest.mark.parametrize("decoy", ["net", "model", "", "state_dict.head"])
def test_a_few_known_names_are_no_match_for_all_of_them(decoy: str, tmp_path: Path) -> None:
    """Every name of the decoy is known, and most of the names of the weights."""
    item: Any = {"zzz": {**{f"a{i}": torch.ones(1) for i in range(20)}, "other": torch.ones(1)}}
    inner: Any = {"a.weight": torch.ones(1), "a.bias": torch.ones(1)}
    for key in reversed(decoy.split(".") if decoy else []):
        inner = {key: inner}
    path = saved(item | inner, tmp_path)
    with open_checkpoint(path, knows=lambda names: sum(name.startswith("a") for name in names)) as checkpoint:
        assert checkpoint.root == "zzz"


@pytest.mark.parametrize(
    "key", ["optimizer", "optimizer_state_dict", "exp_avg", "exp_avg_sq", "momentum_buffer", "grads"]
)
def test_what_an_optimizer_keeps_by_the_names_of_weights_is_not_taken(key: str, tmp_path: Path) -> None:
    path = saved({"epoch": 3, key: {"model": weights(3)}}, tmp_path)
    assert "--root" in refusal(path, RootError)
    assert contents(path, f"{key}.model") == loaded(weights(3))
    path = saved({"zzz": weights(2), key: {"model": weights(3)}}, tmp_path)
    assert contents(path) == loaded(weights(2))


NOTHING = {
    "tensor": (torch.ones(3), "holds a tensor alone"),
    "parameter": (torch.nn.Parameter(torch.ones(3)), "holds a tensor alone"),
    "tuple": (({"w": torch.ones(1)}, 3), "a tuple of 2 entries; entry 0 holds tensors by name"),
    "list": ([torch.ones(1)], "a list of 1 entry"),
    "optimizer": (torch.optim.SGD([torch.ones(1)], 0.1).state_dict(), "the state of an optimizer and no weights"),
    "trainer": ({"optimizer": {"state": {0: {"m": torch.ones(1)}}, "param_groups": []}, "epoch": 3}, "an optimizer"),
    "numbers": ({"epoch": 3}, "a dict of 1 entry"),
}  # fmt: skip


@pytest.mark.parametrize("what", NOTHING)
def test_a_file_without_weights_is_told_what_it_is(what: str, tmp_path: Path) -> None:
    item, said = NOTHING[what]
    message = refusal(saved(item, tmp_path), RootError)
    assert said in message
    assert "Save model.state_dict()" in message
    assert "_rebuild" not in message


def test_dicts_that_double_at_every_level_end(pack: Pack) -> None:
    item: Any = {"w": tensor()}
    for level in range(60):
        item = {"a": Opcodes(value(item) + op("BINPUT", level)), "b": Opcodes(op("BINGET", level))}
    message = refusal(pack(item), RootError)  # deeper than any trainer nests
    assert "no state dict" in message


def test_a_dict_that_contains_itself_ends(pack: Pack) -> None:
    itself = Opcodes(op("EMPTY_DICT") + op("BINPUT", 3) + value("again") + op("BINGET", 3) + op("SETITEM")
                     + value("w") + tensor() + op("SETITEM"))  # fmt: skip
    with open_checkpoint(pack({"model": itself})) as checkpoint:
        assert (checkpoint.root, list(checkpoint.tensors)) == ("model", ["w"])
