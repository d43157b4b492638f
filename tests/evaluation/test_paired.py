"""Two models on one data set: the same, alike, different, or not to be told apart."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.evaluation.dataset import DataSet, read_dataset
from converter.evaluation.metrics import Scores, evaluate
from converter.evaluation.paired import Paired, are_identical, bootstrap, compare, judged
from converter.evaluation.predictions import Predictions
from tests.support.predicting import COCO, Row, noisy, perfect


@pytest.fixture(scope="module")
def coco() -> DataSet:
    return read_dataset(COCO)


def rounded(rows: list[Row], box: float = 0.004, score: float = 4e-7, seed: int = 0) -> list[Row]:
    """As another device might find them."""
    chance = random.Random(seed)
    return [
        (picture, label, [part + box * chance.uniform(-1, 1) for part in parts], value + score * chance.uniform(-1, 1))
        for picture, label, parts, value in rows
    ]


def worse(rows: list[Row], share: float, seed: int = 0) -> list[Row]:
    """Some of the boxes are lost."""
    chance = random.Random(seed)
    return [row for row in rows if chance.random() > share]


def paired(coco: DataSet, first: Predictions, second: Predictions) -> Paired:
    scores = (evaluate(coco, each, "coco") for each in (first, second))
    return compare(*scores, identical=are_identical(first, second))


def unequal(rows: list[Row]) -> list[Row]:
    """Without equal scores: the order of these is that of the rows."""
    return [(*row[:3], row[3] + number * 1e-6) for number, row in enumerate(rows)]


def scores(pictures: dict[int, float | None], average: float | None) -> Scores:
    return Scores("coco", {"AP": average}, (), (), {}, pictures, "none")


def test_a_model_is_identical_to_itself(coco: DataSet) -> None:
    rows = unequal(noisy(coco))
    found = paired(coco, Predictions.of(rows), Predictions.of(rows[::-1]))
    assert (found.verdict, found.identical, found.difference, found.interval) == ("identical", True, 0, (0, 0))
    assert (found.better, found.worse, found.equal, found.worst) == (0, 0, 100, ())


def test_the_better_of_two_is_told_both_ways_round(coco: DataSet) -> None:
    good, bad = Predictions.of(perfect(coco)), Predictions.of(worse(perfect(coco), 0.3))
    found = paired(coco, good, bad)
    assert (found.verdict, found.identical) == ("different", False)
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert (found.worse, found.better + found.equal) == (0, 100)
    assert [one - other for _, one, other in found.worst] == sorted([o - t for _, o, t in found.worst], reverse=True)
    assert len(found.worst) == 20
    turned = paired(coco, bad, good)
    assert turned.difference == -found.difference
    assert turned.interval == pytest.approx((-found.interval[1], -found.interval[0]), abs=0.01)
    assert (turned.better, turned.worse, turned.equal) == (found.worse, found.better, found.equal)
    assert turned.worst == tuple((picture, other, one) for picture, one, other in found.worst)


def test_the_mean_is_over_pictures_in_which_there_is_something_to_find() -> None:
    one = scores({1: 0.5, 2: None, 3: 0.25, 4: 0.75}, 0.5)
    other = scores({1: 0.25, 2: None, 3: 0.5, 4: 0.0}, 0.4)
    found = compare(one, other, identical=False)
    assert found.difference == pytest.approx((0.25 - 0.25 + 0.75) / 3)
    assert (found.better, found.worse, found.equal) == (2, 1, 0)
    assert found.worst == ((4, 0.75, 0.0), (1, 0.5, 0.25), (3, 0.25, 0.5))
    nothing = compare(scores({1: None}, None), scores({1: None}, None), identical=False)
    assert (nothing.verdict, nothing.difference, nothing.interval) == ("undecided", 0, (0, 0))


@pytest.mark.parametrize(
    ("gap", "interval", "verdict"),
    [
        (0.0, (-0.0005, 0.0005), "equal"),
        (0.0009, (0.0001, 0.0009), "equal"),  # surely another one, by less than anybody publishes
        (0.001, (0.0001, 0.0009), "different"),
        (-0.002, (-0.0009, -0.0001), "different"),
        (0.001, (-0.0005, 0.0005), "undecided"),
        (0.0, (-0.001, 0.0005), "undecided"),
        (0.0, (-0.0005, 0.001), "undecided"),
        (0.0, (0.0005, 0.001), "different"),
        (0.0, (-0.002, -0.0005), "different"),
        (0.0, (0.0, 0.002), "undecided"),
        (0.1, (-0.1, 0.3), "undecided"),
        (0.1, (0.05, 0.15), "different"),
    ],
)
def test_the_verdict(gap: float, interval: tuple[float, float], verdict: str) -> None:
    assert judged(gap, interval, pictures=100) == verdict
    assert judged(gap, interval, pictures=29) == "undecided"


@pytest.mark.parametrize("count", [50, 3000])
def test_the_interval_is_that_of_a_mean(count: int) -> None:
    """Of many pictures, the bootstrap's is that of the normal distribution."""
    values = np.random.default_rng(1).normal(0.1, 1, count)
    low, high = bootstrap(values)
    error = values.std() / count**0.5
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert bootstrap(values) == (low, high)


def test_the_interval_covers_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.evaluation.paired.RESAMPLES", 400)
    generator = np.random.default_rng(2)
    bounds = [bootstrap(generator.normal(0.3, 1, 60)) for _ in range(400)]
    covered = sum(low < 0.3 < high for low, high in bounds)
    assert 0.91 < covered / 400 < 0.98


def test_rounding_is_identical(coco: DataSet) -> None:
    """Also where it changes the order of close scores, of which there are many."""
    rows = noisy(coco)
    for seed in range(3):
        assert are_identical(Predictions.of(rows), Predictions.of(rounded(rows, seed=seed)))


def changed(place: int, row: Any) -> Any:
    return lambda rows: [*rows[:place], row(rows[place]), *rows[place + 1 :]]


@pytest.mark.parametrize(
    "change",
    [
        changed(7, lambda row: (*row[:2], [row[2][0] + 0.02, *row[2][1:]], row[3])),
        changed(7, lambda row: (*row[:2], [*row[2][:3], row[2][3] + 0.02], row[3])),
        changed(7, lambda row: (*row[:3], row[3] + 2e-6)),
        changed(7, lambda row: (row[0], 1 if row[1] != 1 else 2, *row[2:])),
        changed(7, lambda row: (42 if row[0] != 42 else 73, *row[1:])),
        lambda rows: rows[1:],
        lambda rows: [*rows, rows[0]],
        lambda rows: [rows[1], *rows[1:]],
        lambda rows: [],
    ],
)
def test_what_is_not_identical(coco: DataSet, change: Any) -> None:
    rows = noisy(coco)
    assert not are_identical(Predictions.of(rows), Predictions.of(change(rows)))


def test_each_box_is_the_like_of_one() -> None:
    one, other = (42, 1, [0.0, 0.0, 9.0, 9.0], 0.5), (42, 1, [5.0, 0.0, 9.0, 9.0], 0.5)
    assert are_identical(Predictions.of([one, other, one]), Predictions.of([one, one, other]))
    assert not are_identical(Predictions.of([one, one, other]), Predictions.of([one, other, other]))


@given(st.randoms(use_true_random=False), st.integers(0, 12))
def test_identical_is_a_matter_of_boxes_not_of_their_order(chance: random.Random, count: int) -> None:
    """Boxes of one class in one picture that lie close to each other."""
    rows: list[Row] = [
        (1, 1, [chance.choice([0.0, 0.1, 0.2]), 0.0, 9.0, 9.0], chance.choice([0.5, 0.5000015, 0.6]))
        for _ in range(count)
    ]
    other = rounded(chance.sample(rows, count), seed=chance.randrange(99))
    assert are_identical(Predictions.of(rows), Predictions.of(other))


def test_hardly_any_difference_is_none(coco: DataSet) -> None:
    rows = unequal(noisy(coco))
    found = paired(coco, Predictions.of(rows), Predictions.of(rounded(rows, box=0.012)))
    assert (found.verdict, found.identical) == ("equal", False)


def test_a_difference_in_few_pictures_is_undecided(coco: DataSet) -> None:
    rows = perfect(coco)
    lost = next(row for row in rows if sum(other[0] == row[0] for other in rows) == 1)
    found = paired(coco, Predictions.of(rows), Predictions.of([row for row in rows if row is not lost]))
    assert (found.better, found.worse, found.equal) == (1, 0, 99)
    assert found.verdict == "undecided"
    assert found.worst == ((lost[0], 1.0, 0.0),)


def test_two_models_that_find_nothing_are_not_shown_to_be_equal() -> None:
    nothing = scores(dict.fromkeys(range(100), 0.0), 0.0)
    assert compare(nothing, nothing, identical=False).verdict == "undecided"
    assert compare(nothing, nothing, identical=True).verdict == "identical"
    something = scores(dict.fromkeys(range(100), 0.5), 0.5)
    assert compare(something, something, identical=False).verdict == "equal"
