"""What every reader of records says of a model that was changed in memory and saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from converter.glip import GLIP, GLIPConfig, get_model
from converter.glip.detect.detector import Detector
from tests.support.small_files import official, run
from tests.support.small_folder import small_folder
from tests.support.small_formats import SIZES


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    GLIP.from_pretrained(small_folder(tmp_path / "first")).save_pretrained(tmp_path / "small")  # in float32
    model = GLIP.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        model.head.bias.add_(1)
    return model.save_pretrained(tmp_path / "saved")


def test_a_package_and_its_card_say_that_it_is_no_conversion(saved: Path, tmp_path: Path) -> None:
    said = run("package", saved, tmp_path / "out").output
    assert "saved by save_pretrained, not converted: 1 of " in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "These weights were changed in memory, by training say, and saved as safetensors" in card
    assert "**These weights are no conversion**: saved by save_pretrained, not converted: 1 of " in card
    assert "tensors differ from `small` (sha256 " in card
    assert "unknown table" not in card


def test_it_is_not_packaged_as_a_released_model(saved: Path, tmp_path: Path) -> None:
    said = run("package", saved, tmp_path / "out", "--model-name", "glip-t", code=7).output
    assert "'glip-t' is not what these weights are: saved by save_pretrained" in said.replace(
        "glip-t is", "'glip-t' is"
    )
    assert not (tmp_path / "out").exists()


def test_the_package_detects_with_the_vocabulary_that_was_kept(saved: Path, tmp_path: Path) -> None:
    run("package", saved, tmp_path / "out")
    for folder in (saved, tmp_path / "out"):
        assert Detector.from_pretrained(folder).tokenizer.size == 50


@pytest.mark.usefixtures("small_mappings")
def test_a_conversion_of_it_says_so_too(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "converted")
    for source in ("official.pth", "converted"):
        model = GLIP.from_pretrained(tmp_path / source)
        with torch.no_grad():
            model.head.bias.add_(1)
        model.save_pretrained(tmp_path / "saved", force=True)
        arguments = ("--src", tmp_path / "saved", "--dst", tmp_path / "mmdet", "--force")
        said = run("convert", *arguments, "--to", "mmdet-glip").output
        assert (
            f"the source was saved by save_pretrained, not converted: 1 of 278 tensors differ from {source!r}" in said
        )
        ledger = json.loads((tmp_path / "mmdet" / "conversion.json").read_text())
        printed = json.loads(run("convert", *arguments, "--to", "mmdet-glip", "--json").stdout)
        (entry,) = ledger["saved"] = printed["saved"]
        assert ledger["unknown_table"]
        # converted on the way or before: what the model was loaded from is known by the same hash
        assert entry["sha256"] == json.loads((tmp_path / "converted" / "conversion.json").read_text())["sha256"]


@pytest.mark.usefixtures("small_mappings")
def test_a_model_by_name_knows_its_weights_too(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    model = get_model("small", pretrained=tmp_path / "official.pth")
    assert isinstance(model, GLIP)
    with torch.no_grad():
        model.head.bias.add_(1)
    model.save_pretrained(tmp_path / "saved")
    (entry,) = json.loads((tmp_path / "saved" / "conversion.json").read_text())["saved"]
    assert (entry["from"], entry["differing"]) == ("official.pth", 1)


@pytest.mark.usefixtures("small_mappings")
def test_a_model_that_was_only_loaded_and_saved_is_as_good_as_converted(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    GLIP.from_pretrained(tmp_path / "official.pth").save_pretrained(tmp_path / "saved")
    ledger = json.loads((tmp_path / "saved" / "conversion.json").read_text())
    assert "saved" not in ledger
    assert "unknown_table" not in ledger


@pytest.mark.usefixtures("small_mappings")
def test_sizes_that_no_shape_shows_are_not_lost_on_the_way(tmp_path: Path) -> None:
    GLIP(GLIPConfig(**{**SIZES, "anchor_sizes": (32, 64, 128, 256, 512)})).save_pretrained(tmp_path / "saved")
    assert GLIP.from_pretrained(tmp_path / "saved").config.anchor_sizes[0] == 32
    for target in ("glip", "mmdet-glip"):
        said = run("convert", "--src", tmp_path / "saved", "--dst", tmp_path / "out", "--to", target, code=5).output
        assert (
            "saved: its record states anchor_sizes (32, 64, 128, 256, 512), and small has (64, 128, 256, 512, 1024)"
            in said
        )


def test_inspect_says_what_other_sizes_mean(saved: Path) -> None:
    assert "its record states embed_dim 8, and glip-t has 96" in run("inspect", saved).output
