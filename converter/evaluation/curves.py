"""Precision and recall of boxes in groups, by faster-coco-eval.

The library has images and categories. Here are *places*, within which boxes are matched, and *groups*, whose boxes are
ranked together. For a data set's figures places are pictures and groups are classes; for the figure of one
picture alone it is the other way round: its boxes are ranked together, and those of one class are matched.

The library makes one object for each pair of the two and each range of areas: of LVIS's 6 million pairs, gigabytes.
Groups do not depend on each other, so it is asked for some of them at a time. 5,000 pictures with 300 boxes each, of
1,203 classes, then take 700 MB and some 20 seconds; with 100 boxes each, of 80 classes, 600 MB and as long.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from converter.checkpoint.arrays import np
from converter.errors import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAIRS = 40_000  # of places and groups at a time: 4 ranges of areas, some 300 bytes for each
_EVERYTHING = {"all": [0.0, 1e10]}


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """N annotated boxes: indices of places and groups (N,); boxes (N, 4); areas, crowds and ids (N,).

    An id of 0 is never found: that is how the library and pycocotools mark what was not.
    """

    places: NDArray[np.int64]
    groups: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.int64]
    ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """N predicted boxes: indices of places and groups (N,); boxes (N, 4); scores (N,)."""

    places: NDArray[np.int64]
    groups: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rules:
    """What is counted.

    `limits`: boxes of one group in one place, as COCO's 1, 10 and 100; None: all. `areas`: also of small, medium and
    large ones alone. `partial`: LVIS's groups of which not all is annotated in a place: what is found of them beyond
    the annotated counts for nothing. None: there are no such.
    """

    limits: tuple[int, ...] | None
    areas: bool
    partial: Mapping[int, frozenset[int]] | None


Rows = TypeVar("Rows", Truth, Found)


def taken(rows: Rows, which: Any) -> Rows:
    """Some of the rows: indices, a slice or a mask."""
    return type(rows)(*(getattr(rows, field.name)[which] for field in fields(rows)))


def curves(truth: Truth, found: Found, rules: Rules) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """For some groups at a time: their indices (K,), precision (T, R, K, A, M) and recall (T, K, A, M).

    T: thresholds of IoU. R: points of recall. A: ranges of areas. M: limits. -1 where nothing is to be found. A group
    without annotations, of which there can be no figure, is left out.
    """
    annotated = np.unique(truth.groups)
    truth = taken(truth, np.argsort(truth.groups, kind="stable"))
    found = taken(found, np.isin(found.groups, annotated))
    found = taken(found, np.argsort(found.groups, kind="stable"))
    places = len(np.unique(np.concatenate([truth.places, found.places])))
    most = max(1, _PAIRS // max(1, places))
    for start in range(0, len(annotated), most):
        groups = annotated[start : start + most]
        evaluation = _evaluated(_of_groups(truth, groups), _of_groups(found, groups), groups, rules)
        yield groups, evaluation.eval["precision"], evaluation.eval["recall"]


def _of_groups(rows: Rows, groups: NDArray[np.int64]) -> Rows:
    """Those of groups that follow each other, of rows in the order of groups."""
    first, last = np.searchsorted(rows.groups, [groups[0], groups[-1] + 1])
    return taken(rows, slice(first, last))


def _evaluated(truth: Truth, found: Found, groups: NDArray[np.int64], rules: Rules) -> Any:
    """The library's evaluation of these groups."""
    library = the_library()
    places = np.unique(np.concatenate([truth.places, found.places])).tolist()
    categories = [{"id": group, "name": str(group), "frequency": "f"} for group in groups.tolist()]
    content = {
        "images": _images(places, rules, len(groups)),
        "categories": categories,
        "annotations": _truth_rows(truth),
    }
    with warnings.catch_warnings():  # of the id 0, which `read_dataset` has told of
        warnings.simplefilter("ignore")
        annotated = library.COCO(content, print_function=_silent)
        results = library.COCO({**content, "annotations": _found_rows(found)}, print_function=_silent)
    lvis = rules.partial is not None
    evaluation = library.COCOeval_faster(annotated, results, "bbox", print_function=_silent, lvis_style=lvis)
    _set(evaluation.params, rules, _most(found))
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _set(params: Any, rules: Rules, most: int) -> None:
    """The library reserves memory for as many boxes as the limit allows, so that it is no larger than it has to be."""
    params.maxDets = list(rules.limits or (most,))
    if not rules.areas:
        params.areaRng, params.areaRngLbl = list(_EVERYTHING.values()), list(_EVERYTHING)


def _most(found: Found) -> int:
    """Boxes in the pair of place and group that has most."""
    pairs = np.unique(np.stack([found.places, found.groups]), axis=1, return_counts=True)[1]
    return int(max(pairs, default=1))


def _images(places: list[int], rules: Rules, groups: int) -> list[dict[str, Any]]:
    if rules.partial is None:
        return [{"id": place} for place in places]
    everything = range(1 << 62)  # what was not verified has been left out before
    return [
        {
            "id": place,
            "neg_category_ids": everything,
            "not_exhaustive_category_ids": rules.partial.get(place, frozenset()),
        }
        for place in places
    ]


def _truth_rows(truth: Truth) -> list[dict[str, Any]]:
    columns = (getattr(truth, field.name).tolist() for field in fields(truth))
    return [
        {"id": id, "image_id": place, "category_id": group, "bbox": box, "area": area, "iscrowd": crowd}
        for place, group, box, area, crowd, id in zip(*columns, strict=True)
    ]


def _found_rows(found: Found) -> list[dict[str, Any]]:
    """As the library's own reader of results makes them, but for an outline of each, and with none at all, too."""
    columns = (getattr(found, field.name).tolist() for field in fields(found))
    return [
        {"id": id, "image_id": place, "category_id": group, "bbox": box, "area": box[2] * box[3], "score": score}
        for id, (place, group, box, score) in enumerate(zip(*columns, strict=True), start=1)
    ]


def summarised(
    precision: NDArray[np.float64], recall: NDArray[np.float64], limits: tuple[int, ...], frequencies: str | None
) -> dict[str, float]:
    """The library's means over all groups, by its names: `AP_all`, `AR_small`, `APr`, ...

    `frequencies`: LVIS's letter of every group.
    """
    evaluation = the_library().COCOeval_faster(
        iouType="bbox", print_function=_silent, lvis_style=frequencies is not None
    )
    evaluation.params.maxDets = list(limits)
    evaluation.eval = {"precision": precision, "recall": recall}
    if frequencies is not None:
        letters = evaluation.params.imgCountLbl
        evaluation.freq_groups = [[k for k, letter in enumerate(frequencies) if letter == one] for one in letters]
    evaluation.summarize()
    return dict(evaluation.stats_as_dict)


def recall_points() -> NDArray[np.float64]:
    """The library's, (R,)."""
    points: NDArray[np.float64] = the_library().COCOeval_faster(iouType="bbox").params.recThrs
    return points


def the_library() -> Any:
    """faster-coco-eval. MissingPackageError if it is not installed."""
    require("an evaluation", "evaluate", ["faster_coco_eval"])
    import faster_coco_eval

    return faster_coco_eval


def _silent(*_: object) -> None:
    pass
