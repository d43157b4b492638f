"""Pictures that cannot be used are named and counted, and the others measured: what is skipped is never silent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from converter.evaluation.record import read_evaluations
from tests.support.evaluating import annotated, contents, evaluation, options, write_data

SIZE = (120, 90)


def photograph(path: Path) -> Image.Image:
    return Image.open(path.parent / "model.jpg").convert("RGB")


def truncate(path: Path) -> None:
    photograph(path).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-400])


def in_16_bits(path: Path) -> None:
    Image.fromarray(np.full((90, 120), 40_000, np.uint16)).save(path, format="PNG")


def turned(path: Path) -> None:
    """Stored lying, to be shown upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(path).save(path, format="JPEG", exif=exif)


BAD: dict[str, tuple[Callable[[Path], object], tuple[int, int], str]] = {
    "missing.jpg": (lambda path: None, SIZE, "can't be read: No such file or directory"),
    "cut.jpg": (truncate, SIZE, "is damaged or cut off: image file is truncated"),
    "text.jpg": (lambda path: path.write_text("not found"), SIZE, "is not a picture of a known kind (JPEG, PNG"),
    "pipe.jpg": (os.mkfifo, SIZE, "is not a file. Give a picture."),
    "folder.jpg": (Path.mkdir, SIZE, "is not a file. Give a picture."),
    "empty.jpg": (Path.touch, SIZE, "is not a picture of a known kind"),
    "other.jpg": (
        lambda path: photograph(path).save(path),
        (640, 480),
        "has 120x90 pixels, and the annotations say 640x480, so that boxes would be elsewhere.",
    ),
    "thin.png": (
        lambda path: Image.new("RGB", (4000, 1)).save(path),
        (4000, 1),
        "at a longer side of 1333 the other would vanish. Crop the picture.",
    ),
    "floats.tiff": (lambda path: Image.new("F", SIZE).save(path), SIZE, "have no known maximum"),
}
GOOD: dict[str, tuple[Callable[[Path], object], tuple[int, int]]] = {
    "model.jpg": (lambda path: None, SIZE),
    "cmyk.jpg": (lambda path: photograph(path).convert("CMYK").save(path), SIZE),
    "deep.png": (in_16_bits, SIZE),
    "grey.png": (lambda path: photograph(path).convert("L").save(path), SIZE),
    "palette.gif": (lambda path: photograph(path).save(path), SIZE),
    "dot.png": (lambda path: Image.new("RGB", (1, 1), "red").save(path), (1, 1)),
    "turned.jpg": (turned, SIZE),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and all of these pictures."""
    folder = write_data(tmp_path_factory.mktemp("bad"), 1)
    (folder / "images" / "001.jpg").rename(folder / "images" / "model.jpg")
    rows = []
    for name, (make, (width, height), *_) in {**GOOD, **BAD}.items():
        make(folder / "images" / name)
        rows.append({"id": len(rows) + 1, "file_name": name, "width": width, "height": height})
    (folder / "mine.json").write_text(json.dumps(annotated(rows)))
    return folder


@pytest.fixture(scope="module")
def found(shared: Path) -> dict[str, Any]:
    """What was told as JSON, and written to `out`."""
    result = evaluation(shared / "small", *options(shared), "--json", "--out", shared / "out")
    assert result.exit_code == 7, result.output
    (evaluated,) = json.loads(result.stdout)["evaluations"]
    assert isinstance(evaluated, dict)
    return evaluated


@pytest.mark.parametrize("name", BAD)
def test_a_picture_that_cannot_be_used_is_named_with_the_reason(name: str, shared: Path, found: dict[str, Any]) -> None:
    (row,) = [row for row in found["skipped"] if row["file_name"] == name]
    assert row["reason"].startswith(f"{shared / 'images' / name}: ")
    assert BAD[name][2] in row["reason"]


def test_all_others_are_measured(shared: Path, found: dict[str, Any]) -> None:
    assert [row["file_name"] for row in found["skipped"]] == list(BAD)
    assert [row["picture"] for row in found["skipped"]] == list(range(len(GOOD) + 1, len(GOOD) + len(BAD) + 1))
    assert found["pictures"] == len(GOOD) + len(BAD)
    rows = json.loads((shared / "out" / "predictions.json").read_text())
    assert {row["image_id"] for row in rows} <= set(range(1, len(GOOD) + 1))
    assert len({row["image_id"] for row in rows}) >= len(GOOD) - 2  # of a dot and of grey nothing may be found


def test_they_are_in_the_record_and_on_the_page(shared: Path, found: dict[str, Any]) -> None:
    (record,) = read_evaluations(shared / "out" / "evaluation.json")
    assert list(record.skipped) == found["skipped"]
    assert not record.is_whole
    page = (shared / "out" / "report.html").read_text()
    assert f"{len(BAD)} pictures were skipped" in page
    assert all(name in page for name in BAD)


def test_they_are_told_as_text_even_where_little_is(shared: Path, found: dict[str, Any]) -> None:
    result = evaluation(shared / "small", *options(shared), "-q")
    assert (result.exit_code, result.stdout) == (7, "")
    head, *lines = result.stderr.splitlines()
    assert head == "error: 9 pictures could not be used, and count as if nothing were found in them:"
    assert lines == [f"  {row['reason']}" for row in found["skipped"]]


def test_processes_that_read_say_the_same(shared: Path, found: dict[str, Any]) -> None:
    out = shared / "workers"
    result = evaluation(shared / "small", *options(shared)[:-2], "--workers", 3, "--batch", 4, "--json", "--out", out)
    assert result.exit_code == 7, (result.output, result.exception)
    assert json.loads(result.stdout)["evaluations"][0]["skipped"] == found["skipped"]


def test_pictures_that_cannot_be_used_count_against_the_model(shared: Path, found: dict[str, Any]) -> None:
    """Else who skips what is hard would be the better one."""
    rows = json.loads((shared / "mine.json").read_text())["annotations"]
    assert sum(each["annotated"] for each in found["classes"]) == len(rows)


@pytest.mark.parametrize(
    ("protocol", "size", "is_used"),
    [
        ("official", (120, 90), True),
        ("official", (90, 120), False),
        ("mmdet", (120, 90), False),
        ("mmdet", (90, 120), True),
    ],
)
def test_annotations_are_of_the_picture_as_it_is_stored_or_turned(
    protocol: str, size: tuple[int, int], is_used: bool, shared: Path, tmp_path: Path
) -> None:
    """As the protocol reads it: a box of the one would be elsewhere in the other."""
    row = {"id": 1, "file_name": "turned.jpg", "width": size[0], "height": size[1]}
    (tmp_path / "mine.json").write_text(json.dumps(annotated([row, {"id": 2, "file_name": "model.jpg"}])))
    arguments = options(shared, tmp_path / "mine.json")
    result = evaluation(shared / "small", *arguments, "--protocol", protocol, "--json")
    assert result.exit_code == (0 if is_used else 7), result.output
    content = json.loads(result.stdout)["evaluations"][0]
    skipped = content["skipped"]
    is_told = is_used and protocol == "official"  # never silent, also where no size tells
    assert content["unturned"] == (["turned.jpg"] if is_told else [])
    assert ("1 picture of mine used as stored, not turned as the EXIF says: turned.jpg" in result.stderr) == is_told
    assert [row["reason"].partition(" Either ")[2] for row in skipped] == (
        [] if is_used else ["is turned by the picture's EXIF, the other not."]
    )


def test_where_sizes_are_not_stated_they_are_those_of_the_pictures(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(annotated([{"id": 1, "file_name": "model.jpg"}])))
    assert evaluation(shared / "small", *options(shared, tmp_path / "mine.json")).exit_code == 0


def test_names_are_shown_as_text(shared: Path, tmp_path: Path) -> None:
    """What a stranger's annotations say cannot write to the terminal, nor into the page."""
    name = "\x1b[2J<script>alert(1)</script>.jpg"
    rows = [{"id": 1, "file_name": name}, {"id": 2, "file_name": "model.jpg"}]
    (tmp_path / "mine.json").write_text(json.dumps(annotated(rows)))
    result = evaluation(shared / "small", *options(shared, tmp_path / "mine.json"), "--out", tmp_path / "out")
    assert result.exit_code == 7
    assert "\x1b" not in result.stderr
    assert "<script>alert" not in (tmp_path / "out" / "report.html").read_text()


def test_repaired_pictures_are_done_and_the_others_are_not_again(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", 4)
    picture = folder / "images" / "002.jpg"
    content = picture.read_bytes()
    assert evaluation(folder / "small", *options(folder), "--out", tmp_path / "whole").exit_code == 0
    picture.write_bytes(content[:500])
    broken = evaluation(folder / "small", *options(folder), "--out", tmp_path / "out")
    assert broken.exit_code == 7
    assert sorted(contents(tmp_path / "out")) == ["evaluation.json", "predictions.json", "report.html"]
    picture.write_bytes(content)
    again = evaluation(folder / "small", *options(folder), "--out", tmp_path / "out", "--force")
    assert again.exit_code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_where_no_picture_can_be_used_there_is_nothing_to_measure(shared: Path, tmp_path: Path) -> None:
    rows = [{"id": number, "file_name": "text.jpg"} for number in (1, 2)]
    (tmp_path / "mine.json").write_text(json.dumps(annotated(rows)))
    result = evaluation(shared / "small", *options(shared, tmp_path / "mine.json"))
    assert (result.exit_code, result.stdout) == (7, "")
    assert "no picture could be used, so there is nothing to measure" in result.stderr
    assert result.stderr.count("is not a picture of a known kind") == 2
