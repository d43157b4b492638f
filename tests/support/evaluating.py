"""A data set for the small model: pictures, boxes in them that mean nothing, and the command that evaluates on them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import skimage.data
from click.testing import CliRunner, Result
from PIL import Image

from converter.cli import main
from tests.support.saved_glip import save
from tests.support.small_folder import small_folder
from tests.support.small_glip import small_glip

PICTURES = 6
CLASSES = ((3, "person"), (7, "dog"))
# pictures of 90 pixels, as the official 800 take seconds; nothing of what so small a model finds is lost
QUICK = ("--setting", "shorter_side=90", "--setting", "score_threshold=0.01")


def evaluation(*arguments: object) -> Result:
    """`converter evaluate` in this process."""
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def write_pictures(folder: Path, count: int = PICTURES, names: str = "{:03}.jpg") -> list[dict[str, Any]]:
    """So many JPEGs of photographs; their rows in annotations. One in three is upright."""
    folder.mkdir(parents=True, exist_ok=True)
    photographs = ("rocket", "astronaut", "coffee", "chelsea")
    rows = []
    for number in range(count):
        width, height = (80, 100) if number % 3 == 2 else (120, 90)
        name = names.format(number + 1)
        photograph = Image.fromarray(getattr(skimage.data, photographs[number % 4])()).convert("RGB")
        photograph.resize((width, height)).save(folder / name)
        rows.append({"id": number + 1, "file_name": name, "width": width, "height": height})
    return rows


def annotated(images: Sequence[Mapping[str, Any]], classes: Sequence[tuple[int, str]] = CLASSES) -> dict[str, Any]:
    """Annotations of pictures: three boxes in each."""
    chance = random.Random(0)
    rows = []
    for image in images:
        for _ in range(3):
            w, h = (round(chance.uniform(10, 50), 1) for _ in range(2))
            x, y = round(chance.uniform(0, 80 - w), 1), round(chance.uniform(0, 80 - h), 1)
            label = classes[int(chance.random() * len(classes))][0]
            rows.append({"id": len(rows) + 1, "image_id": image["id"], "category_id": label, "bbox": [x, y, w, h],
                         "area": w * h, "iscrowd": 0})  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in classes]
    return {"images": list(images), "annotations": rows, "categories": categories}


def write_data(folder: Path, count: int = PICTURES) -> Path:
    """`small`, a model; `images`; and `mine.json`, the annotations of these. The folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save(small_glip().float(), small_folder(folder / "small") / "model.safetensors")
    (folder / "mine.json").write_text(json.dumps(annotated(write_pictures(folder / "images", count))))
    return folder


def options(folder: Path, dataset: object = None) -> list[object]:
    """What evaluates on it, without processes that read."""
    return ["--dataset", dataset or folder / "mine.json", "--images", folder / "images", *QUICK, "--workers", 0]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder of results, at any depth."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
