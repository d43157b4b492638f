"""Wrappers, roots and counters that nobody has listed: always the tensors of the plain file, and never other ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from converter.mapping.wrappers import load_wrappers
from tests.planning.test_wrappers import Holder, bare, converted, moved
from tests.support.reading import contents
from tests.support.small_files import refusal, run

pytestmark = pytest.mark.usefixtures("small_mappings")


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    """What the plain file becomes."""
    return converted(bare(), tmp_path / "plain")


WORDS = sorted(load_wrappers().segments - load_wrappers().copies)
KEYS = ["model", "state_dict", "net", "weights", "params", "module", "ckpt", "ema", "x.y", "0"]
COUNTED = ["steps", "num_updates", "a.global_step", "module.n_averaged", "rpn.num_batches_tracked"]
DECOYS: dict[str, Callable[[], Any]] = {
    "loss": lambda: torch.ones(2),
    "net": lambda: {"rpn.head.bias0": torch.ones(1)},
    "optimizer": lambda: {"state": {0: {"exp_avg": torch.ones(2)}}, "exp_avg": moved()},
    "zz_ema": lambda: {"a": torch.ones(1)},
    "epoch": lambda: 3,
}


@dataclass(frozen=True)
class Wrapping:
    """Words before names, by turns; words at places of every name; dicts around; counters and other things beside."""

    fronts: list[list[str]]
    middles: list[tuple[int, list[str]]]
    roots: list[str]
    counters: dict[str, int]
    decoys: list[str]
    kind: str

    def name(self, name: str, at: int) -> str:
        parts = name.split(".")
        for place, words in self.middles:
            parts[place % len(parts) : place % len(parts)] = words
        return ".".join([*self.fronts[at % len(self.fronts)], *parts])

    def saved(self, at: Path) -> None:
        weights: Any = {self.name(name, i): tensor for i, (name, tensor) in enumerate(bare().items())}
        weights |= {name: torch.tensor(number) for name, number in self.counters.items()}
        if self.kind == "safetensors":
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, at)
            return
        item = Holder(weights) if self.kind == "module" else weights
        for key in self.roots:
            item = {key: item} | {name: DECOYS[name]() for name in self.decoys if name != key}
        torch.save(item, at, _use_new_zipfile_serialization=self.kind != "legacy")


@st.composite
def wrappings(draw: st.DrawFn) -> Wrapping:
    copies = draw(st.sampled_from([[], [], ["student"], ["teacher"], ["ema_model"]]))
    fronts = draw(st.lists(st.lists(st.sampled_from(WORDS), max_size=3), min_size=1, max_size=2))
    middle = st.tuples(st.integers(0, 5), st.lists(st.sampled_from(WORDS), min_size=1, max_size=2))
    return Wrapping(
        [[*copies, *front] for front in fronts],
        draw(st.lists(middle, max_size=2)),
        draw(st.lists(st.sampled_from(KEYS), max_size=4)),
        draw(st.dictionaries(st.sampled_from(COUNTED), st.integers(0, 9))),
        draw(st.lists(st.sampled_from(sorted(DECOYS)), unique=True)),
        draw(st.sampled_from(["zip", "zip", "legacy", "module", "safetensors"])),
    )


@settings(max_examples=60)
@given(wrapping=wrappings())
def test_any_wrapping_gives_the_tensors_of_the_plain_file(
    wrapping: Wrapping, plain: Mapping[str, Any], tmp_path: Path
) -> None:
    source = tmp_path / ("any.safetensors" if wrapping.kind == "safetensors" else "any.pth")
    wrapping.saved(source)
    run("convert", "--src", source, "--dst", tmp_path / "made.safetensors", "--force")
    assert contents(tmp_path / "made.safetensors") == plain


@settings(max_examples=25)
@given(wrapping=wrappings(), word=st.sampled_from(["detector", "glip", "my.model.x"]), some=st.booleans())
def test_what_is_no_wrapper_is_never_taken_off(
    wrapping: Wrapping, word: str, some: bool, plain: Mapping[str, Any], tmp_path: Path
) -> None:
    fronts = [[word, *wrapping.fronts[0]], *([[]] if some else [])]
    source = tmp_path / ("any.safetensors" if wrapping.kind == "safetensors" else "any.pth")
    replace(wrapping, fronts=fronts, decoys=[]).saved(source)
    error = refusal("convert", "--src", source, "--dst", tmp_path / "never.safetensors", code=5)
    said = "\n".join([error["message"], *error["problems"]])
    assert word.partition(".")[0] in said
    assert not (tmp_path / "never.safetensors").exists()


def test_of_two_starts_the_one_that_is_no_wrapper_is_named(tmp_path: Path) -> None:
    wrapping = Wrapping([["detector"], []], [(0, ["_checkpoint_wrapped_module"])], [], {}, [], "safetensors")
    wrapping.saved(tmp_path / "a.safetensors")
    error = refusal("convert", "--src", tmp_path / "a.safetensors", "--dst", tmp_path / "x.safetensors", code=5)
    assert "behind 'detector.'" in error["message"]


def test_what_lies_beside_a_wrapped_model_is_left_out_by_the_root(plain: Mapping[str, Any], tmp_path: Path) -> None:
    item = {**{f"model.{name}": tensor for name, tensor in bare().items()}, "criterion.weight": torch.ones(3)}
    torch.save({"state_dict": item}, tmp_path / "a.pth")
    error = refusal("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", code=5)
    assert "Not behind 'model.': 1 name, which --root model leaves out" in error["message"]
    assert converted({"state_dict": item}, tmp_path / "b", "--root", "model") == plain


@pytest.mark.parametrize("value", [[[1.0]], np.ones((1, 1), np.float32)], ids=["list", "array"])
def test_a_weight_that_is_no_tensor_is_not_left_out(value: object, tmp_path: Path) -> None:
    """The prompt is optional: without it the model would be another one."""
    torch.save({**bare(), "rpn.tunable_linear.weight": value}, tmp_path / "a.pth")
    error = refusal("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", code=5)
    assert "rpn.tunable_linear.weight" in "\n".join(error["problems"])


def test_of_two_copies_one_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    item: dict[str, Any] = {f"model.{name}": tensor.numpy() for name, tensor in bare().items()}
    torch.save({**item, **{f"ema.{name}": tensor for name, tensor in moved().items()}}, tmp_path / "a.pth")
    error = refusal("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", code=5)
    assert "is there twice" in error["problems"][0]


def test_a_number_that_is_learned_is_no_counter(tmp_path: Path) -> None:
    torch.save({**bare(), "rpn.head.steps": torch.tensor(0.3)}, tmp_path / "a.pth")
    error = refusal("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", code=5)
    assert "rpn.head.steps" in error["problems"][0]
