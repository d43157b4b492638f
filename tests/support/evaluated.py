"""Evaluations to be shown: made up, small, and of any size."""

from __future__ import annotations

from typing import Any

from PIL import Image

from converter.evaluation.metrics import ClassScore, Scores
from converter.evaluation.page import WorstPicture, to_html
from converter.evaluation.paired import Paired

COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def class_score(number: int, name: str, ap: float | None, frequency: str | None = None, **changed: Any) -> ClassScore:
    fields = {"annotated": 7, "predicted": 1234, "ap50": ap, "recall": ap}
    return ClassScore(id=number, name=name, frequency=frequency, ap=ap, **{**fields, **changed})


def scores(**changed: Any) -> Scores:
    """Of four pictures and three classes, of which one is not annotated."""
    recall = tuple(i / 100 for i in range(101))
    fields = {
        "style": "coco",
        "figures": {name: 0.466 if name == "AP" else 0.5 for name in COCO},
        "classes": (
            class_score(1, "cat", 0.25),
            class_score(2, "dog", 0.75),
            class_score(9, "yeti", None, annotated=0),
        ),
        "recall": recall,
        "precision": {
            "IoU 0.50": tuple(1 - r for r in recall),
            "IoU 0.75": tuple(0.8 - 0.8 * r for r in recall),
            "IoU 0.50:0.95": tuple(0.5 - 0.5 * r for r in recall),
        },
        "pictures": {1: 0.0, 2: 0.59, 3: 1.0, 4: None},
        "library": "faster-coco-eval 1.8.0",
    }
    return Scores(**{**fields, **changed})


def large(frequencies: str = "fcr", count: int = 1203) -> Scores:
    """As many classes as LVIS has."""
    classes = (
        class_score(i, f"thing of kind {i}", i / count, frequencies[i % 3], annotated=i, predicted=300 * i)
        for i in range(count)
    )
    return scores(style="lvis", classes=tuple(classes), figures={"AP": 0.3, "APr": 0.1, "APc": 0.2, "APf": None})


def compared(**changed: Any) -> Paired:
    other = scores(figures=dict.fromkeys(COCO, 0.4), classes=(class_score(1, "cat", 0.5), class_score(2, "dog", 0.75)))
    fields = {
        "first": scores(), "second": other, "difference": 0.0002, "interval": (-0.0006, 0.0009), "better": 2,
        "worse": 1, "equal": 5, "worst": (), "identical": False, "verdict": "equal",
    }  # fmt: skip
    return Paired(**{**fields, **changed})


def picture(**changed: Any) -> WorstPicture:
    fields = {
        "name": "val/7.jpg",
        "ap": 0.031,
        "image": Image.new("RGB", (320, 240), (40, 90, 60)),
        "width": 640,
        "height": 480,
        "annotated": [("cat", 100.0, 50.0, 200.0, 150.0, False), ("dog", 0.0, 0.0, 640.0, 480.0, True)],
        "predicted": [("cat", 0.875, 110.0, 60.0, 180.0, 150.0), ("dog", 0.12, 300.0, 200.0, 90.0, 90.0)],
    }
    return WorstPicture(**{**fields, **changed})


def page(value: Scores | None = None, **changed: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "A detector on pets",
        "about": [("weights", "ab" * 32), ("data set", "pets val"), ("device", "cpu")],
        "skipped": [("val/9.jpg", "cannot be decoded")],
        "worst": [picture()],
    }
    return to_html(value or scores(), **{**arguments, **changed})
