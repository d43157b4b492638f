"""Data sets to evaluate on, and what a poor detector would find in them: the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from converter.evaluation.dataset import DataSet
from converter.evaluation.predictions import Predictions

DATA = Path(__file__).parents[1] / "data" / "evaluation"
COCO = DATA / "coco_val2014_100.json"
COCO_RESULTS = DATA / "coco_val2014_100_results.json"
LVIS = DATA / "lvis_v0.5_val_100.json"

Row = tuple[int, int, list[float], float]


def perfect(dataset: DataSet) -> list[Row]:
    """Every annotated box, and nothing else."""
    return [
        (row["image_id"], row["category_id"], row["bbox"], 0.9)
        for row in dataset.content["annotations"]
        if not row["iscrowd"]
    ]


def noisy(dataset: DataSet, seed: int = 1, crowded: int = 3) -> list[Row]:
    """Boxes that are found well, badly, twice, as another class or not at all, with many equal scores.

    Of classes that are annotated, surely absent, not exhaustively annotated and never looked for. The first `crowded`
    pictures have more than 300 of them.
    """
    chance = random.Random(seed)  # its `random` gives the same numbers in every version of Python
    rows = [row for annotation in dataset.content["annotations"] for row in _found(chance, dataset, annotation)]
    classes = [category.id for category in dataset.categories]
    for number, image in enumerate(dataset.content["images"]):
        listed = [*image.get("neg_category_ids", ()), *image.get("not_exhaustive_category_ids", ())]
        for _ in range(400 if number < crowded else 20):
            category = _one(chance, listed if listed and chance.random() < 0.5 else classes)
            rows.append((image["id"], category, _anywhere(chance), _score(chance, 0.4)))
    return [rows[i] for i in sorted(range(len(rows)), key=lambda _: chance.random())]


def _found(chance: random.Random, dataset: DataSet, annotation: dict[str, object]) -> Iterator[Row]:
    picture, category, box = annotation["image_id"], annotation["category_id"], annotation["bbox"]
    assert isinstance(picture, int)
    assert isinstance(category, int)
    assert isinstance(box, list)
    while chance.random() < 0.7:
        label = category if chance.random() < 0.9 else _one(chance, [other.id for other in dataset.categories])
        spread = _one(chance, [0, 4, 15])
        x, y, w, h = (
            part + spread / 100 * side * (chance.random() - 0.5)
            for part, side in zip(box, (box[2], box[3], box[2], box[3]), strict=True)
        )
        yield picture, label, [round(part, 2) for part in (x, y, w, h)], _score(chance, 1)


def _anywhere(chance: random.Random) -> list[float]:
    return [round(chance.random() * size, 2) for size in (400, 300, 200, 200)]


def _score(chance: random.Random, most: float) -> float:
    return round(chance.random() * most, 2)  # ties


def _one(chance: random.Random, choices: list[int]) -> int:
    return choices[int(chance.random() * len(choices))]


def predictions(dataset: DataSet, seed: int = 1) -> Predictions:
    """`noisy` as arrays."""
    return Predictions.of(noisy(dataset, seed))


def as_results(rows: list[Row]) -> list[dict[str, object]]:
    """COCO's results format."""
    return [
        {"image_id": picture, "category_id": category, "bbox": list(box), "score": score}
        for picture, category, box, score in rows
    ]
