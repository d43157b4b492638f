"""A data set on its way through a detector whose answers are known: figures, and what is kept of a run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import ModelError
from converter.evaluation import run as running
from converter.evaluation.reading import Read
from converter.parity.family import Boxes, Prepared
from converter.writing.results import ResultFolder
from tests.support.known_detector import Row, annotations, ask, files, known, write_data

PICTURES = 12


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return annotations(PICTURES, sizes=[(120, 90), (120, 90), (90, 120)])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> Path:
    return write_data(tmp_path_factory.mktemp("known"), content)


@pytest.fixture(scope="module")
def whole(shared: Path, content: dict[str, Any]) -> dict[str, bytes]:
    """What a run that nothing stopped comes to."""
    return files(ask(shared, known(content)))


def test_a_perfect_detector_has_every_figure_1(shared: Path, content: dict[str, Any]) -> None:
    outcome = ask(shared, known(content))
    assert {name: value for name, value in outcome.scores.figures.items() if value not in (None, 1.0)} == {"AR1": 0.5}
    assert outcome.skipped == []
    assert len(outcome.predictions) == 4 * PICTURES


def test_boxes_are_those_of_the_detector_to_a_thousandth_of_a_pixel(shared: Path, content: dict[str, Any]) -> None:
    rows = json.loads(files(ask(shared, known(content)))["predictions.json"])
    expected = [
        {"image_id": number, "category_id": label, "bbox": list(box), "score": score}
        for number, found in known(content).items()
        for label, box, score in found
    ]
    assert rows == expected


def test_classes_in_each_others_place_are_worth_nothing(shared: Path, content: dict[str, Any]) -> None:
    found = {
        number: [(10 - label, box, score) for label, box, score in rows] for number, rows in known(content).items()
    }
    assert ask(shared, found).scores.figures["AP"] == 0


def test_who_finds_half_of_the_boxes_has_half_the_recall(shared: Path, content: dict[str, Any]) -> None:
    found = {number: rows[:2] for number, rows in known(content).items()}  # one of each class
    outcome = ask(shared, found)
    assert outcome.scores.figures["AR100"] == 0.5
    assert outcome.scores.figures["AP"] == pytest.approx(0.505, abs=0.002)  # at 51 of 101 points of recall
    assert [each.recall for each in outcome.scores.classes] == [0.5, 0.5]


def test_boxes_beside_their_place_count_up_to_the_iou_that_they_have(shared: Path, content: dict[str, Any]) -> None:
    """Moved by a quarter of their width: an IoU of 0.6, which is enough for two of ten thresholds, or for three."""
    found = {
        number: [(label, [x + w / 4, y, w, h], score) for label, (x, y, w, h), score in rows]
        for number, rows in known(content).items()
    }
    figures = ask(shared, found).scores.figures
    assert (figures["AP50"], figures["AP75"]) == (1.0, 0.0)
    assert figures["AP"] == pytest.approx(0.25, abs=0.06)


def federated() -> dict[str, Any]:
    """In picture 1 only cats are annotated, and it was not searched for dogs; nor was picture 2, which surely has none.

    Birds are annotated in one picture alone, and in another one not all of them.
    """
    content = annotations(6)
    content["annotations"] = [
        row for row in content["annotations"] if not (row["image_id"] in (1, 2) and row["category_id"] == 7)
    ]
    for image in content["images"]:
        image |= {"neg_category_ids": [7] if image["id"] == 2 else [], "not_exhaustive_category_ids": []}
    content["categories"] = [each | {"frequency": "f"} for each in content["categories"]]
    return content


@pytest.mark.parametrize("metric", ["lvis", "lvis-fixed"])
def test_in_lvis_only_classes_count_for_which_a_picture_was_searched(metric: str, tmp_path: Path) -> None:
    content = federated()
    path = write_data(tmp_path, content)
    found = known(content)
    wrong = (7, [50.0, 50.0, 20.0, 20.0], 0.99)

    def ap(**more: list[Row]) -> float | None:
        extended = {number: [*rows, *more.get(f"picture{number}", [])] for number, rows in found.items()}
        return ask(path, extended, metric=metric).scores.figures["AP"]

    assert ap() == 1.0
    assert ap(picture1=[wrong]) == 1.0  # not searched for dogs
    assert (ap(picture2=[wrong]) or 0) < 1.0  # surely without dogs
    assert (ap(picture3=[wrong]) or 0) < 1.0  # searched
    for image in content["images"]:
        image["not_exhaustive_category_ids"] = [7] if image["id"] == 3 else []
    path = write_data(tmp_path, content)
    assert ap(picture3=[wrong]) == 1.0  # it may be a dog that is not annotated


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_bytes_are_the_same_however_it_is_run(
    batch: int, threads: int, workers: int, shared: Path, content: dict[str, Any], whole: dict[str, bytes]
) -> None:
    outcome = ask(shared, known(content), batch=batch, threads=threads, workers=workers)
    assert outcome.run is not None
    assert files(replace(outcome, run={**outcome.run, "batch": 1})) == whole


def test_a_batch_has_pictures_of_one_size_and_is_of_the_pictures_alone(shared: Path, content: dict[str, Any]) -> None:
    seen: list[list[int]] = []
    ask(shared, known(content), batch=5, threads=1, seen=seen.append)
    assert seen == [[1, 3, 4], [2, 5], [6, 7, 9, 10], [8], [11], [12]]


def test_with_several_threads_batches_run_at_once_and_come_in_order(shared: Path, content: dict[str, Any]) -> None:
    import threading

    met = threading.Barrier(3, timeout=20)
    assert len(ask(shared, known(content), threads=3, workers=2, seen=lambda ids: met.wait()).predictions) == 48


def test_torch_computes_a_batch_in_one_thread_and_has_its_own_again(shared: Path, content: dict[str, Any]) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    counts: list[int] = []
    try:
        ask(shared, known(content), threads=2, seen=lambda ids: counts.append(torch.get_num_threads()))
        assert (set(counts), torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)


def test_a_task_can_be_sent_to_a_process(tmp_path: Path) -> None:
    """Where processes are not forked."""
    from converter.glip.detect.preprocessing import glip_preprocessing
    from converter.glip.task.task import GLIPTask
    from converter.grounding.tokenizer import find_tokenizer
    from converter.parity.family import Asked, Class
    from tests.support.bert_vocabulary import small_vocabulary

    small_vocabulary(tmp_path)
    tokenizer = find_tokenizer(tmp_path, None)
    task = GLIPTask.of("own", [Class(1, "person")], Asked("official"), tokenizer, glip_preprocessing())
    assert pickle.loads(pickle.dumps(task)).facts == task.facts


def test_results_that_are_kept_are_not_in_memory(
    shared: Path, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of millions of boxes: what is in a folder is read once all is there."""
    order: list[str] = []
    keep, add = ResultFolder.keep, running.Results.add
    monkeypatch.setattr(ResultFolder, "keep", lambda *a: (order.append("keep"), keep(*a))[1])
    monkeypatch.setattr(running.Results, "add", lambda *a: (order.append("add"), add(*a))[1])
    ask(shared, known(content), tmp_path / "out")
    assert order == ["keep"] * PICTURES + ["add"]


def test_no_picture_is_held_once_it_is_done(shared: Path, content: dict[str, Any]) -> None:
    """However many wait: at most some for each thread and worker are in memory."""
    import gc

    most = 0

    def count(ids: list[int]) -> None:
        nonlocal most
        if ids == [PICTURES]:
            most = sum(type(each) is Prepared for each in gc.get_objects())

    ask(shared, known(content), threads=1, workers=0, seen=count)
    assert 1 <= most <= 2


def test_a_metric_that_the_data_set_cannot_have_is_refused_before_it_begins(
    shared: Path, content: dict[str, Any]
) -> None:
    seen: list[int] = []
    with pytest.raises(ModelError, match="needs to know which classes a picture was searched for"):
        ask(shared, known(content), metric="lvis-fixed", seen=seen.extend)
    assert seen == []


numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
parts = st.one_of(numbers, st.lists(st.one_of(numbers, st.lists(numbers, max_size=5)), max_size=3))


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(["picture", "classes", "boxes", "scores", "error", "stamp"]), parts))
def test_whatever_reads_like_an_entry_can_be_used(entry: dict[str, Any]) -> None:
    entry = {"picture": 1, **entry}
    if running.is_entry(entry, {1}, {3}):
        results = running.Results()
        results.add([entry])


@settings(max_examples=20)
@given(st.lists(st.integers(1, 5), max_size=9), st.integers(1, 4))
def test_threads_change_nothing(sizes: list[int], at_once: int) -> None:
    """Batches come in their order, each once."""
    import numpy as np

    from converter.evaluation.dataset import Picture

    def run(pictures: Sequence[Prepared]) -> list[Boxes]:
        return [Boxes(np.array([3]), np.zeros((1, 4)), np.array([each.width / 100])) for each in pictures]

    ids = iter(range(1, 100))
    batches = [
        [Read(Picture(n, "", None, None), None, Prepared(np.zeros(1, np.uint8), n, 1, (1, 1))) for n in
         [next(ids) for _ in range(size)]]
        for size in sizes
    ]  # fmt: skip
    entries = [entry for batch in running.run_batches(iter(batches), run, at_once) for entry in batch]
    assert [entry["picture"] for entry in entries] == list(range(1, sum(sizes) + 1))
    assert [entry["scores"] for entry in entries] == [[n / 100] for n in range(1, sum(sizes) + 1)]
