"""The task of the paper, with data sets of a few pictures: the commands of docs/evaluation.md, word by word."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image

from converter.glip.task.benchmark import odinw
from tests import ROOT
from tests.support.small_folder import small_folder

DOCUMENT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
PROGRAMS = {
    "converter": [sys.executable, "-m", "converter"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}
SIZE = (120, 90)


def annotations(classes: list[dict[str, Any]], names: list[str], **more: Any) -> str:
    """A data set of these pictures, with two boxes in each; `more`: of each picture, as LVIS has it."""
    drawn = random.Random(0)
    images = [{"id": n, "width": SIZE[0], "height": SIZE[1], "file_name": name, **more} for n, name in enumerate(names)]
    rows = [
        {
            "id": 2 * at + box + 1,
            "image_id": at,
            "category_id": drawn.choice(classes)["id"],
            "bbox": [9, 9, 40, 30 + box],
        }
        for at in range(len(names))
        for box in range(2)
    ]
    return json.dumps({"images": images, "categories": classes, "annotations": rows})


def pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:012}.jpg" for number in range(count)]
    for name, source in zip(names, ("rocket", "astronaut", "coffee"), strict=False):
        Image.fromarray(getattr(skimage.data, source)()).resize(SIZE).save(folder / name)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader is who has converted a checkpoint and got the data."""
    there = tmp_path_factory.mktemp("evaluating")
    small_folder(there / "glip-t")
    names = pictures(there / "coco" / "val2017", 3)
    classes: list[dict[str, Any]] = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    (there / "coco" / "annotations").mkdir()
    (there / "coco" / "annotations" / "instances_val2017.json").write_text(annotations(classes, names))
    lvis = [{**each, "frequency": letter} for each, letter in zip(classes, "rf", strict=True)]
    federated = {"neg_category_ids": [1, 18], "not_exhaustive_category_ids": []}
    text = annotations(lvis, [f"val2017/{name}" for name in names], **federated)
    (there / "lvis_v1_minival_inserted_image_name.json").write_text(text)
    for each in odinw("odinw"):
        if each.name.endswith("thermalDogsAndPeople"):  # the small model's vocabulary has these words
            inside = pictures(there / "odinw" / each.pictures, 2)
            rows = [{"id": c.id, "name": c.name} for c in each.classes]
            (there / "odinw" / each.annotations).write_text(annotations(rows, inside))
    return there


def run(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_what_the_document_says_can_be_typed(folder: Path) -> None:
    for text in re.findall(r"^```console\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL):
        for command in text.splitlines():
            first, *words = shlex.split(command)
            done = run(folder, [*PROGRAMS[first], *words])
            # numbers in other sums are not shown to be equal by three pictures
            assert done.returncode == 0 or "--against" in words, f"{command}\n{done.stdout}\n{done.stderr}"
            assert "AP" in done.stdout
    one, two = (folder / name for name in ("coco-zero-shot", "coco-by-two"))
    assert {path.name for path in one.iterdir()} == {"predictions.json", "evaluation.json", "report.html"}
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
    assert "report.html" in {path.name for path in (folder / "odinw-13").iterdir()}
    (python,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    done = run(folder, [sys.executable, "-c", python])
    assert done.returncode == 0, done.stderr
    shutil.rmtree(one)


def test_the_captions_of_the_document_are_captions(folder: Path) -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    said = {"person": json.loads(text)["holes"] | {"name": "person", "prefix": "a ", "suffix": " dog"}}
    (folder / "captions.json").write_text(json.dumps(said | {"dog": "dog"}))
    data = folder / "coco" / "annotations" / "instances_val2017.json"
    words = ["evaluate", "glip-t", "--dataset", str(data), "--images", "coco/val2017", "--captions", "captions.json"]
    done = run(folder, [*PROGRAMS["converter"], *words, "--json"])
    assert json.loads(done.stdout)["evaluations"][0]["captions"] == ["a person dog. dog"]
