"""Conversions between formats through the command line, on real files of a small GLIP."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_formats import FORMATS, SIZES, Weights, execute, hub_weights, write_small_mappings

from converter.checkpoint import open_checkpoint
from converter.cli import main
from converter.errors import ModelError, PlanError
from converter.glip.model.weights import open_weights
from converter.mapping import documents
from converter.planning.formats import choose_formats, make_route
from converter.writing.convert import convert
from converter.writing.residue import residue_path


@pytest.fixture(autouse=True)
def small_mappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The built-in tables with a spec whose only variant is small."""
    folder = write_small_mappings(tmp_path / "mappings")
    monkeypatch.setattr(documents, "mappings_folder", lambda: folder)
    documents._listing.cache_clear()
    yield
    documents._listing.cache_clear()


def weights_in(name: str) -> Weights:
    weights = hub_weights()
    return execute(make_route(FORMATS["glip"], FORMATS[name], weights), weights)


def tensors_in(name: str, **extra: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
    found = OrderedDict((n, torch.from_numpy(a.copy())) for n, a in weights_in(name).arrays.items())
    found.update(extra)
    return found


def official(**extra: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
    unused = {f"module.rpn.head.cls_logits.{n}": torch.randn(5) for n in ("weight", "bias")}
    return tensors_in("glip-official", **unused, **extra)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def refusal(*arguments: object, code: int) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    error: dict[str, Any] = json.loads(result.stdout)["error"]
    return error


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "glip"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_every_format_is_written_as_its_tools_read_it(name: str, ending: str, tmp_path: Path) -> None:
    torch.save({"model": official()}, tmp_path / "official.pth")
    out = tmp_path / f"out.{ending}"
    result = run("convert", "--src", tmp_path / "official.pth", "--dst", out, "--to", name)
    assert f"from glip-official to {name}" in result.output
    if ending == "pth":
        content = torch.load(out, weights_only=True, mmap=True)
        found = content.get(FORMATS[name].saved_as.root, content)
        assert isinstance(found, OrderedDict)
    else:
        found = load_file(out)
    assert equal(dict(found), dict(tensors_in(name)))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("glip", "glip-official")])
def test_every_format_is_recognised_and_read_from_a_file(name: str, tmp_path: Path) -> None:
    torch.save(tensors_in(name), tmp_path / "source.pth")
    run("convert", "--src", tmp_path / "source.pth", "--dst", tmp_path / "own.safetensors")
    own, hub = load_file(tmp_path / "own.safetensors"), hub_weights().arrays
    assert own
    assert all(np.array_equal(array.numpy(), hub[key]) for key, array in own.items())


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


def test_a_folder_keeps_its_residue_inside(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own", "--keep-residue")
    assert (tmp_path / "own" / "residue.safetensors").is_file()
    for source in ("own", "own/model.safetensors"):
        run("convert", "--src", tmp_path / source, "--dst", tmp_path / "b.pth", "--to", "glip-official", "--force")
        assert equal(torch.load(tmp_path / "b.pth", weights_only=True)["model"], official_of(tmp_path / "official.pth"))
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own", "--force")
    assert not (tmp_path / "own" / "residue.safetensors").exists()


def official_of(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True))


def test_a_folder_with_a_dot_in_its_name_is_one(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    shards = ("--max-shard-size", "20kB")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.d", "--keep-residue", *shards)
    assert (tmp_path / "own.d" / "model.safetensors.index.json").is_file()
    run("convert", "--src", tmp_path / "own.d", "--dst", tmp_path / "back.pth", "--to", "glip-official")
    assert equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"], official_of(tmp_path / "official.pth"))
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "o.safetensors", *shards, code=2)


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
        "left out of glip-official"
        in refusal(*mmdet, "--residue", tmp_path / "own.safetensors.residue.safetensors", code=3)["message"]
    )
    assert "is no residue" in refusal(*mmdet, "--residue", own, code=3)["message"]


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
    "a name twice": ({}, {"names": ["x", "module.x"]}, 3, "are the same key of glip-official"),
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
    "no dtype": ({}, {"buffers": {INDEX: "int65"}}, 3, "is no residue"),
    "a surrogate": ({}, {"prefix": "\ud800"}, 3, r"names began with '\ud800'"),
    "a path": ({}, {"prefix": "../../x\n"}, 3, r"names began with '../../x\n'; glip-official knows only 'module.'"),
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
    index = FORMATS["glip-official"].bind(SIZES).ignores[0].rebuild
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


def test_a_residue_is_replaced_only_with_the_file_that_it_belongs_to(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    own = tmp_path / "own.safetensors"
    arguments = ["convert", "--src", tmp_path / "official.pth", "--dst", own, "--keep-residue", "--force"]
    run(*arguments)
    torch.save(official(), tmp_path / "official.pth")
    run(*arguments)
    residue_path(own).write_bytes(b"precious")
    assert "does not belong to own.safetensors" in refusal(*arguments, code=6)["message"]
    assert residue_path(own).read_bytes() == b"precious"
    residue_path(own).unlink()
    run(*arguments)
    own.unlink()
    kept = residue_path(own).read_bytes()
    assert "does not belong to own.safetensors" in refusal(*arguments, code=6)["message"]
    assert residue_path(own).read_bytes() == kept


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
    assert f"mmdet.pth.residue.safetensors was left out of glip-official, not of {to}, and is not used" in result.stderr


def test_glip_is_not_written_as_pth(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    error = refusal("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.pth", code=6)
    assert "End --dst in '.safetensors'" in error["message"]
    assert not (tmp_path / "own.pth").exists()


def test_a_pth_is_written_the_same_each_time_and_says_where_it_comes_from(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    for name in ("a.pth", "b.pth"):
        run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / name, "--to", "mmdet-glip")
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    with open_checkpoint(tmp_path / "a.pth") as checkpoint:
        ledger = json.loads(checkpoint.metadata["conversion"])
        assert (ledger["table"]["name"], ledger["through"]["name"]) == ("glip-official", "mmdet-glip")
        assert ledger["tensors"].keys() == checkpoint.tensors.keys()


@pytest.mark.parametrize("name", ["transformers-swin", "transformers-swin-backbone", "transformers-bert"])
def test_a_folder_has_the_config_that_transformers_reads(name: str, tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "hf", "--to", name)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["model_type"] == name.split("-")[1]
    assert all(not (isinstance(value, str) and value.startswith("=")) for value in config.values())
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"  # transformers refuses files without it


@pytest.mark.parametrize(
    ("name", "arguments", "written"),
    [
        ("transformers-swin", [], "float32"),
        ("transformers-swin-backbone", ["--dtype", "bfloat16"], "bfloat16"),
        ("transformers-bert", ["--dtype", "float16"], "float16"),
        ("mixed", [], None),
    ],
)
def test_the_config_states_the_dtype_that_was_written(
    name: str, arguments: list[str], written: str | None, tmp_path: Path
) -> None:
    weights = official()
    if name == "mixed":
        name, key = "transformers-swin", "module.backbone.body.patch_embed.norm.bias"
        weights[key] = weights[key].half()
    torch.save(weights, tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "hf", "--to", name, *arguments)
    assert json.loads((tmp_path / "hf" / "config.json").read_text()).get("torch_dtype") == written


def test_what_holds_a_part_says_so_and_does_not_load_as_the_whole(tmp_path: Path) -> None:
    torch.save({"state_dict": tensors_in("mmpretrain-glip")}, tmp_path / "swin.pth")
    out = tmp_path / "swin.safetensors"
    result = run("convert", "--src", tmp_path / "swin.pth", "--dst", out)
    assert "from mmpretrain-glip to glip, backbone alone" in result.output
    with pytest.raises(ModelError, match="holds the backbone of GLIP alone"):
        open_weights(out)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_stated_dtype_holds_for_weights_and_not_for_indices(dtype: str, tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    out = tmp_path / "out.pth"
    run("convert", "--src", tmp_path / "official.pth", "--dst", out, "--to", "mmpretrain-glip", "--dtype", dtype)
    for name, tensor in torch.load(out, weights_only=True)["state_dict"].items():
        assert tensor.dtype == (torch.int64 if name.endswith("_index") else getattr(torch, dtype))


# What OpenMMLab's own converters do on such files stands in docs/peers.md.


def test_a_checkpoint_without_prefix_is_converted_like_one_with_it(tmp_path: Path) -> None:
    bare = {name.removeprefix("module."): tensor for name, tensor in official().items()}
    torch.save({"model": bare}, tmp_path / "bare.pth")
    run("convert", "--src", tmp_path / "bare.pth", "--dst", tmp_path / "mmdet.pth", "--to", "mmdet-glip")
    found = torch.load(tmp_path / "mmdet.pth", weights_only=True)["state_dict"]
    assert equal(dict(found), dict(tensors_in("mmdet-glip")))


@pytest.mark.parametrize("to", ["mmdet-glip", "mmpretrain-glip"])
def test_a_foreign_checkpoint_makes_no_empty_file(to: str, tmp_path: Path) -> None:
    torch.save({"model": {f"layer{i}.0.conv1.weight": torch.ones(3, 3) for i in range(9)}}, tmp_path / "resnet.pth")
    out = tmp_path / "out.pth"
    error = refusal("convert", "--src", tmp_path / "resnet.pth", "--dst", out, "--to", to, code=5)
    assert "no known format" in error["message"]
    assert not out.exists()


@pytest.mark.parametrize("to", ["mmdet-glip", "mmpretrain-glip", "glip"])
def test_an_unexpected_key_does_not_leak_through(to: str, tmp_path: Path) -> None:
    stray = {"module.backbone.body.layers.0.adapter.weight": torch.ones(3)}
    torch.save({"model": official(**stray)}, tmp_path / "official.pth")
    out = tmp_path / "out.safetensors"
    error = refusal("convert", "--src", tmp_path / "official.pth", "--dst", out, "--to", to, code=5)
    assert any("layers.0.adapter.weight" in problem for problem in error["problems"])
    assert not out.exists()


@pytest.mark.parametrize(
    ("key", "shape"),
    [("module.backbone.body.patch_embed.proj.weight", (4, 3, 2)), ("module.rpn.head.bias_lang", (5,))],
)
def test_a_wrong_shape_and_a_missing_key_are_refused(key: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    arguments = ["convert", "--src", tmp_path / "official.pth", "--dst", out, "--to", "mmdet-glip"]
    torch.save(official(**{key: torch.ones(shape)}), tmp_path / "official.pth")
    assert any(key in problem and str(shape) in problem for problem in refusal(*arguments, code=5)["problems"])
    weights = official()
    del weights[key]
    torch.save(weights, tmp_path / "official.pth")
    assert any("is missing" in problem for problem in refusal(*arguments, code=5)["problems"])
    assert not out.exists()


def test_two_keys_that_become_one_are_refused(tmp_path: Path) -> None:
    twice = {"rpn.head.bias0": torch.zeros(1)}
    torch.save(official(**twice), tmp_path / "official.pth")
    arguments = ["convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "o.pth", "--to", "mmdet-glip"]
    assert any("are the same key" in problem for problem in refusal(*arguments, code=5)["problems"])


def test_every_file_says_what_it_is(tmp_path: Path) -> None:
    """A file of weights that says nothing of its sizes and origin cannot be used alone."""
    torch.save(official(), tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.safetensors")
    with safe_open(tmp_path / "own.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["config"]["embed_dim"] == SIZES["embed_dim"]
    save_file(load_file(tmp_path / "own.safetensors"), tmp_path / "bare.safetensors")
    run("convert", "--src", tmp_path / "bare.safetensors", "--dst", tmp_path / "bare.pth", "--to", "mmdet-glip")


def test_a_table_in_doubt_is_not_used(tmp_path: Path) -> None:
    table = json.loads((documents.mappings_folder() / "glip-official.json").read_text())
    table["rules"][3]["doubt"] = "which of the two norms"
    (tmp_path / "doubtful.json").write_text(json.dumps({**table, "name": "doubtful"}))
    torch.save(official(), tmp_path / "official.pth")
    arguments = ["convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "o.safetensors"]
    problems = refusal(*arguments, "--from", tmp_path / "doubtful.json", code=5)["problems"]
    assert problems == ["/rules/3 is in doubt: which of the two norms. Decide, and take 'doubt' out"]


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("glip", "glip-official")])
def test_inspect_and_explain_know_every_format(name: str, tmp_path: Path) -> None:
    tensors = tensors_in(name)
    torch.save(tensors, tmp_path / "weights.pth")
    inspected = json.loads(run("inspect", tmp_path / "weights.pth", "--json").stdout)
    assert name in [fit["format"] for fit in inspected["fits"]]
    key = next(k for k in tensors if k.endswith("weight"))
    explained = json.loads(run("explain", key, "--src", tmp_path / "weights.pth", "--from", name, "--json").stdout)
    assert (explained["table"], explained["source"][0].split()[0].strip("'")) == (name, key)
