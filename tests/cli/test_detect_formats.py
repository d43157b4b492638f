"""What `detect` prints and writes: text, JSON, JSON Lines, CSV, COCO results; drawings."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from converter.cli import main
from converter.cli.detect_folder import JOURNAL, Drawings
from converter.cli.detections import Results, as_csv, image_ids, is_entry
from converter.cli.pictures import Picture
from converter.errors import DestinationError
from tests.support.detecting import PROMPT, Stage, stage


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("formats"), 3) as made:
        (made.folder / "photos" / "bad.png").write_bytes(b"\x89PNG")
        yield made


@pytest.fixture
def here(place: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is worked in; `small` and `photos` are in it."""
    for name in ("small", "photos"):
        (tmp_path / name).symlink_to(place.folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, code: int = 7) -> Result:
    result = CliRunner().invoke(main, ["detect", "small", "photos", *PROMPT, *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def document(here: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run("--json").stdout)
    return content


def test_json_lines_are_the_entries(document: dict[str, Any]) -> None:
    result = run("--format", "jsonl", "--out", "found", "--no-drawings")
    assert [json.loads(line) for line in result.stdout.splitlines()] == document["images"]
    assert [path.name for path in Path("found").iterdir()] == ["detections.jsonl"]
    assert Path("found/detections.jsonl").read_text() == result.stdout
    assert "1 of 4 pictures could not be used; the others are done" in result.stderr
    assert "error: photos/bad.png: is not a picture" in result.stderr


def test_csv_has_a_line_for_each_box(document: dict[str, Any]) -> None:
    result = run("--format", "csv", "--out", "found", "--no-drawings")
    assert Path("found/detections.csv").read_text() == result.stdout
    header, *rows = csv.reader(result.stdout.splitlines())
    assert header == ["image", "label", "phrase", "score", "x1", "y1", "x2", "y2"]
    expected = [
        [entry["image"], str(label), phrase, str(score), *map(str, box)]
        for entry in document["images"]
        if "error" not in entry
        for box, score, label, phrase in zip(*(entry[k] for k in ("boxes", "scores", "labels", "phrases")), strict=True)
    ]
    assert rows == expected
    assert len(rows) == 9


def test_coco_results_name_the_images_and_categories_beside_them(document: dict[str, Any]) -> None:
    result = run("--format", "coco", "--out", "found", "--no-drawings")
    results = json.loads(result.stdout)
    assert json.loads(Path("found/detections.coco.json").read_text()) == results
    named = json.loads(Path("found/detections.coco.images.json").read_text())
    assert named["categories"] == [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    assert named["annotations"] == []
    images = {image["id"]: image for image in named["images"]}
    assert [image["file_name"] for image in images.values()] == [f"photos/{n}" for n in ("0.jpg", "1.png", "2.jpg")]
    entries = {entry["image"]: entry for entry in document["images"]}
    for found in results:
        entry = entries[images[found["image_id"]]["file_name"]]
        index = entry["scores"].index(found["score"])
        left, top, right, bottom = entry["boxes"][index]
        x, y, width, height = found["bbox"]
        assert (x, y) == (left, top)
        assert (width, height) == pytest.approx((right - left, bottom - top), abs=0.006)
        assert found["category_id"] == entry["labels"][index]
    assert len(results) == 9


def test_an_id_is_the_number_that_names_the_file() -> None:
    def ids(*names: str) -> list[int]:
        return image_ids([Picture(name) for name in names])

    assert ids("val/000000000139.jpg", "https://host/000000000285.jpg?x=1") == [139, 285]
    assert ids("a/7.jpg", "b/7.jpg") == [1, 2]
    assert ids("a/7.jpg", "b/x.jpg") == [1, 2]
    assert ids("a/7.jpg", f"b/{'9' * 16}.jpg") == [1, 2]


def test_the_file_of_each_format_is_what_is_printed_of_nothing() -> None:
    nothing = Results({"model": "m", "captions": ["a"], "threshold": 0.5}, ["a"], [], [])
    assert {
        name: len(content) for format in ("jsonl", "csv", "coco") for name, content in nothing.files(format).items()
    }
    assert nothing.files("csv") == {"detections.csv": b"image,label,phrase,score,x1,y1,x2,y2\n"}


def test_drawings_are_of_the_kind_of_their_sources(here: Path) -> None:
    run("--out", "found", "--line-width", 9)
    kinds = {}
    for path in sorted(Path("found").glob("[0-9].*")):
        with Image.open(path) as drawing:
            kinds[path.name] = drawing.format
    assert kinds == {"0.jpg": "JPEG", "1.png": "PNG", "2.jpg": "JPEG"}
    wide = Path("found/1.png").read_bytes()
    run("--out", "found", "--line-width", 2, "--force")
    assert Path("found/1.png").read_bytes() != wide


def test_of_two_pictures_of_a_name_both_are_drawn(here: Path) -> None:
    Path("other").mkdir()
    for number in (1, 2):
        Path(f"other/{number}").mkdir()
        Path(f"other/{number}/0.JPG").write_bytes(Path("photos/0.jpg").read_bytes())
    command = ["detect", "small", "photos/0.jpg", "other", "--recursive", *PROMPT, "--out", "found"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    drawn = re.findall(r"drawn: (.*)", result.stdout)
    assert drawn == ["found/0.jpg", "found/0-2.jpg", "found/0-3.jpg"]
    assert len(set(map(str.lower, drawn))) == 3


def test_of_the_best_so_many_are_kept(document: dict[str, Any]) -> None:
    one = json.loads(run("--json", "--max-detections", 1).stdout)
    for few, many in zip(one["images"], document["images"], strict=True):
        if "error" not in few:
            assert few["scores"] == many["scores"][:1]


def test_a_batch_finds_the_same(document: dict[str, Any]) -> None:
    together = json.loads(run("--json", "--batch", 4).stdout)
    for one, other in zip(together["images"], document["images"], strict=True):
        assert one.keys() == other.keys()
        if "error" not in one:
            assert one["labels"] == other["labels"]
            assert one["scores"] == pytest.approx(other["scores"], abs=2e-6)
            assert np.array(one["boxes"]) == pytest.approx(np.array(other["boxes"]), abs=0.02)


def test_phrases_of_a_caption_by_their_words(here: Path) -> None:
    words = ["--caption", "a person with two dogs", "--phrase", "a person", "--phrase", "dogs"]
    command = ["detect", "small", "photos/0.jpg", *words, *PROMPT[2:], "--json"]
    content = json.loads(CliRunner().invoke(main, command).stdout)
    assert content["captions"] == ["a person with two dogs"]
    assert set(content["images"][0]["phrases"]) == {"a person", "dogs"}


@pytest.mark.parametrize("name", ["json", "jsonl", "csv", "coco"])
def test_quiet_leaves_the_data_that_a_format_asks_for(name: str, here: Path) -> None:
    one = ["detect", "small", "photos/0.jpg", *PROMPT]
    asked, quiet, alone = (
        CliRunner().invoke(main, [*one, *more]) for more in (["--format", name], ["--format", name, "-q"], ["-q"])
    )
    assert (quiet.stdout, quiet.stderr) == (asked.stdout, "")
    assert asked.stdout
    assert (alone.exit_code, alone.output) == (0, "")


def test_one_format_is_asked_for(here: Path) -> None:
    assert "--json is --format json" in run("--json", "--format", "csv", code=2).stderr
    assert json.loads(run("--json", "--format", "json").stdout)["images"]


def test_the_model_is_not_looked_for_before_the_folder(here: Path) -> None:
    Path("full").mkdir()
    Path("full/x").touch()
    for out, said in (("full", "is not empty"), ("no/where", "make it first"), ("full/x", "Not a directory")):
        command = ["detect", "no-model", "photos", "--prompt", "dog.", "--out", out]
        result = CliRunner().invoke(main, command)
        assert (result.exit_code, said in result.stderr) == (6, True), result.stderr


def test_neither_are_weights_before_the_words_or_a_picture(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.cli.detect_run.load_subject", lambda *rest: pytest.fail("it was loaded"))
    base = ["detect", "small", "photos/bad.png"]
    for rest, said in ((["--prompt", "zebra."], "no word of 'zebra'"), (["--prompt", "dog."], "is not a picture")):
        result = CliRunner().invoke(main, [*base, *rest, "--vocab", "small/vocab.txt"])
        assert (result.exit_code, said in result.stderr) == (7, True), result.stderr


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"image": 1},
        {"width": "1"},
        {"boxes": None},
        {"boxes": [[1, 2, 3]]},
        {"boxes": [[1, 2, 3, "4"]]},
        {"scores": [True]},
        {"scores": [int("9" * 309)]},
        {"boxes": [[-1e300, 2, 3, 4]]},
        {"labels": [1, 2]},
        {"phrases": [1]},
        {"drawing": 1},
        {"error": 5},
    ],
)
def test_what_reads_like_an_entry(odd: dict[str, Any]) -> None:
    entry = {"image": "a", "width": 1, "height": 1, "boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [1]}
    assert is_entry({**entry, "phrases": ["a"], **odd}) == (odd == {})
    assert is_entry({"image": "a", "error": "b"})


def test_half_a_beginning_lets_nothing_be_replaced(tmp_path: Path) -> None:
    for name in (JOURNAL, "a.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(DestinationError, match="is not empty"):
        Drawings(tmp_path, [], force=False, draws=True)
    (tmp_path / "a.jpg").unlink()
    with Drawings(tmp_path, [], force=False, draws=True) as folder:
        assert folder.done({}, []) == {}


def test_any_name_is_one_cell_of_csv() -> None:
    for name in ("a\rb", "a\nb", 'a,"b'):
        entry = {"image": name, "boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [1], "phrases": [name]}
        (row,) = csv.reader(io.StringIO(as_csv(entry).decode(), newline=""))
        assert row[:3] == [name, "1", name]


def test_a_drawing_has_a_name_that_can_be_written(tmp_path: Path) -> None:
    pictures = [Picture(f"{'y' * 240}{n}.png") for n in range(3)]
    folder = Drawings(tmp_path, pictures, force=False, draws=True)
    assert [len(folder._places[picture.name].name) for picture in pictures] == [204, 206, 206]
