"""Annotations of a data set, in COCO's format or LVIS's, read and checked.

COCO's format: https://cocodataset.org/#format-data. LVIS (Gupta et al., arXiv:1908.03195) is federated: a picture was
searched for some classes only. `neg_category_ids` are those that are surely not in it,
`not_exhaustive_category_ids` those of which not all are annotated.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.display import file_name, listed, plain
from converter.errors import ConverterWarning, ModelError
from converter.evaluation.large_json import Pairs, Problems, is_box, is_id, read_large, shown, unique

STYLES = ("coco", "lvis")
_MOST_CATEGORIES = 30_000  # the metric keeps 32 kB for each; the largest that is known, V3Det, has 13,204
_LONGEST_CLASS, _LONGEST_FILE = 10_000, 1000  # characters of a name, as a record can hold it
_LISTS = ("images", "categories", "annotations")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
_KEPT = {
    *_LISTS,
    *_FEDERATED,
    *("id", "file_name", "coco_url", "width", "height"),
    *("name", "frequency"),
    *("image_id", "category_id", "bbox", "area", "iscrowd"),
}
_EXPECTED = (
    "Expected annotations in COCO's format: an object with images, categories and annotations. Correct the file."
)


@dataclass(frozen=True, slots=True)
class Category:
    """A class of objects. `frequency`: LVIS's 'r', 'c' or 'f', for rare, common and frequent."""

    id: int
    name: str
    frequency: str | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture. `file_name`: below the folder of pictures. The size in pixels, where it is stated."""

    id: int
    file_name: str
    width: int | None
    height: int | None


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """What is to be found in which pictures.

    `path`, `sha256`: of the file of annotations. `style`: 'coco' or 'lvis'. `categories`, `pictures`: sorted by id.
    `content`: `images`, `categories` and `annotations` as the metric takes them, without outlines; annotations in
    the file's order.
    """

    path: Path
    sha256: str
    style: str
    categories: tuple[Category, ...]
    pictures: tuple[Picture, ...]
    content: Mapping[str, Any]

    @property
    def pictures_sha256(self) -> str:
        """Hash of the ids and file names of all pictures: whether two runs saw the same ones."""
        names = [[picture.id, picture.file_name] for picture in self.pictures]
        return hashlib.sha256(json.dumps(names, separators=(",", ":")).encode()).hexdigest()

    def limited(self, most: int | None) -> DataSet:
        """The first `most` pictures, by id, and their annotations alone; None: all."""
        if most is None or most >= len(self.pictures):
            return self
        pictures = self.pictures[:most]
        ids = {picture.id for picture in pictures}
        content = {
            **self.content,
            "images": [image for image in self.content["images"] if image["id"] in ids],
            "annotations": [row for row in self.content["annotations"] if row["image_id"] in ids],
        }
        return replace(self, pictures=pictures, content=content)


def read_dataset(path: Path, style: str | None = None) -> DataSet:
    """A file of annotations. ModelError, with all that is wrong with it.

    `style`: 'coco' or 'lvis'; None: 'lvis' if an image has `neg_category_ids`. A ConverterWarning tells of what can
    be measured, but not as one might expect.
    """
    if style not in (None, *STYLES):
        raise ModelError(f"{style!r} is no style of a data set. Choose one of {', '.join(STYLES)}.")
    document, sha256 = read_large(path, _build, _EXPECTED)
    problems = Problems()
    if not isinstance(document, dict):
        problems.add("not an object")
        document = {}
    else:
        for name in _LISTS:
            if not isinstance(document.get(name), list) or not document[name]:
                problems.add(f"no {name}")
    if len(document.get("categories") or ()) > _MOST_CATEGORIES:
        problems.add(
            f"{len(document['categories']):,} categories; {_MOST_CATEGORIES:,} are the most that can be measured"
        )
    problems.refuse(path, _EXPECTED)
    reader = _Reader(problems, style or _style(document["images"]))
    categories = reader.categories(document["categories"])
    images = reader.images(document["images"])
    annotations = reader.annotations(document["annotations"])
    problems.refuse(path, _EXPECTED)
    if reader.zero:
        _warn_of_zero(path)
    return DataSet(
        path=path,
        sha256=sha256,
        style=reader.style,
        categories=tuple(Category(row["id"], row["name"], row.get("frequency")) for row in categories),
        pictures=tuple(Picture(row["id"], row["file_name"], row.get("width"), row.get("height")) for row in images),
        content={"images": images, "categories": categories, "annotations": annotations},
    )


def _build(pairs: Pairs) -> dict[str, Any]:
    found = unique(pairs)
    return found if found.keys() <= _KEPT else {name: value for name, value in found.items() if name in _KEPT}


def _style(images: list[Any]) -> str:
    return "lvis" if any(isinstance(image, dict) and _FEDERATED[0] in image for image in images) else "coco"


def _warn_of_zero(path: Path) -> None:
    text = (
        f"{file_name(path)}: an annotation has the id 0, with which pycocotools and its kin, and so the figures here, "
        "count it as never found. Figures that others published have the same fault; for your own data, number "
        "annotations from 1."
    )
    warnings.warn(text, ConverterWarning, stacklevel=3)


class _Reader:
    """The three lists, row by row; only rows without a problem are kept."""

    def __init__(self, problems: Problems, style: str) -> None:
        self.problems = problems
        self.style = style
        self.zero = False  # an annotation has the id 0
        self._category_ids: set[int] = set()
        self._picture_ids: set[int] = set()

    def categories(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Sorted by id."""
        kept = []
        for where, row in self._with_ids("category", rows, self._category_ids):
            name, frequency = row.get("name"), row.get("frequency")
            if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_CLASS:
                self.problems.add(
                    f"{where}: its name is {shown(name)}, not a text of up to {_LONGEST_CLASS} characters"
                )
            elif self.style == "coco":
                kept.append({"id": row["id"], "name": name})
            elif frequency not in ("r", "c", "f"):
                self.problems.add(f"{where}: its frequency is {shown(frequency)}, not 'r', 'c' or 'f'")
            else:
                kept.append({"id": row["id"], "name": name, "frequency": frequency})
        return sorted(kept, key=lambda row: row["id"])

    def images(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Sorted by id. Categories come first: lists of them are checked."""
        kept = []
        for where, row in self._with_ids("image", rows, self._picture_ids):
            image = {"id": row["id"], "file_name": self._file_name(where, row)}
            for side in ("width", "height"):
                if (value := row.get(side)) is not None:
                    if type(value) is not int or not 0 < value <= 1 << 30:
                        self.problems.add(f"{where}: its {side} is {shown(value)}, not a positive integer")
                    image[side] = value
            if self.style == "lvis":
                image |= {name: self._verified(where, name, row.get(name)) for name in _FEDERATED}
            kept.append(image)
        return sorted(kept, key=lambda row: row["id"])

    def annotations(self, rows: list[Any]) -> list[dict[str, Any]]:
        """In their order, which decides between two that fit a box alike. The other two lists come first."""
        kept = []
        ids: set[int] = set()
        for where, row in self._with_ids("annotation", rows, ids):
            box: Any = row.get("bbox")
            crowd = row.get("iscrowd", 0)
            for name, known in (("image_id", self._picture_ids), ("category_id", self._category_ids)):
                if not is_id(row.get(name)) or row[name] not in known:
                    self.problems.add(f"{where}: its {name} is {shown(row.get(name))}, which is not in the file")
            if not is_box(box):
                self.problems.add(f"{where}: its bbox is {shown(box)}, not x, y, width and height in pixels")
                continue
            area: Any = row.get("area", box[2] * box[3])
            if type(crowd) not in (int, bool) or crowd not in (0, 1):
                self.problems.add(f"{where}: its iscrowd is {shown(crowd)}, not 0 or 1")
            if type(area) not in (int, float) or not 0 <= area <= 1e18:
                self.problems.add(f"{where}: its area is {shown(area)}, not a number of pixels")
                continue
            picture, category = row.get("image_id"), row.get("category_id")
            kept.append({"id": row["id"], "image_id": picture, "category_id": category, "bbox": box})
            kept[-1] |= {"area": area, "iscrowd": int(crowd == 1)}
        self.zero = 0 in ids
        return kept

    def _with_ids(self, what: str, rows: list[Any], ids: set[int]) -> list[tuple[str, dict[str, Any]]]:
        """Rows that have an id, which is added to `ids`, with what a message calls them."""
        kept = []
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                self.problems.add(f"{what} number {number}: not an object")
            elif not is_id(row.get("id")):
                self.problems.add(f"{what} number {number}: its id is {shown(row.get('id'))}, not an integer from 0")
            elif row["id"] in ids:
                self.problems.add(f"{what} {row['id']}: the id is there twice")
            else:
                ids.add(row["id"])
                kept.append((f"{what} {row['id']}", row))
        return kept

    def _file_name(self, where: str, row: dict[str, Any]) -> str:
        """LVIS has addresses of COCO's pictures, of which the last two parts are the file's name."""
        name = row.get("file_name")
        if name is None and isinstance(row.get("coco_url"), str):
            name = "/".join(row["coco_url"].split("/")[-2:])
        if not isinstance(name, str) or not name.strip() or "\0" in name or len(name) > _LONGEST_FILE:
            self.problems.add(
                f"{where}: its file_name is {shown(name)}, not a name of up to {_LONGEST_FILE} characters"
            )
            return ""
        if name.startswith("/") or ".." in re.split(r"[/\\]", name):
            self.problems.add(f"{where}: its file_name {plain(name)} leads out of the folder of pictures")
        return name

    def _verified(self, where: str, name: str, ids: Any) -> list[int]:
        if not isinstance(ids, list):
            self.problems.add(f"{where}: its {name} is {shown(ids)}, not a list of categories")
            return []
        unknown = [shown(id) for id in ids if not is_id(id) or id not in self._category_ids]
        if unknown:
            self.problems.add(f"{where}: its {name} has {listed(unknown)}, which are not in the file")
        return ids
