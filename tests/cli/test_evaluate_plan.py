"""`converter evaluate --dry-run`: what would be asked, before anything is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from converter.cli import main
from tests.support.small_folder import small_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("plan")
    small_folder(there / "small")
    Image.new("RGB", (40, 30)).save(there / "one.png")
    images = [{"id": 1, "file_name": "one.png"}, {"id": 2, "file_name": "two.png"}]
    classes = [{"id": 4, "name": "dog"}, {"id": 2, "name": "traffic_light"}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [1, 2, 3, 4]}]
    (there / "mine.json").write_text(json.dumps({"images": images, "categories": classes, "annotations": boxes}))
    return there


def plan(folder: Path, *options: str) -> Result:
    words = ["evaluate", str(folder / "small"), "--dataset", str(folder / "mine.json"), "--images", str(folder)]
    return CliRunner().invoke(main, [*words, "--out", str(folder / "out"), "--dry-run", *options])


def test_captions_and_missing_pictures_are_told_and_nothing_is_run(folder: Path) -> None:
    result = plan(folder)
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "mine: 2 pictures, 1 of them not there, protocol official, metric coco",
            "  2 classes in 1 caption:",
            "    traffic light. dog",
            "  not there: two.png",
        ],
    )
    assert not (folder / "out").exists()


def test_as_json(folder: Path) -> None:
    content = json.loads(plan(folder, "--json", "--protocol", "mmdet", "--setting", "order=reversed").stdout)
    assert content["evaluations"] == []
    (planned,) = content["plan"]
    assert (planned["captions"], planned["missing"]) == (["dog. traffic light"], ["two.png"])
    assert (planned["protocol"], planned["settings"]["order"]) == ("mmdet with order=reversed", "reversed")


def test_what_is_wrong_is_told_as_by_a_run(folder: Path) -> None:
    result = plan(folder, "--setting", "most=0")
    assert (result.exit_code, "setting: most is '0', expected an integer from 1" in result.stderr) == (7, True)
