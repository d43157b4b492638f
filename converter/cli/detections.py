"""What was found in pictures, in the formats that it is printed and written in.

An entry is what was found in one picture: `image`, and either `error` or `width`, `height`, `boxes`, `scores`, `labels`
and `phrases`, with `drawing` where there is one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.cli.output import versioned
from converter.cli.pictures import Picture
from converter.display import plain
from converter.hub.web import is_address, shown
from converter.writing.ledger import to_json

Entry = dict[str, Any]
COLUMNS = ("image", "label", "phrase", "score", "x1", "y1", "x2", "y2")
_LISTS = ("boxes", "scores", "labels", "phrases")
_LARGEST = 1e9  # of a number in an entry, pixels or others


@dataclass(frozen=True, slots=True)
class Results:
    """All that a run found. `about`: what the JSON says beside: model, captions, threshold."""

    about: Mapping[str, Any]
    phrases: Sequence[str]
    pictures: Sequence[Picture]
    entries: Sequence[Entry]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.about, "images": list(self.entries)}

    def files(self, format: str) -> dict[str, bytes]:
        """What a folder holds in the end, by name."""
        if format == "json":
            return {"detections.json": to_json(versioned(self.document()))}
        if format == "jsonl":
            return {"detections.jsonl": "".join(map(as_json_line, self.entries)).encode()}
        if format == "csv":
            return {"detections.csv": b"".join([csv_header(), *map(as_csv, self.entries)])}
        listed = {"detections.coco.json": self.coco(), "detections.coco.images.json": self.coco_images()}
        return {name: json.dumps(content).encode() for name, content in listed.items()}

    def coco(self) -> list[dict[str, Any]]:
        """COCO's results format (https://cocodataset.org/#format-results): boxes are x, y, width, height."""
        return [
            {
                "image_id": number,
                "category_id": label,
                "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
                "score": score,
            }
            for number, entry in zip(image_ids(self.pictures), self.entries, strict=True)
            if "error" not in entry
            for (left, top, right, bottom), score, label in zip(*(entry[key] for key in _LISTS[:3]), strict=True)
        ]

    def coco_images(self) -> dict[str, Any]:
        """What the ids in `coco` stand for, as a data set of COCO without annotations."""
        images = [
            {"id": number, "file_name": entry["image"], "width": entry["width"], "height": entry["height"]}
            for number, entry in zip(image_ids(self.pictures), self.entries, strict=True)
            if "error" not in entry
        ]
        categories = [{"id": label, "name": phrase} for label, phrase in enumerate(self.phrases, start=1)]
        return {"images": images, "categories": categories, "annotations": []}


def image_ids(pictures: Sequence[Picture]) -> list[int]:
    """The numbers that name the files, as in COCO's 000000000139.jpg; where they don't name all, 1, 2, 3, ..."""
    stems = [picture.path.stem for picture in pictures]
    numbers = [int(stem) for stem in stems if re.fullmatch(r"[0-9]{1,15}", stem)]
    if len(numbers) == len(stems) == len(set(numbers)):
        return numbers
    return list(range(1, len(stems) + 1))


def is_entry(value: Mapping[str, Any]) -> bool:
    """Whether it reads like one, for what comes from a file that anybody may have written."""
    if not isinstance(value.get("image"), str) or not isinstance(value.get("drawing", ""), str):
        return False
    if "error" in value:
        return isinstance(value["error"], str)
    lists = [value.get(key) for key in _LISTS]
    if not all(isinstance(part, list) for part in lists) or len({len(part) for part in lists if part is not None}) != 1:
        return False
    boxes, scores, labels, phrases = lists
    numbers = [value.get("width"), value.get("height"), *(scores or ()), *(labels or ())]
    for box in boxes or ():
        if not isinstance(box, list) or len(box) != 4:
            return False
        numbers += box
    return all(type(number) in (int, float) and abs(number) <= _LARGEST for number in numbers) and all(
        type(name) is str for name in phrases or ()
    )


def as_text(entry: Entry) -> str:
    """For people: a line for the picture, and one for each box."""
    found = f"{entry['width']}x{entry['height']}, {len(entry['boxes'])} found"
    name = entry["image"]
    lines = [f"{shown(name) if is_address(name) else plain(name, 1024)}: {found}"]
    for box, score, phrase in zip(entry["boxes"], entry["scores"], entry["phrases"], strict=True):
        corners = " ".join(f"{corner:8.1f}" for corner in box)
        lines.append(f"  {score:.3f}  {corners}  {plain(phrase)}")
    if "drawing" in entry:
        lines.append(f"  drawn: {plain(entry['drawing'], 1024)}")
    return "".join(f"{line}\n" for line in lines)


def as_json_line(entry: Entry) -> str:
    """For JSON Lines."""
    return json.dumps(entry, allow_nan=False) + "\n"


def csv_header() -> bytes:
    """The first line."""
    return _csv([COLUMNS])


def as_csv(entry: Entry) -> bytes:
    """A line for each box: none where nothing was found."""
    if "error" in entry:
        return b""
    return _csv(
        (entry["image"], label, phrase, score, *box)
        for box, score, label, phrase in zip(*(entry[key] for key in _LISTS), strict=True)
    )


def _csv(rows: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")  # so that a name with either in it is quoted
    lines = []
    for row in rows:
        writer.writerow(row)
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
        text.seek(0)
        text.truncate()
    return "".join(lines).encode(errors="surrogateescape")
