"""Wrappers in names, roots at any depth, counters among weights: the tensors of the plain file, or a refusal."""

from __future__ import annotations

import json
import shlex
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from converter.mapping import folders
from converter.mapping.lint import lint_wrappers
from tests.support.reading import contents
from tests.support.small_files import official, refusal, run, tensors_in

pytestmark = pytest.mark.usefixtures("small_mappings")
Tensors = Mapping[str, torch.Tensor]
Rename = Callable[[str], str]


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    """What the plain file becomes."""
    return converted(bare(), tmp_path / "plain")


def bare() -> dict[str, torch.Tensor]:
    """A small GLIP under its official names, without a wrapper."""
    torch.manual_seed(0)
    return {name.removeprefix("module."): tensor for name, tensor in official().items()}


def moved() -> dict[str, torch.Tensor]:
    """Other weights of the same names."""
    return {name: tensor + 1 if ".head." in name else tensor for name, tensor in bare().items()}


def converted(item: object, at: Path, *options: object) -> dict[str, Any]:
    torch.save(item, at.with_suffix(".pth"))
    run("convert", "--src", at.with_suffix(".pth"), "--dst", at.with_suffix(".safetensors"), *options)
    return contents(at.with_suffix(".safetensors"))


def ledger(at: Path) -> dict[str, Any]:
    from converter.checkpoint import open_checkpoint

    with open_checkpoint(at.with_suffix(".safetensors")) as checkpoint:
        found: dict[str, Any] = json.loads(checkpoint.metadata["conversion"])
        return found


def before(*words: str) -> Rename:
    return lambda name: ".".join([*words, name])


def within(word: str, part: str) -> Rename:
    """`word` behind every segment `part`."""
    return lambda name: f".{name}".replace(f".{part}.", f".{part}.{word}.")[1:]


def adapted(name: str) -> str:
    """As PEFT names the linear layers that it has put an adapter around."""
    layer, _, parameter = name.rpartition(".")
    wrapped = layer.endswith((".qkv", ".query", ".value", ".dense"))
    return f"base_model.model.{layer}.base_layer.{parameter}" if wrapped else f"base_model.model.{name}"


WRAPPED: dict[str, tuple[Rename, set[str]]] = {
    "module.": (before("module"), {"module"}),
    "module. twice": (before("module", "module"), {"module"}),
    "torch.compile": (before("_orig_mod"), {"_orig_mod"}),
    "compiled inside": (within("_orig_mod", "body"), {"_orig_mod"}),
    "FSDP": (lambda n: before("_fsdp_wrapped_module")(within("_fsdp_wrapped_module", "dyhead_tower")(n)),
             {"_fsdp_wrapped_module"}),
    "checkpointing in FSDP": (within("_fsdp_wrapped_module._checkpoint_wrapped_module", "0"),
                              {"_fsdp_wrapped_module", "_checkpoint_wrapped_module"}),
    "Lightning": (before("model"), {"model"}),
    "Lightning, net": (before("net"), {"net"}),
    "student": (before("student"), {"student"}),
    "teacher": (before("teacher", "module"), {"teacher", "module"}),
    "averaged": (before("ema_model", "module"), {"ema_model", "module"}),
    "PEFT": (adapted, {"base_model", "model", "base_layer"}),
    "compiled, parallel, Lightning": (before("model", "_orig_mod", "module"), {"model", "_orig_mod", "module"}),
    "half of the names": (lambda n: f"module.{n}" if n.startswith("rpn") else n, {"module"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_taken_off(kind: str, plain: Mapping[str, Any], tmp_path: Path) -> None:
    rename, wrappers = WRAPPED[kind]
    weights = {rename(name): tensor for name, tensor in bare().items()}
    assert weights.keys() != bare().keys()
    assert converted({"model": weights}, tmp_path / "wrapped") == plain
    assert set(ledger(tmp_path / "wrapped")["source"]["wrappers"]) == wrappers


def test_the_summary_names_them(tmp_path: Path) -> None:
    torch.save({f"student.{name}": tensor for name, tensor in bare().items()}, tmp_path / "a.pth")
    shown = run("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "b.safetensors", "--dry-run").stdout
    assert f"wrappers taken off names: student ({len(bare())})" in shown


@pytest.mark.parametrize(
    "form", ["mmdet-glip", "mmpretrain-glip", "transformers-bert", "transformers-swin", "timm-swin"]
)
def test_so_they_are_in_every_format(form: str, tmp_path: Path) -> None:
    weights = tensors_in(form)
    before_ = converted(weights, tmp_path / "plain")
    wrapped = {f"model._orig_mod.{name}": tensor for name, tensor in weights.items()}
    assert converted({"state_dict": wrapped}, tmp_path / "wrapped") == before_


def test_names_that_become_one_are_refused_and_the_root_chooses(plain: Mapping[str, Any], tmp_path: Path) -> None:
    weights = bare()
    other = moved()
    both = before("student"), before("teacher")
    item = {rename(n): t for rename, copy in zip(both, (weights, other), strict=True) for n, t in copy.items()}
    torch.save({"state_dict": item}, tmp_path / "both.pth")
    error = refusal("convert", "--src", tmp_path / "both.pth", "--dst", tmp_path / "x.safetensors", code=5)
    assert "--root student or --root teacher" in "\n".join(error["problems"])
    assert len(error["problems"]) == 1
    assert converted({"state_dict": item}, tmp_path / "one", "--root", "student") == plain
    assert converted({"state_dict": item}, tmp_path / "two", "--root", "state_dict.teacher") != plain
    assert ledger(tmp_path / "two")["source"]["root"] == "state_dict.teacher"


def test_a_prefix_that_is_no_wrapper_is_said_and_the_root_takes_it_off(
    plain: Mapping[str, Any], tmp_path: Path
) -> None:
    item = {f"my.detector.{name}": tensor for name, tensor in bare().items()}
    torch.save(item, tmp_path / "a.pth")
    error = refusal("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", code=5)
    assert "'my.detector.'" in error["message"]
    assert "--root my.detector" in error["message"]
    assert converted(item, tmp_path / "a", "--root", "my.detector") == plain


def test_a_prefix_of_safetensors_is_taken_off_by_the_root_too(plain: Mapping[str, Any], tmp_path: Path) -> None:
    save_file({f"mine.{name}": t.contiguous() for name, t in bare().items()}, tmp_path / "a.safetensors")
    run("convert", "--src", tmp_path / "a.safetensors", "--dst", tmp_path / "b.safetensors", "--root", "mine")
    assert contents(tmp_path / "b.safetensors") == plain
    error = refusal(
        "convert", "--src", tmp_path / "a.safetensors", "--dst", tmp_path / "c.safetensors", "--root", "x", code=3
    )
    assert "'x.'" in error["message"]


ROOTS: dict[str, Callable[[Any], Any]] = {
    "model": lambda w: {"model": w},
    "model.state_dict": lambda w: {"model": {"state_dict": w}, "epoch": 3},
    "ckpt.weights": lambda w: {"ckpt": {"weights": w, "loss": torch.ones(())}, "args": {"lr": 0.1}},
    "model_state_dict": lambda w: {"model_state_dict": w, "optimizer_state_dict": {"state": {0: {"m": torch.ones(3)}}}},
    "net": lambda w: {"net": w, "acc": torch.tensor(0.5), "loss": torch.tensor([1.0, 2.0])},
    "weights": lambda w: {"weights": w},
    "params": lambda w: {"params": w, "params_shapes": [1, 2]},
    "module": lambda w: {"module": w, "buffer_names": ["x"], "ds_version": "0.9"},
    "a.b.c.d": lambda w: {"a": {"b": {"c": {"d": w}}}, "x": {"y": {"z": torch.ones(2)}}},
    "state_dict": lambda w: {"state_dict": w, "message_hub": {"runtime_info": {"iter": 3}}, "optimizer": {"state": {}}},
    "ema_state_dict": lambda w: {"ema_state_dict": {**w, "steps": torch.tensor(7)}, "meta": {}},
    "deep optimizer": lambda w: {
        "trained": w, "optimizer": {"state": {n: {"exp_avg": t, "exp_avg_sq": t} for n, t in w.items()}}
    },
}  # fmt: skip


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_is_found_wherever_it_is(root: str, plain: Mapping[str, Any], tmp_path: Path) -> None:
    assert converted(ROOTS[root](bare()), tmp_path / "rooted") == plain


def test_of_two_that_fit_the_documented_one_is_said_and_the_other_can_be_had(
    plain: Mapping[str, Any], tmp_path: Path
) -> None:
    average = moved()
    item = {"run": {"model_ema": average, "model": bare()}, "loss": torch.ones(3)}
    assert converted(item, tmp_path / "one") == plain
    shown = run("convert", "--src", tmp_path / "one.pth", "--dst", tmp_path / "x.safetensors", "--dry-run").stdout
    assert "state dict: run.model; also there: run.model_ema (--root chooses)" in shown
    assert converted(item, tmp_path / "two", "--root", "run.model_ema") == converted(average, tmp_path / "three")


def test_of_two_that_fit_without_a_name_that_says_anything_none_is_taken(tmp_path: Path) -> None:
    torch.save({"red": bare(), "blue": bare(), "loss": torch.ones(())}, tmp_path / "a.pth")
    error = refusal("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", code=3)
    assert [part in error["message"] for part in ("'red'", "'blue'", "--root")] == [True] * 3


COUNTERS = ("num_updates", "steps", "module.steps", "backbone.body.num_batches_tracked", "global_step", "n_averaged")


def test_counters_are_left_out_with_the_reason_and_come_back(plain: Mapping[str, Any], tmp_path: Path) -> None:
    counters = {name: torch.tensor(number) for number, name in enumerate(COUNTERS)}
    weights = OrderedDict({"global_step.x": 3, "_metadata": {"": {"version": 1}}, **bare(), **counters})
    assert converted({"model": weights}, tmp_path / "a", "--keep-residue") == plain
    left_out = {entry["name"]: entry["reason"] for entry in ledger(tmp_path / "a")["left_out"]}
    assert [name for name in COUNTERS if "counter" not in left_out[name]] == []
    assert any("_metadata" in sentence for sentence in ledger(tmp_path / "a")["left_aside"])
    run("convert", "--src", tmp_path / "a.safetensors", "--dst", tmp_path / "back.pth", "--to", "glip-official")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert {name: int(back[name]) for name in COUNTERS} == {name: int(t) for name, t in counters.items()}


def test_weights_that_are_called_like_a_counter_are_not_left_out(tmp_path: Path) -> None:
    torch.save({**bare(), "rpn.steps": torch.ones(2)}, tmp_path / "a.pth")
    error = refusal("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", code=5)
    assert "rpn.steps" in "\n".join(error["problems"])


class Holder(nn.Module):
    """A module tree that has tensors under given names."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for step in path:
                if step not in owner._modules:
                    owner.add_module(step, nn.Module())
                owner = owner.get_submodule(step)
            owner.register_buffer(last, tensor)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pickled_module_is_converted(legacy: bool, inside: bool, plain: Mapping[str, Any], tmp_path: Path) -> None:
    holder = Holder(bare())
    at = tmp_path / "module.pth"
    torch.save({"ema": {"model": holder}} if inside else holder, at, _use_new_zipfile_serialization=not legacy)
    run("convert", "--src", at, "--dst", tmp_path / "out.safetensors")
    assert contents(tmp_path / "out.safetensors") == plain
    shown = run("inspect", at).stdout
    assert "not imported" in shown


@pytest.mark.parametrize("kind", ["plain", "wrapped", "chosen", "there already", "unknown"])
def test_the_command_that_inspect_prints_works_as_printed(
    kind: str, plain: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {f"net.{name}": tensor for name, tensor in bare().items()} if kind == "wrapped" else bare()
    if kind == "unknown":
        weights = {"a.b": torch.ones(2)}
    torch.save({"my ema": weights, "other": moved()} if kind == "chosen" else weights, "my model.v1.pth")
    if kind == "there already":
        Path("my model.glip.safetensors").touch()
    root = ["--root", "my ema"] if kind == "chosen" else []
    shown = run("inspect", "my model.v1.pth", *root).stdout
    (line,) = (line for line in shown.splitlines() if line.startswith("next:"))
    words = shlex.split(line.removeprefix("next:").partition("#")[0])
    assert words[0] == "converter"
    run(*words[1:], code=5 if kind == "unknown" else 0)
    if kind != "unknown":
        assert contents(Path(words[-1])) == plain
        assert "next:" not in run("inspect", words[-1]).stdout


def test_inspect_says_what_convert_would(tmp_path: Path) -> None:
    torch.save({f"detector.{name}": tensor for name, tensor in bare().items()}, tmp_path / "a.pth")
    assert "take it off with --root detector" in run("inspect", tmp_path / "a.pth").stdout
    both = {f"{word}.{name}": tensor for word in ("student", "teacher") for name, tensor in bare().items()}
    torch.save(both, tmp_path / "b.pth")
    assert "--root student or --root teacher" in run("inspect", tmp_path / "b.pth").stdout


def test_diff_and_explain_see_the_same_tensors(tmp_path: Path) -> None:
    torch.save(bare(), tmp_path / "a.pth")
    wrapped = {f"student.module.{name}": tensor for name, tensor in bare().items()}
    torch.save({"run": {"net": {**wrapped, "steps": torch.tensor(3)}}}, tmp_path / "b.pth")
    run("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "a.safetensors")
    for other in ("a.pth", "a.safetensors"):
        found = json.loads(run("diff", tmp_path / other, tmp_path / "b.pth", "--json").stdout)
        assert found["equal"], other
        assert found["compared"] > 250
    for key in ("rpn.head.bias0", "student.module.rpn.head.bias0", "head.bias"):
        shown = json.loads(run("explain", key, "--src", tmp_path / "b.pth", "--json").stdout)
        assert shown["source"] == ["student.module.rpn.head.bias0 (1,) float32"]
    assert "a counter" in run("explain", "steps", "--src", tmp_path / "b.pth").stdout


def test_unknown_names_that_read_like_a_missing_one_come_first_with_it(tmp_path: Path) -> None:
    weights = {"aaa.first": torch.ones(2), "rpn.head.extra.weight": torch.ones(3), **bare()}
    weights["rpn.head.bias_0"] = weights.pop("rpn.head.bias0")
    torch.save(weights, tmp_path / "a.pth")
    error = refusal("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", code=5)
    assert "the checkpoint does not fit small: 297 of the 298 tensors that small needs are there" in error["message"]
    unknown = [problem for problem in error["problems"] if problem.startswith("no rule matches")]
    assert unknown[0].startswith("no rule matches 'rpn.head.bias_0' (1,). Nearest: 'rpn.head.bias0' (1,)")
    assert len(unknown) == 3
    assert any("'rpn.head.bias0' (1,) is missing" in problem for problem in error["problems"])


@pytest.mark.parametrize("at", ["top", "below"])
def test_the_choice_is_said_wherever_the_weights_are(at: str, plain: Mapping[str, Any], tmp_path: Path) -> None:
    item: Any = {**bare(), "model_ema": moved()}
    assert converted(item if at == "top" else {"run": item}, tmp_path / "a") == plain
    shown = run("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", "--dry-run").stdout
    wanted = {"top": "its top level; also there: model_ema", "below": "run; also there: run.model_ema"}[at]
    assert f"state dict: {wanted} (--root chooses)" in shown


@pytest.mark.parametrize("decoy", ["net", "model", "state_dict"])
def test_a_small_dict_of_known_names_is_no_model(decoy: str, plain: Mapping[str, Any], tmp_path: Path) -> None:
    small = {name: bare()[name] for name in ("rpn.head.bias0", "rpn.head.bias_lang")} | {"steps": torch.tensor(3)}
    assert converted({"zzz": bare(), decoy: small, "rpn.head.bias0": torch.ones(1)}, tmp_path / "a") == plain


def test_parts_of_different_copies_are_not_mixed(tmp_path: Path) -> None:
    item = {f"{'student' if name.startswith('rpn') else 'teacher'}.{name}": tensor for name, tensor in bare().items()}
    torch.save(item, tmp_path / "a.pth")
    error = refusal("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", code=5)
    assert "different copies of a model, and would be mixed" in error["problems"][0]
    assert "--root teacher" in error["problems"][0]


def test_an_unreadable_tensor_outside_the_root_is_no_matter(plain: Mapping[str, Any], tmp_path: Path) -> None:
    header = {f"student.{name}": tensor for name, tensor in bare().items()}
    data = save({**header, "teacher.w": torch.ones(4)})
    data = data.replace(b'"teacher.w":{"dtype":"F32"', b'"teacher.w":{"dtype":"F4x"')
    (tmp_path / "a.safetensors").write_bytes(data)
    run("convert", "--src", tmp_path / "a.safetensors", "--dst", tmp_path / "b.safetensors", "--root", "student")
    assert contents(tmp_path / "b.safetensors") == plain


def test_the_list_of_wrappers_is_checked(tmp_path: Path) -> None:
    path = folders.mappings_folder() / "wrappers.json"
    assert tmp_path in path.parents  # a copy
    content = json.loads(path.read_text())
    assert lint_wrappers() == []
    path.write_text(json.dumps(content | {"wrappers": [*content["wrappers"], content["wrappers"][0]]}))
    assert lint_wrappers() == ["wrappers.json: 'module' is there twice"]
    assert "'module' is there twice" in refusal("lint", code=4)["problems"][0]
    path.write_text(json.dumps(content | {"wrappers": [{"name": "a.b", "of": "x"}]}))
    assert "/wrappers/0/name" in refusal("lint", code=4)["problems"][0]
