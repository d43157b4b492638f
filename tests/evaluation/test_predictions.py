"""Results in COCO's format are read as they are, written alike every time, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import ModelError
from converter.evaluation.dataset import DataSet, read_dataset
from converter.evaluation.predictions import Predictions, read_predictions, results_json
from tests.support.predicting import COCO, COCO_RESULTS, as_results, noisy

ROW: dict[str, Any] = {"image_id": 42, "category_id": 18, "bbox": [258.15, 41, 348.26, 0], "score": 0.236}
OUTLINE = {"size": [1, 2], "counts": "abc"}


@pytest.fixture(scope="module")
def coco() -> DataSet:
    return read_dataset(COCO)


def put(folder: Path, content: object) -> Path:
    path = folder / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def written(predictions: Predictions) -> bytes:
    return b"".join(results_json(predictions))


def test_rows_are_kept_in_their_order(tmp_path: Path, coco: DataSet) -> None:
    rows = [ROW, {**ROW, "image_id": 74, "area": 7, "segmentation": OUTLINE}, {**ROW, "score": 1}]
    found = read_predictions(put(tmp_path, rows), coco)
    assert found.pictures.tolist() == [42, 74, 42]
    assert found.categories.tolist() == [18, 18, 18]
    assert found.boxes.tolist() == [[258.15, 41, 348.26, 0]] * 3
    assert found.scores.tolist() == [0.236, 0.236, 1]
    assert {part.dtype.str for part in (found.pictures, found.categories)} == {"<i8"}
    assert (found.boxes.dtype.str, found.scores.dtype.str, len(found)) == ("<f8", "<f8", 3)


def test_a_published_file(coco: DataSet) -> None:
    found = read_predictions(COCO_RESULTS, coco)
    expected = json.loads(COCO_RESULTS.read_text(encoding="utf-8"))
    assert json.loads(written(found)) == expected


def test_no_boxes(tmp_path: Path, coco: DataSet) -> None:
    found = read_predictions(put(tmp_path, []), coco)
    assert (len(found), found.boxes.shape) == (0, (0, 4))
    assert json.loads(written(found)) == []


def test_the_format_is_lines_of_json() -> None:
    rows = [(1, 2, [0, 1.5, 1e-7, 123456789.125], 0.1 + 0.2), (3, 4, [0, 0, 1, 1], 1)]
    assert written(Predictions.of(rows)).decode().splitlines() == [  # type: ignore[arg-type]
        '[{"image_id":1,"category_id":2,"bbox":[0.0,1.5,1e-07,123456789.125],"score":0.30000000000000004},',
        '{"image_id":3,"category_id":4,"bbox":[0.0,0.0,1.0,1.0],"score":1.0}]',
    ]


def test_many_are_written_in_pieces(coco: DataSet) -> None:
    rows = noisy(coco) * 7
    pieces = list(results_json(Predictions.of(rows)))
    assert len(pieces) > 3
    assert json.loads(b"".join(pieces)) == as_results(rows)


NUMBERS = st.floats(-1e9, 1e9)
SIDES = st.floats(0, 1e9)


@given(st.lists(st.tuples(st.just(42), st.just(18), st.tuples(NUMBERS, NUMBERS, SIDES, SIDES), NUMBERS)))
def test_what_was_written_is_read(tmp_path: Path, coco: DataSet, rows: list[Any]) -> None:
    predictions = Predictions.of(rows)
    path = tmp_path / "results.json"
    path.write_bytes(written(predictions))
    found = read_predictions(path, coco)
    assert np.array_equal(found.boxes, predictions.boxes)
    assert np.array_equal(found.scores, predictions.scores)
    assert written(found) == path.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_written(value: float) -> None:
    with pytest.raises(ModelError, match="not finite"):
        written(Predictions.of([(1, 2, [0, 0, 1, value], 0.5)]))
    with pytest.raises(ModelError, match="not finite"):
        written(Predictions.of([(1, 2, [0, 0, 1, 1], value)]))


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in ROW.items() if key != name}


REFUSED: dict[str, tuple[object, str]] = {
    "nothing": ("", "cannot be read"),
    "half": (json.dumps([ROW])[:-9], "cannot be read"),
    "an object": ({"annotations": [ROW]}, "not a list of objects"),
    "a row": (ROW, "not a list of objects"),
    "a number": ([ROW, 3], "not a list of objects"),
    "no row": ([ROW, OUTLINE], "not a list of objects"),
    "a row in a row": ([{**ROW, "segmentation": ROW}], "not a list of objects"),
    "rows in lists": ([[ROW]], "not a list of objects"),
    "a name twice": ('[{"image_id": 42, "image_id": 73}]', "'image_id' is there twice"),
    "NaN": (json.dumps([ROW]).replace("0.236", "NaN"), "NaN is not a JSON number"),
    "infinite": (json.dumps([ROW]).replace("0.236", "1e999"), "row 1: its score is Infinity, not a number"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "unknown picture": ([ROW, {**ROW, "image_id": 7}], "1 row with 1 image_id that the data set does not have, .* 7"),
    "unknown class": ([{**ROW, "category_id": 12}] * 2, "2 rows with 1 category_id that the data set does not"),
    "picture a text": ([{**ROW, "image_id": "42"}], 'row 1: its image_id is "42", not an integer'),
    "picture a float": ([{**ROW, "image_id": 42.0}], "row 1: its image_id is 42.0, not an integer"),
    "class true": ([ROW, {**ROW, "category_id": True}], "row 2: its category_id is true, not an integer"),
    "class too large": ([{**ROW, "category_id": 2**63}], "row 1: its category_id is 9223372036854775808"),
    "no class": ([without("category_id")], "row 1: its category_id is nothing"),
    "no box": ([without("bbox")], "row 1: its bbox is nothing"),
    "box of three": ([{**ROW, "bbox": [1, 2, 3]}], r"row 1: its bbox is \[1, 2, 3\], not x, y, width and height"),
    "width negative": ([{**ROW, "bbox": [1, 2, -3, 4]}], "row 1: its bbox is"),
    "box huge": ([{**ROW, "bbox": [1, 2, 3, 1e200]}], "row 1: its bbox is"),
    "no score": ([without("score")], "row 1: its score is nothing, not a number"),
    "score true": ([{**ROW, "score": True}], "row 1: its score is true"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, coco: DataSet, case: str) -> None:
    content, said = REFUSED[case]
    path = put(tmp_path, content)
    with pytest.raises(ModelError, match=said) as caught:
        read_predictions(path, coco)
    assert str(caught.value).startswith(f"{path}: ")
    assert "Expected COCO's results format" in str(caught.value)


def test_of_many_problems_the_first(tmp_path: Path, coco: DataSet) -> None:
    with pytest.raises(ModelError, match="50 problems") as caught:
        read_predictions(put(tmp_path, [{**ROW, "score": None}] * 50), coco)
    assert caught.value.problems[19:] == ("row 20: its score is nothing, not a number", "and 30 more")
