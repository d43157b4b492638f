"""Predictions of two models on the same pictures: whether one is better, and how sure that is.

A difference of AP alone does not say whether other pictures would show it, too. So both models are compared picture by
picture, by the AP that each has in this picture alone (`metrics.Scores.pictures`). Pictures in which nothing is to be
found have none and are left out.

The mean of these differences has a confidence interval of 95 %, by the percentile bootstrap (Efron and Tibshirani 1993,
chapter 13): 10,000 times as many pictures as there are, drawn with replacement, and the 2.5th and 97.5th percentile
of their means. As both models see each drawn picture, how hard it is cancels out. What this rests on:

- Pictures are a random sample, independent of each other. Frames of one video are not.
- It is the mean over pictures, where each weighs the same. AP of the data set ranks boxes of all pictures together, and
  every class weighs the same. The two usually agree in direction, but are not the same number; a verdict looks at both.
- With few pictures the interval is too narrow, so that of fewer than 30 nothing is said. That of pictures without any
  difference is (0, 0): if none of n pictures differs, up to 3/n of all may (with 95 % confidence).
- Two models that both find nothing are alike in that only: then nothing is said, either.
- It is of one comparison. Of twenty pairs of models without a difference, one is called different.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from converter.checkpoint.arrays import np
from converter.evaluation.metrics import Scores
from converter.evaluation.predictions import Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray

MARGIN = 0.001  # of AP: 0.1 where it is 0 to 100, the last digit that papers give
RESAMPLES = 10_000
SEED = 0
BOX_TOLERANCE = 0.01  # pixels
SCORE_TOLERANCE = 1e-6
FEWEST = 30  # pictures of which anything is said
_SHOWN = 20  # pictures
_ROUNDING = 1e-12  # of the AP of a picture
_AT_ONCE = 2_000_000  # drawn pictures: 16 MB

Verdict = Literal["identical", "equal", "different", "undecided"]


@dataclass(frozen=True, slots=True, eq=False)
class Paired:
    """Two models on the same pictures. A difference is the first's minus the second's: above 0, the first is better.

    `difference`: mean over pictures of the difference of their AP, 0 to 1. `interval`: its lower and upper bound.
    `better`, `worse`, `equal`: pictures in which the first has more AP, less, and as much. `worst`: id, AP of the first
    and of the second, of the pictures that differ most, at most 20. `identical`: in every picture both found the same
    classes, at the same places within 0.01 pixel, with the same scores within 1e-6.

    `verdict`:

    - 'identical': as above.
    - 'equal': AP of the data set differs by less than 0.001, and the interval is within -0.001 to 0.001, exclusive.
    - 'different': not equal, and the interval excludes 0.
    - 'undecided': neither, or too little to judge by. More pictures may tell.
    """

    first: Scores
    second: Scores
    difference: float
    interval: tuple[float, float]
    better: int
    worse: int
    equal: int
    worst: tuple[tuple[int, float, float], ...]
    identical: bool
    verdict: Verdict


def compare(first: Scores, second: Scores, *, identical: bool) -> Paired:
    """Compare the figures of two models, which are of the same pictures and of the same style."""
    both = _in_both(first.pictures, second.pictures)
    differences = np.array([one - other for _, one, other in both], dtype=np.float64)
    differences[np.abs(differences) < _ROUNDING] = 0
    order = np.argsort(-np.abs(differences), kind="stable")
    interval = bootstrap(differences)
    return Paired(
        first=first,
        second=second,
        difference=float(differences.mean()) if len(both) else 0.0,
        interval=interval,
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        equal=int((differences == 0).sum()),
        worst=tuple(both[i] for i in order[:_SHOWN] if differences[i]),
        identical=identical,
        verdict="identical"
        if identical
        else judged(_gap(first, second), interval, len(both) if _finds(first) or _finds(second) else 0),
    )


def judged(gap: float, interval: tuple[float, float], pictures: int) -> Verdict:
    """The verdict on two that are not identical. `gap`: the difference of AP of the data set; `pictures`: of use."""
    low, high = interval
    if pictures < FEWEST:
        return "undecided"
    if abs(gap) < MARGIN and low > -MARGIN and high < MARGIN:
        return "equal"
    return "different" if low > 0 or high < 0 else "undecided"


def bootstrap(differences: NDArray[np.float64]) -> tuple[float, float]:
    """The bounds of their mean, with 95 % confidence: the same for the same differences."""
    count = len(differences)
    if not count:
        return 0.0, 0.0
    generator = np.random.Generator(np.random.PCG64(SEED))
    means = np.empty(RESAMPLES)
    step = max(1, _AT_ONCE // count)
    for start in range(0, RESAMPLES, step):
        part = means[start : start + step]
        part[:] = differences[generator.integers(0, count, (len(part), count))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def are_identical(first: Predictions, second: Predictions) -> bool:
    """Whether they are the same boxes but for rounding, in any order."""
    if len(first) != len(second):
        return False
    first, second = _ranked(first), _ranked(second)
    keys, others = (np.stack([part.pictures, part.categories], axis=1) for part in (first, second))
    if not np.array_equal(keys, others):
        return False
    groups = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)  # in order, as the rows are
    for group in np.unique(groups[~_alike(first, second)]):  # rounding may have changed the order of close scores
        rows = np.arange(*np.searchsorted(groups, [group, group + 1]))
        if not _match(first.taken(rows), second.taken(rows)):
            return False
    return True


def _ranked(predictions: Predictions) -> Predictions:
    return predictions.taken(np.lexsort((-predictions.scores, predictions.categories, predictions.pictures)))


def _alike(first: Predictions, second: Predictions) -> NDArray[np.bool_]:
    near = np.abs(first.boxes - second.boxes).max(axis=-1, initial=0) <= BOX_TOLERANCE
    alike: NDArray[np.bool_] = near & (np.abs(first.scores - second.scores) <= SCORE_TOLERANCE)
    return alike


def _match(first: Predictions, second: Predictions) -> bool:
    """Whether each box of one class in one picture has its like: the nearest of those that are left."""
    left = np.arange(len(second))
    for row in range(len(first)):
        rest = second.taken(left)
        alike = _alike(first.taken(np.full(len(left), row)), rest)
        if not alike.any():
            return False
        distances = np.abs(first.boxes[row] - rest.boxes).max(axis=1)
        left = np.delete(left, np.argmin(np.where(alike, distances, np.inf)))
    return True


def _in_both(first: Mapping[int, float | None], second: Mapping[int, float | None]) -> list[tuple[int, float, float]]:
    """Id and the AP of both, of pictures in which something is to be found; by id."""
    return [
        (picture, one, other)
        for picture, one in sorted(first.items())
        if one is not None and (other := second.get(picture)) is not None
    ]


def _finds(scores: Scores) -> bool:
    return bool(scores.figures["AP"])


def _gap(first: Scores, second: Scores) -> float:
    return (first.figures["AP"] or 0.0) - (second.figures["AP"] or 0.0)
