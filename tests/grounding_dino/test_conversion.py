"""Full-size official checkpoints to what transformers loads, and back; names, shapes and values come from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForZeroShotObjectDetection, GroundingDinoForObjectDetection

from scripts.synthetic_checkpoint import state_dict
from tests.support.small_files import refusal, run

pytestmark = pytest.mark.fullsize

SIZES = {"groundingdino-swint": "grounding-dino-tiny", "groundingdino-swinb": "grounding-dino-base"}
# what the released files hold beside what the official package builds
RELEASED = {
    "module.label_enc.weight": torch.randn(11, 256),
    "module.bert.embeddings.position_ids": torch.arange(512)[None],
}


@dataclass(frozen=True)
class Converted:
    variant: str
    source: Path
    folder: Path


@pytest.fixture(scope="module", params=list(SIZES))
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    here = tmp_path_factory.mktemp(request.param)
    source, folder = here / "official.pth", here / "folder"
    torch.save({"model": state_dict(request.param) | RELEASED}, source)
    told = run("convert", "--src", source, "--dst", folder, "--to", "transformers-grounding-dino", "--keep-residue")
    assert f"variant: {SIZES[request.param]}" in told.output
    assert "bit for bit" in told.output
    yield Converted(SIZES[request.param], source, folder)
    shutil.rmtree(here)


def test_there_and_back_nothing_is_lost(converted: Converted, tmp_path: Path) -> None:
    back = tmp_path / "back.pth"
    run("convert", "--src", converted.folder, "--dst", back, "--to", "groundingdino-official")
    expected, found = (torch.load(path)["model"] for path in (converted.source, back))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    back.unlink()


def test_transformers_loads_all_of_it_and_makes_nothing_up(converted: Converted, tmp_path: Path) -> None:
    """What it reports is not trusted: what it has loaded is saved again, and goes back to the official names."""
    model, report = AutoModelForZeroShotObjectDetection.from_pretrained(converted.folder, output_loading_info=True)
    assert isinstance(model, GroundingDinoForObjectDetection)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    model.save_pretrained(tmp_path / "saved")
    run("convert", "--src", tmp_path / "saved", "--dst", tmp_path / "back.pth", "--to", "groundingdino-official")
    expected, found = torch.load(converted.source)["model"], torch.load(tmp_path / "back.pth")["model"]
    alone = [name for name in expected if name not in found]
    beside = [*RELEASED, "module.bert.pooler.dense.weight", "module.bert.pooler.dense.bias"]
    assert sorted(alone) == sorted(beside)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    shutil.rmtree(tmp_path / "saved")
    (tmp_path / "back.pth").unlink()


@pytest.mark.parametrize("converted", ["groundingdino-swint"], indirect=True)
def test_a_state_dict_in_memory_has_other_names_and_tied_copies(converted: Converted, tmp_path: Path) -> None:
    model = GroundingDinoForObjectDetection.from_pretrained(converted.folder)
    weights = model.state_dict()
    torch.save(weights, tmp_path / "own.pth")
    told = run("diff", converted.folder, tmp_path / "own.pth")
    assert "equal" in told.output
    weights["bbox_embed.3.layers.2.bias"] = weights["bbox_embed.3.layers.2.bias"] + 1
    torch.save(weights, tmp_path / "own.pth")
    error = refusal("convert", "--src", tmp_path / "own.pth", "--dst", tmp_path / "out", code=5)
    assert ["bbox_embed.3.layers.2.bias" in problem for problem in error["problems"]] == [True]
    (tmp_path / "own.pth").unlink()


@pytest.mark.parametrize("converted", ["groundingdino-swint"], indirect=True)
def test_every_tensor_is_accounted_for(converted: Converted) -> None:
    told = json.loads(run("convert", "--src", converted.source, "--dst", "never", "--dry-run", "--json").stdout)
    used = {source["name"] for step in told["steps"] for source in step["sources"]}
    left = {out["name"]: out["rebuildable"] for out in told["left_out"]}
    assert used.isdisjoint(left)
    assert used | left.keys() == torch.load(converted.source)["model"].keys()
    assert sorted(name for name, again in left.items() if not again) == [
        "module.bert.pooler.dense.bias", "module.bert.pooler.dense.weight", "module.label_enc.weight",
    ]  # fmt: skip
    with safe_open(converted.folder / "model.safetensors", "pt") as file:
        assert {target["name"] for step in told["steps"] for target in step["targets"]} == set(file.keys())


@pytest.mark.parametrize("converted", ["groundingdino-swint"], indirect=True)
def test_it_can_be_explained(converted: Converted) -> None:
    said = run("explain", "model.decoder.layers.2.self_attn.key.weight", "--src", converted.source).output
    assert "transformer.decoder.layers.2.self_attn.in_proj_weight" in said
    said = run("explain", "module.transformer.decoder.bbox_embed.4.layers.1.bias", "--src", converted.source).output
    assert "the decoder's name of the same box head" in said


@pytest.mark.parametrize("converted", ["groundingdino-swint"], indirect=True)
def test_another_dtype_is_stated_to_transformers(converted: Converted, tmp_path: Path) -> None:
    run("convert", "--src", converted.source, "--dst", tmp_path / "half", "--dtype", "bfloat16")
    assert AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    shutil.rmtree(tmp_path / "half")
