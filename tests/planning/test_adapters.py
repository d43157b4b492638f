"""A low-rank adapter in a checkpoint is merged if the file says how it is scaled, and else refused with that reason."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.checkpoint import open_checkpoint
from tests.planning.test_wrappers import Holder, adapted, bare
from tests.support.small_files import refusal, run

pytestmark = pytest.mark.usefixtures("small_mappings")
RANK, ALPHA = 2, 6
Weights = dict[str, torch.Tensor]


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    return adapted(name).endswith(".base_layer.weight") and tensor.dim() == 2


def with_adapters(naming: str = "lora_{}.default.weight") -> tuple[Weights, Weights]:
    """The small GLIP with an adapter around every linear layer of BERT and Swin; and the same once they are merged."""
    torch.manual_seed(1)
    weights, merged = {}, dict(bare())
    for name, tensor in bare().items():
        weights[adapted(name)] = tensor
        if is_linear(name, tensor):
            a, b = torch.randn(RANK, tensor.shape[1]), torch.randn(tensor.shape[0], RANK)
            layer = adapted(name).removesuffix("base_layer.weight")
            weights |= {layer + naming.format("A"): a, layer + naming.format("B"): b}
            merged[name] = (tensor.double() + ALPHA / RANK * (b.double() @ a.double())).float()
    return weights, merged


def converted(item: object, at: Path) -> Weights:
    torch.save(item, at.with_suffix(".pth"))
    run("convert", "--src", at.with_suffix(".pth"), "--dst", at.with_suffix(".safetensors"))
    found: Weights = load_file(at.with_suffix(".safetensors"))
    return found


SAID: dict[str, Callable[[Weights], Any]] = {
    "beside": lambda w: {"state_dict": w, "lora_alpha": ALPHA, "r": RANK},
    "PEFT's config as a dict": lambda w: {
        "model": w,
        "peft_config": {"default": {"r": RANK, "lora_alpha": ALPHA, "use_rslora": False, "rank_pattern": {}}},
    },
    "an object": lambda w: {"model": w, "args": Namespace(lora_alpha=float(ALPHA), lora_rank=RANK, lr=1e-4)},
}


@pytest.mark.parametrize("naming", ["lora_{}.default.weight", "lora_{}.weight", "lora_{}"])
@pytest.mark.parametrize("said", SAID)
def test_it_is_merged(said: str, naming: str, tmp_path: Path) -> None:
    weights, merged = with_adapters(naming)
    assert len(weights) > len(merged)
    wanted = converted(merged, tmp_path / "merged")
    found = converted(SAID[said](weights), tmp_path / "adapted")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():  # BLAS may add up in another order
        torch.testing.assert_close(found[name], tensor, rtol=2e-7, atol=1e-6, msg=name)
    assert not all(torch.equal(found[name], t) for name, t in converted(bare(), tmp_path / "base").items())
    with open_checkpoint(tmp_path / "adapted.safetensors") as checkpoint:
        ledger = json.loads(checkpoint.metadata["conversion"])
    aside = ledger["left_aside"]
    assert not ledger["lossless"]
    assert any("a LoRA adapter of" in s and f"(alpha {ALPHA}, rank {RANK})" in s for s in aside)


def layered(weights: Weights, **more: Any) -> Holder:
    """A module whose layers say what their adapters are, as PEFT's do."""
    holder = Holder(weights)
    for module in holder.modules():
        if "lora_A" in module._modules:
            about = {"r": {"default": RANK}, "lora_alpha": {"default": ALPHA}, "scaling": {"default": ALPHA / RANK}}
            about |= {"use_dora": {"default": False}, "merged_adapters": [], "_disable_adapters": False}
            vars(module).update(about | more)
    return holder


def test_a_pickled_module_says_it_in_its_layers(tmp_path: Path) -> None:
    weights, merged = with_adapters()
    found = converted(layered(weights), tmp_path / "module")
    for name, tensor in converted(merged, tmp_path / "merged").items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-7, atol=1e-6, msg=name)


def test_safetensors_may_say_it_in_their_metadata(tmp_path: Path) -> None:
    weights, merged = with_adapters()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "a.safetensors",
              {"lora_alpha": str(ALPHA), "r": str(RANK)})  # fmt: skip
    run("convert", "--src", tmp_path / "a.safetensors", "--dst", tmp_path / "b.safetensors")
    found = load_file(tmp_path / "b.safetensors")
    for name, tensor in converted(merged, tmp_path / "merged").items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-7, atol=1e-6, msg=name)


def test_wrappers_may_stand_anywhere_around_an_adapter(tmp_path: Path) -> None:
    weights, merged = with_adapters()
    wrapped = {
        name.replace(".base_layer.", ".base_layer._fsdp_wrapped_module.").replace(".lora_A.", "._orig_mod.lora_A."): t
        for name, t in weights.items()
    }
    # what a launcher says is not what the adapter is
    item = {"model": wrapped, "args": Namespace(lora_alpha=ALPHA, lora_r=RANK, rank=0, alpha=0.25)}
    found = converted(item, tmp_path / "wrapped")
    for name, tensor in converted(merged, tmp_path / "merged").items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-7, atol=1e-6, msg=name)


def test_inspect_shows_one_that_cannot_be_merged_and_says_why(tmp_path: Path) -> None:
    weights, _ = with_adapters()
    torch.save(weights, tmp_path / "a.pth")
    shown = run("inspect", tmp_path / "a.pth", "-v").stdout
    assert "lora_A.default.weight" in shown
    assert "does not say its alpha and rank" in shown
    assert "--dry-run  # lists what is wrong" in shown


def test_the_way_back_has_no_layer_that_only_an_adapter_needs(tmp_path: Path) -> None:
    weights, merged = with_adapters()
    torch.save({"model": weights, "lora_alpha": ALPHA, "r": RANK}, tmp_path / "a.pth")
    run("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "a.safetensors", "--keep-residue")
    run("convert", "--src", tmp_path / "a.safetensors", "--dst", tmp_path / "b.pth", "--to", "glip-official")
    back = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
    assert {name.removeprefix("base_model.model.") for name in back} == merged.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_is_rounded_once_to_the_dtype_of_the_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    weights, _ = with_adapters()
    halves = {name: t.to(dtype) if t.is_floating_point() and "anchor" not in name else t for name, t in weights.items()}
    found = converted({"m": halves, "r": RANK, "lora_alpha": ALPHA}, tmp_path / "a")
    layer = "base_model.model.backbone.body.layers.1.blocks.0.attn.qkv."
    parts = [
        halves[layer + end].double() for end in ("base_layer.weight", "lora_B.default.weight", "lora_A.default.weight")
    ]
    wanted = (parts[0] + ALPHA / RANK * (parts[1] @ parts[2])).to(dtype)
    assert torch.equal(found["backbone.stages.1.blocks.0.attention.qkv.weight"], wanted)


REFUSED: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "nothing said": (lambda w: w, "does not say its alpha and rank"),
    "rank alone": (lambda w: {"m": w, "r": RANK}, "does not say its alpha and rank"),
    "two alphas": (lambda w: {"m": w, "lora": {"r": 2, "alpha": 1}, "b": {"r": 2, "lora_alpha": 2}}, "2 different"),
    "the alpha of a loss": (lambda w: {"m": w, "args": Namespace(alpha=0.25, rank=RANK)}, "does not say"),
    "a rank beyond all": (lambda w: {"m": w, "lora_alpha": 1, "r": 10**5000}, "does not say"),
    "an alpha beyond all": (lambda w: {"m": w, "lora_alpha": 10**400, "r": RANK}, "does not say"),
    "no rank": (lambda w: {"m": w, "lora_alpha": 1, "r": False}, "does not say"),
    "rsLoRA in a module": (lambda w: layered(w, scaling={"default": ALPHA / RANK**0.5}), "with scaling 4.2"),
    "merged in a module": (lambda w: layered(w, merged_adapters=["default"]), "with merged_adapters"),
    "off in a module": (lambda w: layered(w, _disable_adapters=True), "with _disable_adapters"),
    "another config of a module": (lambda w: layered(w, peft_config={"default": Namespace(
        r=RANK, lora_alpha=ALPHA, use_rslora=True)}), "with use_rslora"),
    "another rank": (lambda w: {"m": w, "r": 3, "lora_alpha": 3}, "not of rank 3"),
    "rsLoRA": (lambda w: {"m": w, "r": RANK, "lora_alpha": 1, "use_rslora": True}, "use_rslora"),
    "not finite": (lambda w: {"m": w, "r": RANK, "lora_alpha": float("nan")}, "does not say"),
    "DoRA": (lambda w: {"m": w | {"base_model.model.x.lora_magnitude_vector.default.weight": torch.ones(2)}, "r": RANK,
                        "lora_alpha": 1}, "more than the matrices A and B"),
    "half an adapter": (lambda w: {"m": {n: t for n, t in w.items() if not n.endswith("layers.0.blocks.0.attn.qkv."
                        "lora_B.default.weight")}, "r": RANK, "lora_alpha": 1}, "one matrix of two"),
    "two adapters": (lambda w: {"m": w | {n.replace("default", "other"): t for n, t in w.items()}, "r": RANK,
                                "lora_alpha": 1}, "several adapters"),
    "alone": (lambda w: {n: t for n, t in w.items() if ".lora_" in n}, "a LoRA adapter alone"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_with_the_reason(what: str, tmp_path: Path) -> None:
    item, said = REFUSED[what]
    torch.save(item(with_adapters()[0]), tmp_path / "a.pth")
    error = refusal("convert", "--src", tmp_path / "a.pth", "--dst", tmp_path / "x.safetensors", code=3)
    assert said in error["message"]
    assert "merge" in error["message"]
    assert not (tmp_path / "x.safetensors").exists()
