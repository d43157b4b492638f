"""AP and AR of predictions, as COCO, LVIS and "fixed AP" (Dave et al., arXiv:2102.01066) define them.

The figures are those of faster-coco-eval, which needs numpy alone, is kept up to date and knows LVIS's rules, too.
pycocotools does not know them, and the lvis package, not maintained since 2020, does not run with current numpy and
wants matplotlib and OpenCV. The tests show that it gives the figures of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.checkpoint.arrays import np
from converter.errors import ModelError
from converter.evaluation.curves import Found, Rules, Truth, curves, recall_points, summarised, taken, the_library
from converter.evaluation.dataset import DataSet
from converter.evaluation.predictions import Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray

METRICS = ("coco", "lvis", "lvis-fixed")
PER_PICTURE = 300  # boxes of 'lvis', those with the best scores
PER_CLASS = 10_000  # boxes of 'lvis-fixed' in the whole data set
_COCO_LIMITS = (1, 10, 100)  # boxes of one class in one picture

# names of figures -> of the library's
_SIZES = {"APs": "AP_small", "APm": "AP_medium", "APl": "AP_large"}
_PRECISION = {"AP": "AP_all", "AP50": "AP_50", "AP75": "AP_75", **_SIZES}
_RECALL_SIZES = {"ARs": "AR_small", "ARm": "AR_medium", "ARl": "AR_large"}
_FREQUENCIES = {"APr": "APr", "APc": "APc", "APf": "APf"}
_FIGURES = {
    "coco": {**_PRECISION, "AR1": "AR_all", "AR10": "AR_second", "AR100": "AR_third", **_RECALL_SIZES},
    "lvis": {**_PRECISION, **_FREQUENCIES, "AR300": "AR_all", **_RECALL_SIZES},
    "lvis-fixed": {**_PRECISION, **_FREQUENCIES, "AR": "AR_all", **_RECALL_SIZES},
}
_THRESHOLDS = {"IoU 0.50": slice(0, 1), "IoU 0.75": slice(5, 6), "IoU 0.50:0.95": slice(None)}


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Figures of one class, 0 to 1, or None if nothing of it is to be found.

    `annotated`: boxes to find, crowds not among them. `predicted`: boxes that were predicted, before any limit.
    `ap`, `recall`: means over IoU thresholds 0.50 to 0.95; `ap50`: at 0.50.
    """

    id: int
    name: str
    frequency: str | None
    annotated: int
    predicted: int
    ap: float | None
    ap50: float | None
    recall: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """All figures of one run, 0 to 1.

    `style`: one of METRICS. `figures`: AP, AP50, ... as papers name them; AR300 of 'lvis' is AR of 'lvis-fixed', which
    has no limit per picture. None where nothing is to be found. `recall`: 101 points; `precision`: the mean over
    classes at each of them, for three thresholds of IoU. `pictures`: id -> AP of the picture alone, None if nothing is
    to be found in it. `library`: name and version.

    AP of a picture alone: boxes of all its classes are ranked together, and matched within their class; of all areas,
    without COCO's limit of 100. Equal scores: by class, then in their order.
    """

    style: str
    figures: Mapping[str, float | None]
    classes: tuple[ClassScore, ...]
    recall: tuple[float, ...]
    precision: Mapping[str, tuple[float, ...]]
    pictures: Mapping[int, float | None]
    library: str


def evaluate(dataset: DataSet, predictions: Predictions, style: str) -> Scores:
    """Figures over all pictures of the data set. ModelError if the style, or a prediction, does not fit it.

    'coco': at most 100 boxes of a class in a picture. 'lvis': at most 300 in a picture. 'lvis-fixed': at most 10,000 of
    a class over the whole data set, and no limit for a picture, so that classes do not compete for places.
    """
    check_style(dataset, style)
    tables = _Tables(dataset)
    found = tables.found(predictions)
    if style != "coco":
        found = tables.verified(taken(found, _within_limits(found, style)))
    precision, recall = _of_classes(tables, found, style)
    letters = "".join(category.frequency or "" for category in dataset.categories) if style != "coco" else None
    limits = _COCO_LIMITS if style == "coco" else (PER_PICTURE,)
    library = summarised(precision, recall, limits, letters)
    return Scores(
        style=style,
        figures={name: _figure(library[theirs]) for name, theirs in _FIGURES[style].items()},
        classes=_classes(dataset, predictions, precision, recall),
        recall=tuple(recall_points().tolist()),
        precision={name: _mean_curve(precision[which]) for name, which in _THRESHOLDS.items()},
        pictures=_of_pictures(tables, found, style),
        library=f"faster-coco-eval {the_library().__version__}",
    )


def check_style(dataset: DataSet, style: str) -> None:
    """ModelError if there is no such style, or the data set does not say what it needs."""
    if style not in METRICS:
        raise ModelError(f"{style!r} is no metric. Choose one of {', '.join(METRICS)}.")
    if style != "coco" and dataset.style != "lvis":
        raise ModelError(
            f"the metric {style!r} needs to know which classes a picture was searched for, and the data set does not "
            "tell (`neg_category_ids`). Choose the metric 'coco'."
        )


class _Tables:
    """A data set as arrays. Places are indices of pictures, groups those of classes, both by id."""

    def __init__(self, dataset: DataSet) -> None:
        self.pictures = np.array([picture.id for picture in dataset.pictures], dtype=np.int64)
        self.categories = np.array([category.id for category in dataset.categories], dtype=np.int64)
        rows = dataset.content["annotations"]
        ids = np.array([row["id"] for row in rows], dtype=np.int64)
        self.truth = Truth(
            places=np.searchsorted(self.pictures, np.array([row["image_id"] for row in rows], dtype=np.int64)),
            groups=np.searchsorted(self.categories, np.array([row["category_id"] for row in rows], dtype=np.int64)),
            boxes=np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4),
            areas=np.array([row["area"] for row in rows], dtype=np.float64),
            crowds=np.array([row["iscrowd"] for row in rows], dtype=np.int64),
            ids=np.where(ids == 0, 0, np.arange(1, len(ids) + 1)),
        )
        self._negative = self._listed(dataset, "neg_category_ids")
        self.partial = self._listed(dataset, "not_exhaustive_category_ids")

    def _listed(self, dataset: DataSet, name: str) -> NDArray[np.int64]:
        """Pairs of picture and class in the images' lists, as `_pairs` numbers them."""
        rows = [(place, id) for place, image in enumerate(dataset.content["images"]) for id in image.get(name, ())]
        places, ids = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        return self._pairs(places, np.searchsorted(self.categories, ids))

    def _pairs(self, places: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
        return places * len(self.categories) + groups

    def found(self, predictions: Predictions) -> Found:
        """Predictions as rows. ModelError if one is not of this data set, or not finite."""
        predictions.check_finite()
        for what, ids, known in (
            ("picture", predictions.pictures, self.pictures),
            ("category", predictions.categories, self.categories),
        ):
            if len(unknown := np.setdiff1d(ids, known)):
                raise ModelError(
                    f"predictions are of the {what} {unknown[0]}, which is not in the data set. "
                    "Evaluate them on the data set that they were made for."
                )
        places = np.searchsorted(self.pictures, predictions.pictures)
        groups = np.searchsorted(self.categories, predictions.categories)
        return Found(places, groups, predictions.boxes, predictions.scores)

    def verified(self, found: Found) -> Found:
        """LVIS: without boxes of classes for which the picture was not searched."""
        known = np.union1d(self._pairs(self.truth.places, self.truth.groups), self._negative)
        return taken(found, np.isin(self._pairs(found.places, found.groups), known))

    def partial_of(self, *, places: bool) -> dict[int, frozenset[int]]:
        """LVIS: for each place the groups of which not all is annotated; or for each group its places."""
        rows = np.stack(np.divmod(self.partial, len(self.categories)), axis=1)
        lists: dict[int, set[int]] = {}
        for place, group in rows.tolist():
            key, value = (place, group) if places else (group, place)
            lists.setdefault(key, set()).add(value)
        return {key: frozenset(values) for key, values in lists.items()}


def _within_limits(found: Found, style: str) -> NDArray[np.bool_]:
    """Which boxes are counted at all: the best of each picture, or of each class. Of equals, the first."""
    keys, most = (found.places, PER_PICTURE) if style == "lvis" else (found.groups, PER_CLASS)
    order = np.lexsort((-found.scores, keys))  # stable
    starts = np.searchsorted(keys[order], keys[order])
    kept = np.zeros(len(keys), dtype=np.bool_)
    kept[order] = np.arange(len(keys)) - starts < most
    return kept


def _of_classes(tables: _Tables, found: Found, style: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (T, R, K, A, M) and recall (T, K, A, M) of all K classes; -1 where nothing is to be found."""
    coco = style == "coco"
    rules = Rules(
        limits=_COCO_LIMITS if coco else None, areas=True, partial=None if coco else tables.partial_of(places=True)
    )
    count, limits = len(tables.categories), len(_COCO_LIMITS) if coco else 1
    precision, recall = -np.ones((10, 101, count, 4, limits)), -np.ones((10, count, 4, limits))
    for groups, precisions, recalls in curves(tables.truth, found, rules):
        precision[:, :, groups], recall[:, groups] = precisions, recalls
    return precision, recall


def _of_pictures(tables: _Tables, found: Found, style: str) -> dict[int, float | None]:
    """AP of each picture alone: it is the group, and its classes are the places in which boxes are matched."""
    truth = tables.truth
    truth = Truth(truth.groups, truth.places, truth.boxes, truth.areas, truth.crowds, np.arange(1, len(truth.ids) + 1))
    found = Found(found.groups, found.places, found.boxes, found.scores)
    partial = None if style == "coco" else tables.partial_of(places=False)
    figures: list[float | None] = [None] * len(tables.pictures)
    for pictures, precision, _ in curves(truth, found, Rules(limits=None, areas=False, partial=partial)):
        for k, picture in enumerate(pictures.tolist()):
            figures[picture] = _mean(precision[:, :, k])
    return dict(zip(tables.pictures.tolist(), figures, strict=True))


def _classes(
    dataset: DataSet, predictions: Predictions, precision: NDArray[np.float64], recall: NDArray[np.float64]
) -> tuple[ClassScore, ...]:
    annotated = Counter(row["category_id"] for row in dataset.content["annotations"] if not row["iscrowd"])
    predicted = Counter(predictions.categories.tolist())
    return tuple(
        ClassScore(
            category.id,
            category.name,
            category.frequency,
            annotated=annotated[category.id],
            predicted=predicted[category.id],
            ap=_mean(precision[:, :, k, 0, -1]),
            ap50=_mean(precision[0, :, k, 0, -1]),
            recall=_mean(recall[:, k, 0, -1]),
        )
        for k, category in enumerate(dataset.categories)
    )


def _mean(values: NDArray[Any]) -> float | None:
    """As the library takes it: of what is not -1."""
    known = values[values > -1]
    return float(np.mean(known)) if known.size else None


def _figure(value: float) -> float | None:
    return None if value == -1 else float(value)


def _mean_curve(precision: NDArray[np.float64]) -> tuple[float, ...]:
    """Over thresholds and classes, of all areas at the largest limit; zeros if nothing is to be found."""
    return tuple(_mean(precision[:, r, :, 0, -1]) or 0.0 for r in range(precision.shape[1]))
