"""Annotations are what they say, or are refused with all that is wrong with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from converter.errors import ConverterWarning, ModelError
from converter.evaluation import large_json
from converter.evaluation.dataset import Category, Picture, read_dataset
from tests.support.predicting import COCO, LVIS

SMALL: dict[str, Any] = {
    "images": [
        {"id": 2, "file_name": "b.jpg", "width": 40, "height": 30, "license": 1},
        {"id": 1, "file_name": "sub/a.jpg"},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat", "supercategory": "animal"}],
    "annotations": [
        {"id": 5, "image_id": 2, "category_id": 9, "bbox": [1, 2, 3.5, 4], "segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"id": 3, "image_id": 1, "category_id": 4, "bbox": [0, 0, 2, 2], "area": 3.5, "iscrowd": 1},
    ],
}
FEDERATED: dict[str, Any] = {
    **SMALL,
    "images": [
        {"id": 1, "coco_url": "http://h/val2017/a.jpg", "neg_category_ids": [4], "not_exhaustive_category_ids": [9]},
        {"id": 2, "file_name": "b.jpg", "neg_category_ids": [], "not_exhaustive_category_ids": []},
    ],
    "categories": [{"id": 9, "name": "dog", "frequency": "r"}, {"id": 4, "name": "dog", "frequency": "f"}],
}


def put(folder: Path, content: object) -> Path:
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_small_one(tmp_path: Path) -> None:
    path = put(tmp_path, SMALL)
    dataset = read_dataset(path)
    assert (dataset.path, dataset.style) == (path, "coco")
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.categories == (Category(4, "cat", None), Category(9, "dog", None))
    assert dataset.pictures == (Picture(1, "sub/a.jpg", None, None), Picture(2, "b.jpg", 40, 30))
    assert dataset.content["annotations"] == [
        {"id": 5, "image_id": 2, "category_id": 9, "bbox": [1, 2, 3.5, 4], "area": 14, "iscrowd": 0},
        {"id": 3, "image_id": 1, "category_id": 4, "bbox": [0, 0, 2, 2], "area": 3.5, "iscrowd": 1},
    ]


def test_a_federated_one(tmp_path: Path) -> None:
    dataset = read_dataset(put(tmp_path, FEDERATED))
    assert dataset.style == "lvis"
    assert dataset.categories == (Category(4, "dog", "f"), Category(9, "dog", "r"))
    assert dataset.pictures[0].file_name == "val2017/a.jpg"
    assert dataset.content["images"][0]["neg_category_ids"] == [4]
    assert dataset.content["images"][0]["not_exhaustive_category_ids"] == [9]
    plain = read_dataset(dataset.path, "coco")
    assert (plain.style, plain.categories[0].frequency) == ("coco", None)


@pytest.mark.parametrize(("path", "style", "classes"), [(COCO, "coco", 80), (LVIS, "lvis", 1230)])
def test_real_ones(path: Path, style: str, classes: int) -> None:
    dataset = read_dataset(path)
    assert (dataset.style, len(dataset.pictures), len(dataset.categories)) == (style, 100, classes)


def test_the_first_pictures_alone(tmp_path: Path) -> None:
    dataset = read_dataset(put(tmp_path, SMALL))
    few = dataset.limited(1)
    assert few.pictures == dataset.pictures[:1]
    assert [row["id"] for row in few.content["annotations"]] == [3]
    assert [image["id"] for image in few.content["images"]] == [1]
    assert few.categories == dataset.categories
    assert few.pictures_sha256 != dataset.pictures_sha256
    assert dataset.limited(None) is dataset.limited(2) is dataset


def test_the_hash_of_pictures_is_of_ids_and_names(tmp_path: Path) -> None:
    other = deepcopy(SMALL)
    other["annotations"][0]["bbox"] = [0, 0, 1, 1]
    other["images"].reverse()
    one, two = (read_dataset(put(tmp_path, content)) for content in (SMALL, other))
    assert one.pictures_sha256 == two.pictures_sha256
    assert one.sha256 != two.sha256


def test_the_id_0_is_told_of(tmp_path: Path) -> None:
    content = deepcopy(SMALL)
    content["annotations"][0]["id"] = 0
    with pytest.warns(ConverterWarning, match="an annotation has the id 0, .* as never found"):
        read_dataset(put(tmp_path, content))


def changed(name: str, /, **values: Any) -> Callable[[], Any]:
    """The first of a list is another one."""

    def make() -> Any:
        content = deepcopy(FEDERATED if name in ("federated", "frequency") else SMALL)
        rows = content[{"federated": "images", "frequency": "categories"}.get(name, name)]
        rows[0] |= values
        return content

    return make


def without(name: str, field: str) -> Callable[[], Any]:
    def make() -> Any:
        content = deepcopy(SMALL)
        del content[name][0][field]
        return content

    return make


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: "", "cannot be read"),
    "no JSON": (lambda: "<html>", "cannot be read"),
    "a number": (lambda: "1", "not an object"),
    "a list": (lambda: [SMALL], "not an object"),
    "NaN": (lambda: json.dumps(SMALL).replace("3.5", "NaN"), "NaN is not a JSON number"),
    "infinite": (lambda: json.dumps(SMALL).replace("3.5", "1e999"), "annotation 5: its bbox is"),
    "a name twice": (lambda: '{"images": [], "images": []}', "'images' is there twice"),
    "nested": (lambda: "[" * 100_000, "nested too deeply"),
    "a long number": (lambda: "9" * 10_000, "cannot be read"),
    "no UTF-8": (lambda: '{"images": "\udcff"}', "cannot be read"),
    "no images": (lambda: {**SMALL, "images": []}, "no images"),
    "too many categories": (
        lambda: {**SMALL, "categories": [{"id": number, "name": "x"} for number in range(1, 30_002)]},
        "30,001 categories; 30,000 are the most",
    ),
    "no categories": (lambda: {**SMALL, "categories": []}, "no categories"),
    "no annotations": (lambda: {**SMALL, "annotations": []}, "no annotations"),
    "no list": (lambda: {**SMALL, "annotations": {}}, "no annotations"),
    "no object": (lambda: {**SMALL, "images": [*SMALL["images"], 3]}, "image number 3: not an object"),
    "an image twice": (changed("images", id=1), "image 1: the id is there twice"),
    "a category twice": (changed("categories", id=4), "category 4: the id is there twice"),
    "an annotation twice": (changed("annotations", id=3), "annotation 3: the id is there twice"),
    "id a text": (changed("images", id="2"), 'image number 1: its id is "2", not an integer'),
    "id a float": (changed("annotations", id=5.0), "annotation number 1: its id is 5.0, not an integer"),
    "id true": (changed("categories", id=True), "category number 1: its id is true, not an integer"),
    "id negative": (changed("images", id=-2), "image number 1: its id is -2"),
    "id too large": (changed("images", id=2**53), "image number 1: its id is 9007199254740992"),
    "no id": (without("annotations", "id"), "annotation number 1: its id is nothing"),
    "no class name": (without("categories", "name"), "category 9: its name is nothing, not a text"),
    "class name empty": (changed("categories", name=" "), 'category 9: its name is " ", not a text'),
    "class name a number": (changed("categories", name=9), "category 9: its name is 9, not a text"),
    "class name long": (changed("categories", name="x" * 10_001), "not a text of up to 10000 characters"),
    "unknown picture": (changed("annotations", image_id=7), "annotation 5: its image_id is 7, which is not in the"),
    "unknown class": (changed("annotations", category_id=7), "annotation 5: its category_id is 7, which is not in"),
    "no class": (without("annotations", "category_id"), "annotation 5: its category_id is nothing"),
    "class a list": (changed("annotations", category_id=[9]), r"annotation 5: its category_id is \[9\]"),
    "no box": (without("annotations", "bbox"), "annotation 5: its bbox is nothing, not x, y, width and height"),
    "box of three": (changed("annotations", bbox=[1, 2, 3]), r"annotation 5: its bbox is \[1, 2, 3\]"),
    "box of texts": (changed("annotations", bbox=["1", 2, 3, 4]), "annotation 5: its bbox is"),
    "box of truths": (changed("annotations", bbox=[True, 2, 3, 4]), "annotation 5: its bbox is"),
    "box huge": (changed("annotations", bbox=[1, 2, 3, 1e300]), "annotation 5: its bbox is"),
    "width negative": (changed("annotations", bbox=[1, 2, -3, 4]), "annotation 5: its bbox is"),
    "height negative": (changed("annotations", bbox=[1, 2, 3, -4]), "annotation 5: its bbox is"),
    "crowd of 2": (changed("annotations", iscrowd=2), "annotation 5: its iscrowd is 2, not 0 or 1"),
    "crowd a text": (changed("annotations", iscrowd="0"), 'annotation 5: its iscrowd is "0", not 0 or 1'),
    "crowd a list": (changed("annotations", iscrowd=[]), r"annotation 5: its iscrowd is \[\], not 0 or 1"),
    "area negative": (changed("annotations", area=-1), "annotation 5: its area is -1"),
    "area a text": (changed("annotations", area="big"), 'annotation 5: its area is "big"'),
    "picture of no width": (changed("images", width=0), "image 2: its width is 0, not a positive integer"),
    "picture of half a pixel": (changed("images", height=1.5), "image 2: its height is 1.5, not a positive"),
    "no file": (without("images", "file_name"), "image 2: its file_name is nothing"),
    "file a number": (changed("images", file_name=2), "image 2: its file_name is 2, not a name"),
    "file name long": (changed("images", file_name="x" * 1001), "not a name of up to 1000 characters"),
    "file with NUL": (changed("images", file_name="a\0b"), "image 2: its file_name is"),
    "file absolute": (changed("images", file_name="/etc/passwd"), "file_name /etc/passwd leads out of the folder"),
    "file above": (changed("images", file_name="a/../../b"), r"file_name a/../../b leads out of the folder"),
    "file above, of Windows": (changed("images", file_name="a\\..\\b"), "leads out of the folder"),
    "address above": (changed("federated", coco_url="http://h/../a.jpg"), "file_name ../a.jpg leads out"),
    "frequency": (changed("frequency", frequency="x"), "category 9: its frequency is \"x\", not 'r', 'c' or 'f'"),
    "negative unknown": (changed("federated", neg_category_ids=[4, 7]), "image 1: its neg_category_ids has 7, which"),
    "negative no list": (changed("federated", neg_category_ids=4), "image 1: its neg_category_ids is 4, not a list"),
    "exhaustive": (changed("federated", not_exhaustive_category_ids=["9"]), 'not_exhaustive_category_ids has "9"'),
    "not exhaustive": (changed("federated", not_exhaustive_category_ids=None), "ids is nothing, not a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    make, said = REFUSED[case]
    content = make()
    path = tmp_path / "annotations.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=said) as caught:
        read_dataset(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "Expected annotations in COCO's format" in str(caught.value)


def test_all_problems_at_once_and_of_many_the_first(tmp_path: Path) -> None:
    content = deepcopy(SMALL)
    content["images"][0]["width"] = -1
    content["annotations"] = [{"id": number, "bbox": 0} for number in range(1, 31)]
    with pytest.raises(ModelError) as caught:
        read_dataset(put(tmp_path, content))
    assert "91 problems" in str(caught.value)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[0] == "image 2: its width is -1, not a positive integer"
    assert caught.value.problems[-1] == "and 71 more"


def test_a_style_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="image 1: its neg_category_ids is nothing"):
        read_dataset(put(tmp_path, SMALL), "lvis")
    with pytest.raises(ModelError, match="'voc' is no style of a data set"):
        read_dataset(put(tmp_path, SMALL), "voc")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_dataset(tmp_path / "missing.json")
    with pytest.raises(ModelError, match="cannot be read"):
        read_dataset(tmp_path)


def test_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, SMALL)
    monkeypatch.setattr(large_json, "MARK_LIMIT", 10)
    with pytest.raises(ModelError, match="more than 10 commas"):
        read_dataset(path)
    monkeypatch.setattr(large_json, "SIZE_LIMIT", 10)
    with pytest.raises(ModelError, match="larger than"):
        read_dataset(path)


def test_a_mark_of_the_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(SMALL), encoding="utf-8-sig")
    assert len(read_dataset(path).pictures) == 2


def test_a_message_is_one_line_whatever_names_are(tmp_path: Path) -> None:
    content = deepcopy(SMALL)
    content["images"][0]["file_name"] = "/\x1b[31m\n" + "x" * 10_000
    content["categories"][0]["name"] = {"a\nb": ["\x1b"] * 1000}
    with pytest.raises(ModelError) as caught:
        read_dataset(put(tmp_path, content))
    assert len(str(caught.value).splitlines()) == 3
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000
