"""What an evaluation has come to: figures, and the files that say so."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter import __version__
from converter.evaluation.dataset import DataSet, Picture
from converter.evaluation.metrics import Scores
from converter.evaluation.page import WorstPicture, to_html
from converter.evaluation.paired import Paired
from converter.evaluation.predictions import Predictions, results_json
from converter.evaluation.record import NAME as RECORD
from converter.evaluation.record import Evaluation, evaluation_of, to_json

if TYPE_CHECKING:
    from converter.parity.family import Task

PREDICTIONS, PAGE = "predictions.json", "report.html"
_SHOWN = 20  # pictures on the page
_NAMED = 20  # pictures that are not turned
_SIDE = 640  # pixels of their longer side there
_QUALITY = 80  # of their JPEGs


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One model, or a file of predictions, on one data set.

    name     of the data set, as it is told
    weights  the hash of all tensors, `model` and `variant` what they are, `run` device, dtype and the like, `protocol`
             all that decides how the model was asked; None of what only predictions were given of
    skipped  pictures that could not be used, in which therefore nothing was found, and why
    unturned those that were used as they are stored, and not turned as their EXIF says
    """

    name: str
    source: str
    dataset: DataSet
    is_limited: bool
    predictions: Predictions
    scores: Scores
    skipped: Sequence[tuple[Picture, str]] = ()
    weights: str | None = None
    model: Mapping[str, Any] | None = None
    protocol: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    unturned: Sequence[Picture] = ()

    @property
    def skipped_rows(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [{"picture": p.id, "file_name": p.file_name, "reason": reason[:1000]} for p, reason in self.skipped]

    def record(self, predictions: bytes) -> Evaluation | None:
        """For `evaluation.json`; None of what only predictions were given of."""
        if self.weights is None or self.model is None or self.protocol is None or self.run is None:
            return None
        content = {
            "converter": __version__,
            "weights": {"sha256": self.weights},
            "model": dict(self.model),
            "dataset": {
                "name": self.name,
                "style": self.dataset.style,
                "annotations_sha256": self.dataset.sha256,
                "pictures": len(self.dataset.pictures),
                "pictures_sha256": self.dataset.pictures_sha256,
                "limited": self.is_limited,
                "skipped": self.skipped_rows,
            },
            "protocol": dict(self.protocol),
            "run": dict(self.run),
            "metric": {"library": self.scores.library, "style": self.scores.style},
            "figures": dict(self.scores.figures),
            "classes": [asdict(each) for each in self.scores.classes],
            "predictions_sha256": hashlib.sha256(predictions).hexdigest(),
        }
        return evaluation_of(content)

    def files(self, worst: Sequence[WorstPicture], against: tuple[str, Paired] | None) -> dict[str, bytes]:
        """What is written: predictions in COCO's results format, the record, and the page."""
        predictions = b"".join(results_json(self.predictions))
        record = self.record(predictions)
        names = (self.source, "" if against is None else against[0])
        page = to_html(
            self.scores,
            title=f"{self.name}: {self.source}",
            about=self._about(),
            skipped=[(picture.file_name, reason) for picture, reason in self.skipped],
            worst=worst,
            paired=None if against is None else against[1],
            names=names,
        )
        recorded = {} if record is None else {RECORD: to_json([record])}
        return {PREDICTIONS: predictions, **recorded, PAGE: page.encode()}

    def _about(self) -> list[tuple[str, str]]:
        rows = [("model", self.source), ("data set", self.name + (" (the first pictures only)" * self.is_limited))]
        rows += [
            ("annotations, SHA-256", self.dataset.sha256),
            ("list of pictures, SHA-256", self.dataset.pictures_sha256),
        ]
        if self.unturned:
            rows.append(("used as stored, not turned by EXIF", ", ".join(p.file_name for p in self.unturned[:_NAMED])))
        if self.weights is not None:
            rows.append(("tensors, SHA-256 of all", self.weights))
        if self.protocol is not None:
            rows.append(("protocol", str(self.protocol["name"])))
            rows += [(f"setting {name}", str(value)) for name, value in self.protocol["settings"].items()]
        rows += [(name, str(value)) for name, value in (self.run or {}).items()]
        return rows


def worst_pictures(
    outcome: Outcome, images: Path, task: Task, other: tuple[Predictions, Paired] | None = None
) -> list[WorstPicture]:
    """Pictures to look at: those of the lowest AP, or in which two models differ most; without unreadable ones."""
    scores = outcome.scores.pictures
    chosen: list[tuple[int, float | None]]
    skipped = {picture.id for picture, _ in outcome.skipped}
    if other is None:
        counts: dict[int, int] = {}
        for row in outcome.dataset.content["annotations"]:
            counts[row["image_id"]] = counts.get(row["image_id"], 0) + 1
        measured = [(ap, -counts.get(number, 0), number) for number, ap in scores.items() if ap is not None]
        ordered = [number for _, _, number in sorted(measured) if number not in skipped]
        chosen = [(number, None) for number in ordered[:_SHOWN]]
    else:
        chosen = [(number, ap) for number, _, ap in other[1].worst[:_SHOWN] if number not in skipped]
    return [shown for number, ap in chosen if (shown := _shown(outcome, number, images, task, other, ap)) is not None]


def _shown(
    outcome: Outcome,
    number: int,
    images: Path,
    task: Task,
    other: tuple[Predictions, Paired] | None,
    other_ap: float | None,
) -> WorstPicture | None:
    from PIL import Image

    from converter.errors import ModelError

    picture = next(each for each in outcome.dataset.pictures if each.id == number)
    try:
        prepared = task.read(images / picture.file_name)
    except ModelError:
        return None
    small = Image.fromarray(prepared.pixels)
    small.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=_QUALITY)
    names = {category.id: category.name for category in outcome.dataset.categories}
    annotated = [
        (names[row["category_id"]], *row["bbox"], bool(row["iscrowd"]))
        for row in outcome.dataset.content["annotations"]
        if row["image_id"] == number
    ]
    return WorstPicture(
        picture.file_name,
        outcome.scores.pictures.get(number),
        content.getvalue(),
        prepared.width,
        prepared.height,
        annotated,
        _predicted(outcome.predictions, number, names),
        None if other is None else _predicted(other[0], number, names),
        other_ap,
    )


def _predicted(
    predictions: Predictions, number: int, names: Mapping[int, str]
) -> list[tuple[str, float, float, float, float, float]]:
    rows = predictions.taken(predictions.pictures == number)
    columns = zip(rows.categories.tolist(), rows.scores.tolist(), rows.boxes.tolist(), strict=True)
    return [(names.get(category, str(category)), score, *box) for category, score, box in columns]
