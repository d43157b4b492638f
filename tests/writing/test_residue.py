"""What a format does not hold is kept beside the weights, comes back, and is of no other weights."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter.checkpoint import open_checkpoint
from converter.errors import PlanError
from converter.planning.formats import choose_formats, make_route
from converter.writing.convert import convert
from converter.writing.residue import residue_path
from tests.support.small_files import equal, official, official_of, refusal, run, tensors_in
from tests.support.small_formats import FORMATS, SIZES

pytestmark = pytest.mark.usefixtures("small_mappings")


def test_official_to_glip_to_official_is_identical_with_the_residue(tmp_path: Path) -> None:
    """Also keys without prefix, a buffer that is not there and one in another dtype come back as they were."""
    weights = OrderedDict((name.removeprefix("module."), tensor) for name, tensor in official().items())
    del weights["language_backbone.body.model.embeddings.position_ids"]
    weights["rpn.anchor_generator.cell_anchors.0"] = weights["rpn.anchor_generator.cell_anchors.0"].double()
    torch.save({"model": weights, "iteration": 7}, tmp_path / "official.pth")
    own = tmp_path / "own.safetensors"
    run("convert", "--src", tmp_path / "official.pth", "--dst", own, "--keep-residue")
    assert set(load_file(tmp_path / "own.safetensors.residue.safetensors")) == {
        "rpn.head.cls_logits.weight", "rpn.head.cls_logits.bias"
    }  # fmt: skip
    result = run("convert", "--src", own, "--dst", tmp_path / "back.pth", "--to", "glip-official")
    assert "from the residue: 2 tensors" in result.output
    assert "missing" not in result.output
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == {"model"}
    assert equal(back["model"], weights)


def renamed(name: str, prefix: str, **parts: str) -> dict[str, torch.Tensor]:
    found = {}
    for key, tensor in tensors_in(name).items():
        for ours, other in parts.items():
            key = key.replace(f"LayerNorm.{ours}", f"LayerNorm.{other}")
        found[prefix + key] = tensor
    return found


def masked_language_model(**parts: str) -> dict[str, torch.Tensor]:
    return {
        **renamed("transformers-bert", "bert.", **parts),
        "cls.predictions.bias": torch.randn(11),
        f"cls.predictions.transform.LayerNorm.{parts.get('weight', 'weight')}": torch.randn(6),
        "cls.predictions.decoder.weight": torch.randn(11, 6),
    }


def image_classifier(*, classifier_first: bool) -> dict[str, torch.Tensor]:
    swin, head = renamed("transformers-swin", "swin."), {"classifier.bias": torch.randn(9)}
    return {**head, **swin} if classifier_first else {**swin, **head}


def every_other_key_wrapped(name: str) -> dict[str, torch.Tensor]:
    return {("module." if i % 2 else "") + n: t for i, (n, t) in enumerate(tensors_in(name).items())}


ORIGINALS: dict[str, tuple[str, Callable[[], dict[str, torch.Tensor]]]] = {
    "BertForMaskedLM": ("transformers-bert", masked_language_model),
    "BERT of old": ("transformers-bert", lambda: masked_language_model(weight="gamma", bias="beta")),
    "SwinForImageClassification": ("transformers-swin", lambda: image_classifier(classifier_first=False)),
    "the classifier first": ("transformers-swin", lambda: image_classifier(classifier_first=True)),
    "partly wrapped": ("timm-swin", lambda: every_other_key_wrapped("timm-swin")),
    "partly wrapped, with buffers": ("mmpretrain-glip", lambda: every_other_key_wrapped("mmpretrain-glip")),
}


@pytest.mark.parametrize("original", list(ORIGINALS))
def test_names_come_back_as_they_were(original: str, tmp_path: Path) -> None:
    """Also where only some have a prefix, or an old name."""
    name, make = ORIGINALS[original]
    weights = make()
    torch.save(weights, tmp_path / "source.pth")
    own = tmp_path / "own.safetensors"
    run("convert", "--src", tmp_path / "source.pth", "--dst", own, "--keep-residue")
    run("convert", "--src", own, "--dst", tmp_path / "back.safetensors", "--to", name)
    assert equal(load_file(tmp_path / "back.safetensors"), weights)


def test_without_the_residue_it_is_said_what_is_missing_and_what_that_does(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    own = tmp_path / "own.safetensors"
    run("convert", "--src", tmp_path / "official.pth", "--dst", own)
    result = run("convert", "--src", own, "--dst", tmp_path / "back.pth", "--to", "glip-official")
    assert "missing: rpn.head.cls_logits.{param} (the official loader leaves it at its random init" in result.output
    ledger = json.loads(
        run("convert", "--src", own, "--dst", tmp_path / "again.pth", "--to", "glip-official", "--json").stdout
    )
    assert [entry["names"] for entry in ledger["missing"]] == ["rpn.head.cls_logits.{param}"]


def test_a_residue_of_other_weights_is_not_used_unless_one_insists(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    other = {
        name: tensor + 1 if tensor.is_floating_point() and "anchor" not in name else tensor
        for name, tensor in official().items()
    }
    torch.save(other, tmp_path / "other.pth")
    own = tmp_path / "own.safetensors"
    run("convert", "--src", tmp_path / "official.pth", "--dst", own, "--keep-residue")
    run("convert", "--src", tmp_path / "other.pth", "--dst", own, "--force")
    back = ["convert", "--src", own, "--dst", tmp_path / "back.pth", "--to", "glip-official", "--force"]
    result = run(*back)
    assert "own.safetensors.residue.safetensors belongs to another conversion" in result.output
    assert "missing: rpn.head.cls_logits" in result.output
    run(*back, "--residue", tmp_path / "own.safetensors.residue.safetensors")
    found = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert torch.equal(
        found["module.rpn.head.cls_logits.bias"],
        official_of(tmp_path / "official.pth")["module.rpn.head.cls_logits.bias"],
    )
    mmdet = ["convert", "--src", own, "--dst", tmp_path / "mmdet.pth", "--to", "mmdet-glip"]
    assert (
        "is for the way back to glip-official"
        in refusal(*mmdet, "--residue", tmp_path / "own.safetensors.residue.safetensors", code=3)["message"]
    )
    assert "is not a residue" in refusal(*mmdet, "--residue", own, code=3)["message"]


def tamper(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """The residue with other `tensors`, too, and with what is said `about` them; buffers are added."""
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = json.loads(file.metadata()["residue"])
    buffers = {**said["buffers"], **about.get("buffers", {})}
    save_file({**found, **tensors}, path, {"residue": json.dumps({**said, **about, "buffers": buffers})})


ANCHORS = "module.rpn.anchor_generator.cell_anchors"


INDEX = "module.backbone.body.layers.0.blocks.0.attn.relative_position_index"


TAMPERED: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], int, str]] = {
    "a buffer twice": ({f"{ANCHORS}.0": torch.ones(1, 4)}, {}, 3, "are the same key of glip-official"),
    "a key twice": ({"rpn.head.cls_logits.bias": torch.ones(7)}, {}, 3, "are the same key of glip-official"),
    "a name twice": ({}, {"names": ["rpn.head.bias0", "module.rpn.head.bias0"]}, 3, "are the same key of"),
    "a buffer as weight": (
        {"module.language_backbone.body.model.embeddings.position_ids": torch.ones(1, 7)}, {}, 5, "so no residue holds"
    ),
    "an unknown tensor": ({"module.stray": torch.ones(3)}, {}, 5, "glip-official has no rule for it"),
    "a tensor of the source": ({"module.rpn.head.bias0": torch.ones(1)}, {}, 5, "makes it of what is there"),
    "an unknown name": ({}, {"names": ["stray"]}, 5, "which glip-official does not write"),
    "an unknown buffer": ({}, {"buffers": {"module.stray": "int64"}}, 5, "computes no such buffer"),
    "a level beyond": ({}, {"buffers": {f"{ANCHORS}.99": "float32"}}, 5, "has no such layer"),
    "a layer beyond": ({}, {"buffers": {INDEX.replace("layers.0", "layers.9"): "int64"}}, 5, "has no such layer"),
    "too few bits": ({}, {"buffers": {f"{ANCHORS}.0": "uint8"}}, 5, "uint8 cannot hold"),
    "a bool": ({}, {"buffers": {INDEX: "bool"}}, 5, "bool cannot hold"),
    "complex": ({}, {"buffers": {INDEX: "complex64"}}, 5, "complex64 cannot hold"),
    "no dtype": ({}, {"buffers": {INDEX: "int65"}}, 3, "is not a residue"),
    "a surrogate": ({}, {"prefix": "\ud800"}, 3, r"names began with '\ud800'"),
    "a path": ({}, {"prefix": "../../x\n"}, 3, r"began with '../../x\n', which is no wrapper and no prefix of"),
    "a long prefix": ({}, {"prefix": "p" * 100_000}, 3, "(100000 characters)"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(TAMPERED))
def test_a_residue_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    tensors, about, code, said = TAMPERED[case]
    weights = official()
    del weights["module.language_backbone.body.model.embeddings.position_ids"]
    torch.save(weights, tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.safetensors", "--keep-residue")
    tamper(residue_path(tmp_path / "own.safetensors"), tensors, about)
    out = tmp_path / "back.safetensors"
    error = refusal("convert", "--src", tmp_path / "own.safetensors", "--dst", out, "--to", "glip-official", code=code)
    assert said in "\n".join([error["message"], *error["problems"]])
    assert not out.exists()


@pytest.mark.parametrize(
    ("tensor", "said"),
    [(torch.ones(2, 2), "is (2, 2); "), (torch.ones(16, 32, 1, 1, dtype=torch.int32), "is int32; ")],
)
def test_what_a_rule_makes_is_checked_in_a_residue_too(tensor: torch.Tensor, said: str, tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    swin = tmp_path / "swin.pth"
    run("convert", "--src", tmp_path / "official.pth", "--dst", swin, "--to", "timm-swin", "--keep-residue")
    key = "module.backbone.fpn.fpn_inner4.weight"
    assert official()[key].shape == (16, 32, 1, 1)
    tamper(residue_path(swin), {key: tensor}, {})
    back = ["convert", "--src", swin, "--dst", tmp_path / "b.pth", "--to", "glip-official"]
    (problem,) = refusal(*back, code=5)["problems"]
    assert key in problem
    assert said in problem


def test_buffers_that_only_old_releases_save_come_back_for_layers_that_exist(tmp_path: Path) -> None:
    ignores = FORMATS["glip-official"].bind(SIZES).ignores
    (index,) = (ignore.rebuild for ignore in ignores if ignore.source.text.endswith("relative_position_index"))
    assert index is not None
    key = "layers.2.blocks.1.attn.relative_position_index"
    weights = tensors_in("timm-swin", **{key: torch.from_numpy(index({})).int()})
    torch.save(weights, tmp_path / "timm.pth")
    own = tmp_path / "own.safetensors"
    run("convert", "--src", tmp_path / "timm.pth", "--dst", own, "--keep-residue")
    back = ["convert", "--src", own, "--dst", tmp_path / "back.safetensors", "--to", "timm-swin"]
    run(*back)
    assert equal(load_file(tmp_path / "back.safetensors"), weights)
    tamper(residue_path(own), {}, {"buffers": {key.replace("blocks.1", "blocks.3"): "int64"}})
    (problem,) = refusal(*back, "--force", code=5)["problems"]
    assert "blocks.3.attn.relative_position_index': small has no such layer" in problem


def test_a_name_that_would_be_written_twice_is_refused(tmp_path: Path) -> None:
    """Whatever made the plan: such a file could not be read."""
    torch.save(official(), tmp_path / "official.pth")
    with open_checkpoint(tmp_path / "official.pth") as checkpoint:
        plan = make_route(*choose_formats(checkpoint, None, None), checkpoint)
        plan = replace(plan, carried=plan.steps[:1])
        with pytest.raises(PlanError, match="1 names are not unique"):
            convert(checkpoint, plan, tmp_path / "own.safetensors", residue=checkpoint)


def test_what_the_residue_holds_is_not_said_to_be_missing_and_is_cast_too(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    swin, back = tmp_path / "swin.pth", tmp_path / "back.pth"
    cast = ["--dtype", "bfloat16"]
    run("convert", "--src", tmp_path / "official.pth", "--dst", swin, "--to", "timm-swin", "--keep-residue", *cast)
    arguments = ["convert", "--src", swin, "--dst", back, "--to", "glip-official", *cast]
    assert "rounded to another dtype" in run(*arguments, "--dry-run").output
    ledger = json.loads(run(*arguments, "--json").stdout)
    assert (ledger["missing"], ledger["lossless"]) == ([], False)
    found = torch.load(back, weights_only=True)["model"]
    for name, tensor in official_of(tmp_path / "official.pth").items():
        computed = "cell_anchors" in name or not tensor.is_floating_point()
        assert torch.equal(found[name], tensor if computed else tensor.bfloat16()), name


def test_a_failed_conversion_with_a_residue_leaves_the_disk_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(official(), tmp_path / "official.pth")
    own = tmp_path / "own.safetensors"
    arguments = ["convert", "--src", tmp_path / "official.pth", "--dst", own, "--keep-residue"]
    run(*arguments)
    before = {path: path.read_bytes() for path in (own, residue_path(own))}
    torch.save(official(), tmp_path / "official.pth")  # another classifier
    run(*arguments, code=6)
    import os

    real = os.replace

    def broken(source: Any, target: Any) -> None:
        if Path(target).name == "own.safetensors":
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", broken)
    run(*arguments, "--force", code=6)
    assert {path: path.read_bytes() for path in before} == before
    for path in before:
        path.unlink()
    run(*arguments, "--force", code=6)
    assert {path.name for path in tmp_path.iterdir()} == {"mappings", "official.pth"}


def test_two_files_of_one_stem_keep_a_residue_each(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    for ending in ("pth", "safetensors"):
        out = tmp_path / f"s.{ending}"
        run("convert", "--src", tmp_path / "official.pth", "--dst", out, "--to", "timm-swin", "--keep-residue")
    for ending in ("pth", "safetensors"):
        back = ["convert", "--src", tmp_path / f"s.{ending}", "--dst", tmp_path / "b.pth", "--to", "glip-official"]
        run(*back, "--force")
        assert equal(torch.load(tmp_path / "b.pth", weights_only=True)["model"], official_of(tmp_path / "official.pth"))


@pytest.mark.parametrize("arguments", [[], ["--to", "glip"], ["--residue"]])
def test_a_part_and_its_residue_are_the_whole_again(arguments: list[str], tmp_path: Path) -> None:
    """Also where the part is written again by default, and the other weights would be left behind."""
    torch.save(official(), tmp_path / "official.pth")
    own, swin, back = (tmp_path / f"{name}.safetensors" for name in ("own", "swin", "back"))
    run("convert", "--src", tmp_path / "official.pth", "--dst", own)
    run("convert", "--src", own, "--dst", swin, "--to", "timm-swin", "--keep-residue")
    stated = [*arguments, residue_path(swin)] if arguments == ["--residue"] else arguments
    assert "from timm-swin to glip\n" in run("convert", "--src", swin, "--dst", back, *stated).output
    assert equal(load_file(back), load_file(own))
    run("convert", "--src", swin, "--dst", back, *stated, "--dtype", "bfloat16", "--force")
    assert {tensor.dtype for tensor in load_file(back).values()} == {torch.bfloat16}


def test_a_part_of_a_part_and_its_residue_are_the_part_again(tmp_path: Path) -> None:
    torch.save({"state_dict": tensors_in("mmpretrain-glip")}, tmp_path / "swin.pth")
    own, swin, back = (tmp_path / f"{name}.safetensors" for name in ("own", "swin", "back"))
    run("convert", "--src", tmp_path / "swin.pth", "--dst", own)
    run("convert", "--src", own, "--dst", swin, "--to", "timm-swin", "--keep-residue")
    for arguments in ([], ["--to", "glip", "--force"]):
        result = run("convert", "--src", swin, "--dst", back, *arguments)
        assert "from timm-swin to glip, backbone alone" in result.output
        assert equal(load_file(back), load_file(own))


@pytest.mark.parametrize("to", ["glip", "timm-swin"])
def test_a_residue_that_is_not_used_is_mentioned(to: str, tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    out = tmp_path / "mmdet.pth"
    run("convert", "--src", tmp_path / "official.pth", "--dst", out, "--to", "mmdet-glip", "--keep-residue")
    result = run("convert", "--src", out, "--dst", tmp_path / "b.safetensors", "--to", to)
    assert (
        f"mmdet.pth.residue.safetensors is for the way back to glip-official, not to {to}, and is not used"
        in result.stderr
    )
