"""Boxes that a model predicted, as arrays, and COCO's results format, in which they are exchanged.

The format (https://cocodataset.org/#format-results) is a list of objects with `image_id`, `category_id`, `bbox` (x, y,
width, height in pixels) and `score`. Others may have more, such as `segmentation` and `area`, which is not read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.arrays import np
from converter.display import counted
from converter.errors import ModelError
from converter.evaluation.dataset import DataSet
from converter.evaluation.large_json import Pairs, Problems, is_box, is_id, is_number, read_large, shown, unique

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 10_000  # rows that are written at once
_EXPECTED = (
    "Expected COCO's results format: a list of objects with image_id, category_id, bbox and score, for pictures and "
    "categories of the data set. Correct the file, or choose the data set that it was made for."
)


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """N boxes, in the order in which they were given: among equal scores, the first comes first.

    `pictures`, `categories`: ids, int64, (N,). `boxes`: x, y, width, height in pixels, float64, (N, 4). `scores`:
    float64, (N,).
    """

    pictures: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def of(rows: Iterable[tuple[int, int, Sequence[float], float]]) -> Predictions:
        """Of rows: id of the picture, id of the category, box, score."""
        columns = _Columns()
        for picture, category, box, score in rows:
            columns.add(picture, category, box, score)
        return columns.predictions()

    def taken(self, rows: NDArray[Any]) -> Predictions:
        """Some of them: indices in their new order, or a mask."""
        return Predictions(self.pictures[rows], self.categories[rows], self.boxes[rows], self.scores[rows])

    def check_finite(self) -> None:
        """ModelError if a number is not."""
        if not np.isfinite(self.boxes).all() or not np.isfinite(self.scores).all():
            raise ModelError("a box or a score that was predicted is not finite. Check the weights of the model.")


class _Columns:
    def __init__(self) -> None:
        self._ids, self._numbers = array("q"), array("d")

    def add(self, picture: int, category: int, box: Sequence[float], score: float) -> None:
        self._ids.extend((picture, category))
        self._numbers.extend((*box, score))

    def predictions(self) -> Predictions:
        ids = np.array(self._ids, dtype=np.int64).reshape(-1, 2)
        numbers = np.array(self._numbers, dtype=np.float64).reshape(-1, 5)
        return Predictions(ids[:, 0].copy(), ids[:, 1].copy(), numbers[:, :4].copy(), numbers[:, 4].copy())


def read_predictions(path: Path, dataset: DataSet) -> Predictions:
    """A results file for a data set. ModelError, with all that is wrong with it."""
    reader = _Reader(dataset)
    document, _ = read_large(path, reader.build, _EXPECTED)
    # an object in a row is no row: then they are more, or less, than the list's
    if not isinstance(document, list) or len(document) != reader.count or any(row is not _ROW for row in document):
        reader.problems.add("not a list of objects with image_id")
    reader.refuse(path)
    return reader.columns.predictions()


_ROW = object()  # what stands for a row once its numbers are in the columns


class _Reader:
    """Takes rows as they are read: of a million, no objects remain."""

    def __init__(self, dataset: DataSet) -> None:
        self.columns = _Columns()
        self.problems = Problems()
        self.count = 0  # of rows
        self._pictures = {picture.id for picture in dataset.pictures}
        self._categories = {category.id for category in dataset.categories}
        self._unknown: dict[str, list[Any]] = {"image_id": [], "category_id": []}

    def build(self, pairs: Pairs) -> object:
        row = unique(pairs)
        if "image_id" not in row:
            return None  # such as an outline
        self.count += 1
        problems = self._problems(row)
        for problem in problems:
            self.problems.add(f"row {self.count}: {problem}")
        if not problems:
            self.columns.add(row["image_id"], row["category_id"], row["bbox"], row["score"])
        return _ROW

    def _problems(self, row: dict[str, Any]) -> list[str]:
        found = []
        for name, known in (("image_id", self._pictures), ("category_id", self._categories)):
            if not is_id(row.get(name)):
                found.append(f"its {name} is {shown(row.get(name))}, not an integer from 0")
            elif row[name] not in known:
                self._unknown[name].append(row[name])
        if not is_box(row.get("bbox")):
            found.append(f"its bbox is {shown(row.get('bbox'))}, not x, y, width and height in pixels")
        if not is_number(row.get("score")):
            found.append(f"its score is {shown(row.get('score'))}, not a number")
        return found

    def refuse(self, path: Path) -> None:
        for name, ids in self._unknown.items():
            if ids:
                rows = f"{counted(len(ids), 'row')} with {counted(len(set(ids)), name)}"
                self.problems.add(f"{rows} that the data set does not have, such as {ids[0]}")
        self.problems.refuse(path, _EXPECTED)


def results_json(predictions: Predictions) -> Iterator[bytes]:
    """COCO's results format, in pieces: the same bytes for the same predictions, and a line for each box.

    ModelError if a number is not finite: it is none in JSON.
    """
    predictions.check_finite()
    yield b"["
    for start in range(0, len(predictions), _CHUNK):
        part = predictions.taken(np.arange(start, min(start + _CHUNK, len(predictions))))
        columns = (part.pictures.tolist(), part.categories.tolist(), part.boxes.tolist(), part.scores.tolist())
        lines = [
            f'{{"image_id":{picture},"category_id":{category},"bbox":[{x!r},{y!r},{w!r},{h!r}],"score":{score!r}}}'
            for picture, category, (x, y, w, h), score in zip(*columns, strict=True)
        ]
        yield ((",\n" if start else "") + ",\n".join(lines)).encode()
    yield b"]\n"
