"""`converter detect` and `converter evaluate` with a Grounding DINO, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import skimage.data
from click.testing import CliRunner, Result
from PIL import Image

from converter.cli import main
from tests.support.evaluating import annotated, write_pictures
from tests.support.small_grounding_dino import MM, small_folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    small_folder(folder / "small")
    (folder / "photos").mkdir()
    for name in ("rocket", "astronaut", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()).resize((120, 90)).save(folder / "photos" / f"{name}.png")
    (folder / "mine.json").write_text(json.dumps(annotated(write_pictures(folder / "images", 4))))
    return folder


def test_pictures_are_searched_in_batches_and_drawn(shared: Path, tmp_path: Path) -> None:
    words = ["detect", shared / "small", shared / "photos", "--prompt", "Cat. remote control", "--threshold", 0.3]
    result = run(*words, "--batch", 2, "--out", tmp_path / "found", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["captions"] == ["cat. remote control."]
    assert len(content["images"]) == 3
    assert sum(len(entry["boxes"]) for entry in content["images"]) > 5
    assert {phrase for entry in content["images"] for phrase in entry["phrases"]} <= {"Cat", "remote control"}
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == [
        "astronaut.png", "coffee.png", "detections.json", "rocket.png",
    ]  # fmt: skip


def test_a_data_set_is_measured_by_the_official_protocol(shared: Path, tmp_path: Path) -> None:
    words = ["evaluate", shared / "small", "--dataset", shared / "mine.json", "--images", shared / "images"]
    quick = ["--setting", "shorter_side=96", "--setting", "longer_side=160", "--workers", 0]
    result = run(*words, *quick, "--out", tmp_path / "done")
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert head.startswith("mine: 4 pictures, protocol official with shorter_side=96, longer_side=160, float32 on cpu")
    assert {row.split()[-1] for row in rows[13:]} == {"person", "dog"}
    predicted = json.loads((tmp_path / "done" / "predictions.json").read_text())
    assert len(predicted) == 4 * 2 * 30
    plan = run(*words, "--dry-run")
    assert plan.exit_code == 0, plan.output
    assert "person . dog ." in plan.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_mm_grounding_dino_is_searched_with_likewise(shared: Path, tmp_path: Path, dtype: str) -> None:
    """Its scores are at most those of a logit whose bias is -4.6 at first."""
    words = ["detect", small_folder(tmp_path / "mm", spec=MM), shared / "photos" / "coffee.png", "--prompt", "cup. cat"]
    result = run(*words, "--threshold", 0.001, "--max-detections", 5, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert (head.endswith(": 120x90, 5 found"), {row.split()[-1] for row in rows} <= {"cup", "cat"}) == (True, True)


def test_what_only_another_family_knows_is_told(shared: Path) -> None:
    result = run("evaluate", shared / "small", "--images", shared, "--dataset", "odinw")
    assert (result.exit_code, "found 'odinw', expected one of coco, lvis" in result.stderr) == (7, True)
