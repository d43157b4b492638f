"""The best one-to-one assignment of candidates, and by how much it is the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from converter.display import listed
from converter.mapping.draft.names import Unit
from converter.mapping.draft.words import Matrix, Neighbours, Vocabulary

_AGREEMENT = 0.5  # weight of where the neighbours went, beside 1 for the name
# cosines of weighted words; chosen so that drafts for known pairs of models have no wrong rule without a doubt
_CLEAR_MARGIN = 0.12
_HINT = 0.4  # weight of what else speaks for a pair, which chooses among doubtful ones only
_FAINT = 0.12
_COMPARABLE = 1500  # candidates of one signature; beyond, the similarity matrix alone takes gigabytes
_EXACT_MARGIN = 300
_NAMED = 4  # alternatives that a doubt lists


@dataclass(frozen=True, slots=True)
class Choice:
    """A source and a target (positions), why the pair is doubtful, if it is, and how alike the names are, 0 to 1."""

    source: int
    target: int
    doubt: str | None
    alike: float


@dataclass(frozen=True, slots=True)
class Judge:
    """What is known about names: the words of both sides, and where neighbours went in an earlier round.

    `likely` counts doubtful pairs, too, and guides the assignment. `certain` counts sure pairs only and decides what is
    in doubt: otherwise guesses would confirm each other round by round.
    """

    vocabulary: Vocabulary
    likely: Neighbours
    certain: Neighbours

    def choose(
        self, sources: Sequence[str], targets: Sequence[str], several: bool = True, hints: Matrix | None = None
    ) -> list[Choice]:
        """Assign labels to labels. `several`: each stands for several tensors, which is evidence by itself.

        `hints`: 0 to 1, how much the order of the file speaks for each pair. It makes none sure.
        """
        if max(len(sources), len(targets)) > _COMPARABLE:
            return _by_order(sources, targets)
        # cosines of the same vectors must not differ in the last bit, or equal candidates would not tie
        similarity = self.vocabulary.similarity(sources, targets).round(9)
        agreement = self.certain.matrix(sources, targets)
        score = similarity + _AGREEMENT * agreement
        guess = similarity + _AGREEMENT * self.likely.matrix(sources, targets)
        rows, columns = assign(guess if hints is None else guess + _HINT * hints)
        margins = margins_of(score, rows, columns)
        choices = []
        for row, column, margin in zip(rows, columns, margins, strict=True):
            doubt = None
            if margin < _CLEAR_MARGIN:
                doubt = _near(row, column, score, sources, targets)
                if hints is not None and hints[row, column] > 0:
                    doubt += "; proposed for what stands before it in the file"
            elif similarity[row, column] < _FAINT and not (several and agreement[row, column] > 0.5):
                doubt = "only the shape speaks for it: the names have next to nothing in common"
            choices.append(Choice(row, column, doubt, float(similarity[row, column])))
        return choices


def assign(score: Matrix) -> tuple[list[int], list[int]]:
    """Rows and columns of the assignment of the highest total score."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(score, maximize=True)
    return rows.tolist(), columns.tolist()


def margins_of(score: Matrix, rows: Sequence[int], columns: Sequence[int]) -> list[float]:
    """For each pair, by how much the total score falls at least if it is given up; negative if the score rises.

    Giving up a pair is a cycle of exchanges: row i takes the column of row k, which takes another. A row without a
    partner scores 0. The best cycle through each pair is a shortest path (Floyd and Warshall).
    """
    size = max(score.shape)
    square = np.zeros((size, size))
    square[: score.shape[0], : score.shape[1]] = score
    order = (
        [
            *rows,
            *sorted(set(range(size)) - set(rows)),
        ],
        [*columns, *sorted(set(range(size)) - set(columns))],
    )
    permuted = square[np.ix_(*order)]
    loss = np.diag(permuted)[:, None] - permuted
    np.fill_diagonal(loss, np.inf)
    if size > _EXACT_MARGIN:  # exchanges of two only
        return [float(margin) for margin in (loss + loss.T).min(axis=1)[: len(rows)]]
    for via in range(size):
        np.minimum(loss, loss[:, via, None] + loss[None, via, :], out=loss)
        np.maximum(loss, -1e6, out=loss)  # a cycle that gains can be gone round for ever
    return [float(margin) for margin in np.diag(loss)[: len(rows)]]


def _near(row: int, column: int, score: Matrix, sources: Sequence[str], targets: Sequence[str]) -> str:
    """The sentence that names what else could stand on either side."""
    others = [i for i in np.argsort(-score[row], kind="stable") if i != column]
    rivals = [i for i in np.argsort(-score[:, column], kind="stable") if i != row]
    said = []
    if others:
        said.append(f"{sources[row]!r} could also become {_some(targets[i] for i in others)}")
    if rivals:
        said.append(f"{targets[column]!r} could also come from {_some(sources[i] for i in rivals)}")
    return "the names do not tell candidates of one shape apart: " + "; ".join(said)


def _some(labels: Iterable[str]) -> str:
    return listed((repr(label.rstrip("._")) for label in labels), _NAMED)


def _by_order(sources: Sequence[str], targets: Sequence[str]) -> list[Choice]:
    """Equal names first; the rest in the order of their names, as too many to compare."""
    at = {label: i for i, label in enumerate(targets)}
    same = {i: at[label] for i, label in enumerate(sources) if label in at}
    taken = set(same.values())
    rest = sorted((i for i in range(len(sources)) if i not in same), key=sources.__getitem__)
    free = sorted((i for i in range(len(targets)) if i not in taken), key=targets.__getitem__)
    doubt = f"{len(sources)} and {len(targets)} tensors have this shape, too many to compare: paired in order of name"
    pairs = zip(rest, free, strict=False)
    return [Choice(i, j, None, 1.0) for i, j in same.items()] + [Choice(i, j, doubt, 0.0) for i, j in pairs]


def labels(units: Sequence[Unit]) -> list[str]:
    """What stands for each unit in a comparison of names."""
    return [unit.label for unit in units]
