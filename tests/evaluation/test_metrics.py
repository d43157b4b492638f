"""AP and AR are those of COCO's and LVIS's own packages."""

from __future__ import annotations

import io
import json
import logging
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter import errors
from converter.errors import ModelError
from converter.evaluation import curves, metrics
from converter.evaluation.dataset import DataSet, read_dataset
from converter.evaluation.metrics import Scores, evaluate
from converter.evaluation.predictions import Predictions, read_predictions
from tests.support.average_precision import picture_ap
from tests.support.predicting import COCO, COCO_RESULTS, DATA, LVIS, Row, as_results, noisy, perfect, predictions

# the COCO API's results/val2014_fake_eval_res.txt
PUBLISHED = {
    **{"AP": 0.505, "AP50": 0.697, "AP75": 0.573, "APs": 0.586, "APm": 0.519, "APl": 0.501},
    **{"AR1": 0.387, "AR10": 0.594, "AR100": 0.595, "ARs": 0.640, "ARm": 0.566, "ARl": 0.564},
}
RECORDED = json.loads((DATA / "lvis_figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def coco() -> DataSet:
    return read_dataset(COCO)


@pytest.fixture(scope="module")
def lvis() -> DataSet:
    return read_dataset(LVIS)


def of(dataset: DataSet, rows: list[Row], style: str = "") -> Scores:
    return evaluate(dataset, Predictions.of(rows), style or dataset.style)


def pycocotools(dataset: DataSet, rows: list[dict[str, object]]) -> Any:
    from pycocotools.coco import COCO as Annotations
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        annotated = Annotations()
        annotated.dataset = {name: [dict(row) for row in rows] for name, rows in dataset.content.items()}
        annotated.createIndex()
        evaluation = COCOeval(annotated, annotated.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_the_published_figures_of_coco(coco: DataSet) -> None:
    figures = evaluate(coco, read_predictions(COCO_RESULTS, coco), "coco").figures
    assert {name: round(value or 0, 3) for name, value in figures.items()} == PUBLISHED


@pytest.mark.parametrize("seed", [1, 2])
def test_the_figures_of_pycocotools(coco: DataSet, seed: int) -> None:
    rows = noisy(coco, seed)
    theirs = pycocotools(coco, as_results(rows))
    ours = of(coco, rows)
    assert list(ours.figures.values()) == pytest.approx(theirs.stats.tolist(), abs=1e-12)
    assert list(ours.recall) == theirs.params.recThrs.tolist()
    for k, score in enumerate(ours.classes):
        values = theirs.eval["precision"][:, :, k, 0, -1]
        assert (score.ap or 0) == pytest.approx(values.mean() if values.max() > -1 else 0, abs=1e-12)
        assert (score.ap is None) == (values.max() == -1)
        assert (score.ap50 or 0) == pytest.approx(max(values[0].mean(), 0), abs=1e-12)
        assert (score.recall or 0) == pytest.approx(max(theirs.eval["recall"][:, k, 0, -1].mean(), 0), abs=1e-12)
    precision = theirs.eval["precision"][:, :, :, 0, -1]
    precision = precision[:, :, precision[0].max(axis=0) > -1]
    for name, low, high in (("0.50", 0.5, 0.5), ("0.75", 0.75, 0.75), ("0.50:0.95", 0, 1)):
        which = (theirs.params.iouThrs >= low) & (theirs.params.iouThrs <= high)
        assert ours.precision[f"IoU {name}"] == pytest.approx(precision[which].mean(axis=(0, 2)), abs=1e-12)


@pytest.mark.parametrize("case", RECORDED)
def test_the_figures_of_the_lvis_package(lvis: DataSet, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded by `tests/peers/lvis_package.py`; `tests/peers/test_lvis.py` asks the package itself."""
    name, _, seed = case.partition(", seed ")
    style, _, most = name.partition(", ")
    monkeypatch.setattr(metrics, "PER_CLASS", int(most.split()[0]) if most else 10_000)
    figures = evaluate(lvis, predictions(lvis, int(seed)), style).figures
    assert figures == pytest.approx(RECORDED[case], abs=1e-12)


def test_limits_matter(lvis: DataSet) -> None:
    """Otherwise the figures above would not show that they are kept."""
    found = RECORDED["lvis, seed 1"], RECORDED["lvis-fixed, seed 1"], RECORDED["lvis-fixed, 10 of a class, seed 1"]
    assert len({figures["AP"] for figures in found}) == 3


@pytest.mark.parametrize("pairs", [1, 100, 10**9])
@pytest.mark.parametrize("style", ["coco", "lvis", "lvis-fixed"])
def test_how_many_groups_are_evaluated_at_a_time_changes_nothing(
    lvis: DataSet, style: str, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = lvis.limited(20)
    rows = [row for row in noisy(lvis) if row[0] in {picture.id for picture in few.pictures}]
    expected = of(few, rows, style)
    monkeypatch.setattr(curves, "_PAIRS", pairs)
    found = of(few, rows, style)
    assert (found.figures, found.classes, found.pictures) == (expected.figures, expected.classes, expected.pictures)


@pytest.mark.parametrize("path", [COCO, LVIS])
def test_a_perfect_detector(path: Any) -> None:
    dataset = read_dataset(path)
    found = of(dataset, perfect(dataset))
    assert {name for name, value in found.figures.items() if value != 1} <= {"AR1", "AR10"}
    assert {score.ap for score in found.classes} == {1.0, None}
    assert {score.annotated for score in found.classes if score.ap is None} == {0}
    assert set(found.pictures.values()) <= {1.0, None}
    assert found.precision["IoU 0.50:0.95"] == pytest.approx([1.0] * 101)


def test_wrong_classes_are_worth_nothing(coco: DataSet) -> None:
    ids = [category.id for category in coco.categories]
    rows = [(picture, ids[(ids.index(label) + 1) % len(ids)], *rest) for picture, label, *rest in perfect(coco)]
    found = of(coco, rows)  # type: ignore[arg-type]
    assert found.figures["AP"] == pytest.approx(0, abs=0.01)
    assert np.mean([value for value in found.pictures.values() if value is not None]) < 0.01


def test_half_of_the_boxes_is_half_of_the_recall(coco: DataSet) -> None:
    rows = [row for row in perfect(coco) if row[1] == 1]
    found = of(coco, rows[::2]).classes[0]
    assert found.annotated == len(rows)
    assert found.predicted == len(rows[::2])
    assert found.recall == pytest.approx(len(rows[::2]) / len(rows))
    assert found.ap == pytest.approx(int(100 * len(rows[::2]) / len(rows) + 1) / 101)


def test_nothing_is_found(coco: DataSet) -> None:
    found = of(coco, [])
    assert set(found.figures.values()) == {0.0}
    assert set(found.pictures.values()) == {0.0}


def test_nothing_is_to_be_found(coco: DataSet) -> None:
    """Among the first pictures, or as all of it is crowds."""
    none = replace(coco, content={**coco.content, "annotations": []})
    crowds = replace(coco, content={**coco.content, "annotations": [{**coco.content["annotations"][0], "iscrowd": 1}]})
    for dataset in (none, crowds):
        found = of(dataset, noisy(coco))
        assert set(found.figures.values()) == set(found.pictures.values()) == {None}
        assert {(score.annotated, score.ap, score.recall) for score in found.classes} == {(0, None, None)}
        assert set(found.precision["IoU 0.50"]) == {0.0}


def federated(lvis: DataSet, name: str) -> tuple[int, int]:
    """A picture and a class that is in its list but not annotated there, and annotated elsewhere."""
    annotated = {(row["image_id"], row["category_id"]) for row in lvis.content["annotations"]}
    classes = {category for _, category in annotated}
    return next(
        (image["id"], id)
        for image in lvis.content["images"]
        for id in image[name]
        if (image["id"], id) not in annotated and id in classes
    )


@pytest.mark.parametrize("style", ["lvis", "lvis-fixed"])
def test_of_lvis_only_verified_classes_count(lvis: DataSet, style: str) -> None:
    rows = perfect(lvis)
    before = of(lvis, rows, style)
    picture, category = federated(lvis, "neg_category_ids")
    wrong = (picture, category, [1.0, 1.0, 9.0, 9.0], 0.95)
    after = of(lvis, [*rows, wrong], style)
    assert (after.figures["AP"] or 1) < (before.figures["AP"] or 0)
    assert (after.pictures[picture] or 1) < 1
    image = next(image for image in lvis.content["images"] if image["id"] == picture)
    annotated = {row["category_id"] for row in lvis.content["annotations"] if row["image_id"] == picture}
    known = {*annotated, *image["neg_category_ids"]}
    other = next(row[1] for row in rows if row[1] not in known)
    after = of(lvis, [*rows, (picture, other, [1.0, 1.0, 9.0, 9.0], 0.95)], style)
    assert (after.figures, after.pictures) == (before.figures, before.pictures)


def test_of_lvis_what_is_not_exhaustive_is_not_wrong(lvis: DataSet) -> None:
    rows = perfect(lvis)
    before = of(lvis, rows)
    partial = [(image["id"], id) for image in lvis.content["images"] for id in image["not_exhaustive_category_ids"]]
    after = of(lvis, [*rows, *((picture, id, [1.0, 1.0, 9.0, 9.0], 0.95) for picture, id in partial)])
    assert (after.figures, after.pictures) == (before.figures, before.pictures)
    assert (
        of(lvis, [*rows, *((*pair, [1.0, 1.0, 9.0, 9.0], 0.95) for pair in partial)], "coco").figures["AP"] or 1
    ) < 1


@pytest.mark.parametrize(("path", "style"), [(COCO, "coco"), (LVIS, "lvis-fixed")])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_figure_of_a_picture_alone(path: Any, style: str, seed: int) -> None:
    dataset = read_dataset(path)
    rows = noisy(dataset, seed)
    found = of(dataset, rows, style).pictures
    assert list(found) == [picture.id for picture in dataset.pictures]
    for image in dataset.content["images"]:
        annotations = [row for row in dataset.content["annotations"] if row["image_id"] == image["id"]]
        known = {*image.get("neg_category_ids", ()), *(row["category_id"] for row in annotations)}
        own = [row for row in rows if row[0] == image["id"] and (style == "coco" or row[1] in known)]
        expected = picture_ap(annotations, own, image.get("not_exhaustive_category_ids", ()))
        assert found[image["id"]] == (None if expected is None else pytest.approx(expected, abs=1e-12)), image["id"]


@settings(max_examples=10)
@given(st.randoms(use_true_random=False), st.sampled_from(["coco", "lvis", "lvis-fixed"]))
def test_only_the_order_of_scores_matters(chance: Any, style: str) -> None:
    """Not that of rows, nor how large a score is."""
    dataset = read_dataset(LVIS).limited(5)
    ids = {picture.id for picture in dataset.pictures}
    rows = [row for row in noisy(dataset, crowded=1) if row[0] in ids]
    scores = chance.sample(range(len(rows)), len(rows))
    rows = [(*row[:3], float(score)) for row, score in zip(rows, scores, strict=True)]
    expected = of(dataset, rows, style)
    changed = [(*row[:3], -1 / (1 + row[3])) for row in chance.sample(rows, len(rows))]
    found = of(dataset, changed, style)
    assert (found.figures, found.classes, found.pictures) == (expected.figures, expected.classes, expected.pictures)


def test_ids_of_any_size(coco: DataSet) -> None:
    """The library holds them as floats, which cannot tell these apart."""
    large = 2**53 - 1000
    content = {
        **coco.content,
        "images": [{**image, "id": large + number} for number, image in enumerate(coco.content["images"])],
    }
    order = {picture.id: large + number for number, picture in enumerate(coco.pictures)}
    content["annotations"] = [{**row, "image_id": order[row["image_id"]]} for row in coco.content["annotations"]]
    pictures = tuple(replace(picture, id=order[picture.id]) for picture in coco.pictures)
    moved = replace(coco, pictures=pictures, content=content)
    rows = [(order[picture], *rest) for picture, *rest in noisy(coco)]
    assert of(moved, rows).figures == of(coco, noisy(coco)).figures  # type: ignore[arg-type]


def test_an_annotation_with_the_id_0_is_never_found_as_by_pycocotools(coco: DataSet) -> None:
    first, *others = coco.content["annotations"]
    dataset = replace(coco, content={**coco.content, "annotations": [{**first, "id": 0}, *others]})
    rows = perfect(dataset)
    found = of(dataset, rows)
    assert list(found.figures.values()) == pytest.approx(
        pycocotools(dataset, as_results(rows)).stats.tolist(), abs=1e-12
    )
    assert (found.figures["AP"] or 1) < 1


def test_it_is_silent(coco: DataSet, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    library = of(coco, noisy(coco)).library
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert library.startswith("faster-coco-eval 1.")


def test_the_library_is_named_where_it_is_missing(coco: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    found = errors.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "faster_coco_eval" else found(name))
    with pytest.raises(errors.MissingPackageError, match="needs faster-coco-eval, which is not installed: pip install"):
        of(coco, [])


@pytest.mark.parametrize(
    ("style", "row", "said"),
    [
        ("voc", None, "'voc' is no metric. Choose one of coco, lvis, lvis-fixed"),
        ("lvis", None, "which classes a picture was searched for"),
        ("coco", (7, 1, [0, 0, 1, 1], 0.5), "of the picture 7, which is not in the data set"),
        ("coco", (42, 12, [0, 0, 1, 1], 0.5), "of the category 12, which is not in the data set"),
        ("coco", (42, 1, [0, 0, float("inf"), 1], 0.5), "not finite"),
        ("coco", (42, 1, [0, 0, 1, 1], float("nan")), "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(coco: DataSet, style: str, row: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        of(coco, [row] if row else [], style)
