"""A detector whose answers are known, so that figures are: it knows a picture by its colour, and what is annotated.

The pictures are of one colour, which is their id. What it finds in them is the annotations, with faults that are asked
for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from converter.errors import ModelError
from converter.evaluation.answer import JOURNAL, Subject, answer
from converter.evaluation.dataset import DataSet, read_dataset
from converter.evaluation.outcome import Outcome
from converter.evaluation.question import question_of
from converter.evaluation.ranks import Ranks
from converter.parity.family import Boxes, Prepared
from converter.writing.results import ResultFolder

Row = tuple[int, Sequence[float], float]  # class, box, score
SIDE = 8  # of a prepared picture, in pixels
SUBJECT = Subject(
    name="known", weights="a" * 64, model="glip", variant=None, device="cpu", stated="cpu", dtype="float32", tf32=False,
    batch=1, workers=0, threads=1,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class KnownTask:
    """A `converter.parity.family.Task`. `found`: by the id of a picture."""

    found: Mapping[int, Sequence[Row]]
    metric: str = "coco"
    captions: tuple[str, ...] = ("cat. dog",)
    facts: Mapping[str, Any] = field(
        default_factory=lambda: {"name": "known", "settings": {}, "captions": ["cat. dog"]}
    )

    def read(self, path: Path) -> Prepared:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST))
                return Prepared(pixels.copy(), image.width, image.height, (image.height, image.width))
        except OSError as error:
            raise ModelError(f"{path.name}: {error}") from None

    def runner(self, model: Any) -> KnownRunner:
        return KnownRunner(self.found, model)


@dataclass(frozen=True, slots=True, eq=False)
class KnownRunner:
    """`seen`: is called with the ids of each batch."""

    found: Mapping[int, Sequence[Row]]
    seen: Callable[[list[int]], object]

    def __call__(self, pictures: Sequence[Prepared]) -> list[Boxes]:
        ids = [picture_id(picture.pixels) for picture in pictures]
        self.seen(ids)
        return [_boxes(self.found.get(number, ())) for number in ids]


def _boxes(rows: Sequence[Row]) -> Boxes:
    return Boxes(
        np.array([label for label, _, _ in rows], np.int64),
        np.array([box for _, box, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, _, score in rows], np.float32),
    )


def picture_id(pixels: Any) -> int:
    red, green, blue = pixels[0, 0].tolist()
    return int(red << 16 | green << 8 | blue)


def write_picture(path: Path, number: int, size: tuple[int, int] = (120, 90)) -> None:
    Image.new("RGB", size, (number >> 16, number >> 8 & 255, number & 255)).save(path)


def write_data(folder: Path, content: Mapping[str, Any]) -> Path:
    """Pictures of these annotations in `images`, and the annotations in `annotations.json`, whose path is returned."""
    (folder / "images").mkdir(exist_ok=True)
    for image in content["images"]:
        write_picture(folder / "images" / image["file_name"], image["id"], (image["width"], image["height"]))
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def annotations(count: int = 12, seed: int = 0, sizes: Sequence[tuple[int, int]] = ((120, 90),)) -> dict[str, Any]:
    """So many pictures, with four boxes of the classes 3 and 7 that do not overlap, of 12 to 40 pixels."""
    chance = np.random.default_rng(seed)
    images, rows = [], []
    for number in range(1, count + 1):
        width, height = sizes[number % len(sizes)]
        images.append({"id": number, "file_name": f"{number:03}.png", "width": width, "height": height})
        for at in range(4):
            x, y = (at % 2) * width / 2, (at // 2) * height / 2
            w, h = (round(float(chance.uniform(12, 38)), 2) for _ in range(2))
            box = [round(x + 1, 2), round(y + 1, 2), w, h]
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": (3, 7)[at % 2], "bbox": box,
                         "area": w * h, "iscrowd": 0})  # fmt: skip
    return {"images": images, "annotations": rows, "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}


def known(content: Mapping[str, Any]) -> dict[int, list[Row]]:
    """What a perfect detector finds: each box, with a score of its own."""
    found: dict[int, list[Row]] = {}
    for row in content["annotations"]:
        score = round(0.5 + 0.4 * ((row["id"] * 37) % 101) / 101, 3)
        found.setdefault(row["image_id"], []).append((row["category_id"], row["bbox"], score))
    return found


Found = Mapping[int, Sequence[Row]]


def ask(
    dataset: DataSet | Path,
    found: Found,
    out: Path | None = None,
    *,
    metric: str = "coco",
    seen: Callable[[list[int]], object] = lambda ids: None,
    said: list[str] | None = None,
    facts: Mapping[str, Any] | None = None,
    force: bool = False,
    **how: Any,
) -> Outcome:
    """The outcome of a detector that finds these. `seen`: is called with each batch."""
    dataset = read_dataset(dataset) if isinstance(dataset, Path) else dataset
    task = KnownTask(found, metric)
    if facts is not None:
        task = replace(task, facts=facts)
    question = question_of("known", "own", dataset, dataset.path.parent / "images")
    with ResultFolder(out, JOURNAL, force=force) if out is not None else nullcontext() as folder:
        outcome = answer(
            question,
            task,
            replace(SUBJECT, **how),
            lambda: task.runner(seen),
            folder,
            Ranks(),
            lambda total, done: nullcontext(lambda count: None),
            (said if said is not None else []).append,
        )
    assert outcome is not None
    return outcome


def files(outcome: Outcome) -> dict[str, bytes]:
    return outcome.files([], None)
