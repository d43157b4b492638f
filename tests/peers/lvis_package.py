"""Figures of the lvis package (https://github.com/lvis-dataset/lvis-api), the reference for LVIS.

`python -m tests.peers.lvis_package` prints those that `tests/data/evaluation/lvis_figures.json` keeps.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

from converter.evaluation.dataset import read_dataset
from tests.support.predicting import LVIS, Row, as_results, noisy

# topk of microsoft/GLIP is 10,000: few classes of 100 pictures have more than 10
CASES: dict[str, int | None] = {"lvis": None, "lvis-fixed": 10_000, "lvis-fixed, 10 of a class": 10}
SEEDS = (1, 2)
_NAMES = {"AR@300": "AR300", "AR@-1": "AR"}


def figures(path: Path, rows: list[Row], per_class: int | None) -> dict[str, float]:
    """What it prints; `per_class`: "fixed AP", with as many boxes of a class, as microsoft/GLIP takes them."""
    if not hasattr(np, "float"):
        np.float = float  # type: ignore[attr-defined]  # numpy < 1.24
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lvis import LVIS as Annotations
        from lvis import LVISEval, LVISResults

        annotated = Annotations(str(path))
        if per_class is None:
            evaluation = LVISEval(annotated, LVISResults(annotated, as_results(rows)), "bbox")
        else:
            found = LVISResults(annotated, as_results(best(rows, per_class)), max_dets=-1)
            evaluation = LVISEval(annotated, found, "bbox")
            evaluation.params.max_dets = -1
        evaluation.run()
    return {_name(name): float(value) for name, value in evaluation.get_results().items()}


def best(rows: list[Row], per_class: int) -> list[Row]:
    """Those with the best scores of each class, over all pictures."""
    classes: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        classes[row[1]].append(row)
    return [row for group in classes.values() for row in sorted(group, key=lambda row: -row[3])[:per_class]]


def _name(theirs: str) -> str:
    """`ARs@300` is `ARs`, as `APs` is without the limit."""
    return _NAMES.get(theirs, theirs.partition("@")[0])


if __name__ == "__main__":
    dataset = read_dataset(LVIS)
    found = {
        f"{case}, seed {seed}": figures(LVIS, noisy(dataset, seed), most)
        for case, most in CASES.items()
        for seed in SEEDS
    }
    print(json.dumps(found, indent=1))
