"""What is kept of a run that was stopped: the same run goes on with all that is its own, and with nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from converter.errors import DestinationError, ModelError
from converter.evaluation.answer import JOURNAL
from converter.writing.results import ResultFolder
from tests.support.known_detector import Found, annotations, ask, files, known, write_data, write_picture

PICTURES = 12


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return annotations(PICTURES, sizes=[(120, 90), (120, 90), (90, 120)])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> Path:
    return write_data(tmp_path_factory.mktemp("known"), content)


@pytest.fixture
def own(tmp_path: Path, content: dict[str, Any]) -> Path:
    """The same, to be changed."""
    return write_data(tmp_path, content)


@pytest.fixture(scope="module")
def whole(shared: Path, content: dict[str, Any]) -> dict[str, bytes]:
    """What a run that nothing stopped comes to."""
    return files(ask(shared, known(content)))


def journal_of(dataset: Path, found: Found, folder: Path, **how: Any) -> list[bytes]:
    """The lines of a journal of a run that came to its end, but not to its results."""
    ask(dataset, found, folder, **how)
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("batch", [1, 5])
def test_any_beginning_of_a_run_is_continued_to_the_same_bytes(
    batch: int, shared: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    found = known(content)
    lines = journal_of(shared, found, tmp_path / "first", batch=batch)
    assert len(lines) == 1 + PICTURES
    expected = files(ask(shared, found, batch=batch))
    for count in range(len(lines) + 1):
        out = tmp_path / f"after{count}"
        out.mkdir()
        (out / JOURNAL).write_bytes(b"".join(lines[:count]) + b'{"picture": 1, "cla' * (count < len(lines)))
        seen: list[int] = []
        said: list[str] = []
        assert files(ask(shared, found, out, batch=batch, seen=seen.extend, said=said)) == expected
        done = max(0, count - 1)
        assert len(seen) == PICTURES - (done - done % batch if done < PICTURES else PICTURES)
        assert said == ([f"{done} of 12 pictures are done already; going on"] if done else [])


def test_a_run_that_fails_keeps_what_is_done(shared: Path, content: dict[str, Any], tmp_path: Path) -> None:
    def fail(ids: list[int]) -> None:
        if ids == [8]:
            raise ModelError("the model computes NaN")

    for threads, workers in ((1, 0), (3, 2)):
        out = tmp_path / f"of{threads}"
        with pytest.raises(ModelError, match="computes NaN"):
            ask(shared, known(content), out, seen=fail, threads=threads, workers=workers)
        seen: list[int] = []
        ask(shared, known(content), out, seen=seen.extend)
        assert seen == [8, 9, 10, 11, 12]


def test_other_settings_are_refused_by_name(shared: Path, content: dict[str, Any], tmp_path: Path) -> None:
    found, out = known(content), tmp_path / "out"
    journal_of(shared, found, out)
    for how, named in (
        ({"batch": 2}, "run.batch"),
        ({"dtype": "bfloat16"}, "run.dtype"),
        ({"weights": "b" * 64}, "model"),
        ({"facts": {"name": "other", "settings": {}, "captions": []}}, "protocol.captions, protocol.name"),
    ):
        with pytest.raises(DestinationError, match=f"differed in {named}. Give the same options"):
            ask(shared, found, out, **how)
    seen: list[int] = []
    ask(shared, found, out, batch=2, force=True, seen=seen.extend)
    assert sorted(seen) == list(range(1, PICTURES + 1))


def test_threads_and_workers_may_be_others(shared: Path, content: dict[str, Any], tmp_path: Path) -> None:
    seen: list[int] = []
    journal_of(shared, known(content), tmp_path / "out")
    ask(shared, known(content), tmp_path / "out", threads=3, workers=1, seen=seen.extend)
    assert seen == []


def test_a_picture_that_changed_meanwhile_is_done_again(own: Path, content: dict[str, Any], tmp_path: Path) -> None:
    found, out = known(content), tmp_path / "out"
    journal_of(own, found, out)
    picture = own.parent / "images" / "003.png"
    write_picture(picture, 1, (90, 120) if content["images"][2]["height"] == 120 else (120, 90))
    os.utime(picture, ns=(10**18, 10**18))
    seen: list[int] = []
    outcome = ask(own, found, out, seen=seen.extend)
    assert seen == [1]  # what it shows now
    assert outcome.predictions.boxes[outcome.predictions.pictures == 3].tolist() == (
        outcome.predictions.boxes[outcome.predictions.pictures == 1].tolist()
    )


def test_a_picture_that_is_gone_or_repaired_meanwhile_is_done_again(
    own: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    found, out = known(content), tmp_path / "out"
    picture = own.parent / "images" / "005.png"
    picture.rename(picture.with_suffix(".away"))
    outcome = ask(own, found, out)
    assert [(each.id, reason.partition(":")[0]) for each, reason in outcome.skipped] == [(5, "005.png")]
    assert outcome.scores.figures["AR100"] == pytest.approx(11 / 12)
    picture.with_suffix(".away").rename(picture)
    repaired = ask(own, found, out)
    assert (repaired.skipped, repaired.scores.figures["AR100"]) == ([], 1.0)
    picture.unlink()
    assert [each.id for each, _ in ask(own, found, out).skipped] == [5]


STRANGERS: list[Any] = [
    {"picture": 99, "classes": [], "boxes": [], "scores": [], "stamp": [1, 2]},
    {"picture": True, "error": "x"},
    {"picture": "1", "error": "x"},
    {"picture": 1, "error": 5},
    {"picture": 1},
    {"classes": []},
    {"picture": 1, "classes": [3], "boxes": [], "scores": []},
    {"picture": 1, "classes": [3], "boxes": [[1, 2, 3]], "scores": [0.5]},
    {"picture": 1, "classes": [4], "boxes": [[1, 2, 3, 4]], "scores": [0.5]},
    {"picture": 1, "classes": [10**30], "boxes": [[1, 2, 3, 4]], "scores": [0.5]},
    {"picture": 1, "classes": [3], "boxes": [[1, 2, 3, 10**30]], "scores": [0.5]},
    {"picture": 1, "classes": [3], "boxes": [[1, 2, 3, "4"]], "scores": [0.5]},
    {"picture": 1, "classes": {"3": 3}, "boxes": "abcd", "scores": None},
    {"picture": 1, "classes": [True], "boxes": [[1, 2, 3, 4]], "scores": [0.5]},
]


def test_entries_of_strangers_are_dropped(
    shared: Path, content: dict[str, Any], whole: dict[str, bytes], tmp_path: Path
) -> None:
    found = known(content)
    lines = journal_of(shared, found, tmp_path / "first")
    stamp = json.loads(lines[1])["stamp"]  # so that it is not done again for another reason
    strange = [json.dumps({"stamp": stamp, **entry}).encode() + b"\n" for entry in STRANGERS]
    for number, stranger in enumerate([*strange, b"".join(strange)]):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (out / JOURNAL).write_bytes(b"".join([lines[0], *lines[3:], stranger]))
        seen: list[int] = []
        assert files(ask(shared, found, out, seen=seen.extend)) == whole
        assert seen == [1, 2]


def test_an_entry_without_a_stamp_is_done_again(shared: Path, content: dict[str, Any], tmp_path: Path) -> None:
    lines = journal_of(shared, known(content), tmp_path / "out")
    entry = json.loads(lines[1])
    for odd in ({**entry, "stamp": None}, {name: value for name, value in entry.items() if name != "stamp"}):
        (tmp_path / "out" / JOURNAL).write_bytes(b"".join([lines[0], json.dumps(odd).encode() + b"\n", *lines[2:]]))
        seen: list[int] = []
        ask(shared, known(content), tmp_path / "out", seen=seen.extend)
        assert seen == [1]


def test_the_later_entry_of_a_picture_counts(shared: Path, content: dict[str, Any], tmp_path: Path) -> None:
    lines = journal_of(shared, known(content), tmp_path / "out")
    (tmp_path / "out" / JOURNAL).write_bytes(b"".join([*lines, b'{"picture":2,"error":"damaged"}\n']))
    seen: list[int] = []
    assert ask(shared, known(content), tmp_path / "out", seen=seen.extend).skipped == []
    assert seen == [2]


def test_what_others_take_out_of_the_journal_is_missed(
    shared: Path, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a picture would count as one in which nothing is found."""
    real = ResultFolder.results
    monkeypatch.setattr(ResultFolder, "results", lambda folder: iter([*real(folder)][1:]))
    with pytest.raises(DestinationError, match=r"results of 1 picture, such as 001.png, were kept and are gone"):
        ask(shared, known(content), tmp_path / "out")
