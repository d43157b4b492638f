"""The figures for LVIS are those of its own package, for predictions that nobody has recorded figures of."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from converter.evaluation import metrics
from converter.evaluation.dataset import read_dataset
from converter.evaluation.metrics import evaluate
from converter.evaluation.predictions import Predictions
from tests.peers import lvis_package
from tests.support.predicting import LVIS, Row, noisy, perfect

missing = [name for name in ("lvis", "faster_coco_eval") if find_spec(name) is None]
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: scripts/peers.sh installs it"),
]
DATASET = read_dataset(LVIS)
FOUND: dict[str, list[Row]] = {
    "a perfect detector": perfect(DATASET),
    **{f"a poor detector, seed {seed}": noisy(DATASET, seed, crowded=seed % 5) for seed in range(11, 16)},
}


@pytest.mark.parametrize("case", lvis_package.CASES)
@pytest.mark.parametrize("detector", FOUND)
def test_the_figures_of_lvis(detector: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    most = lvis_package.CASES[case]
    monkeypatch.setattr(metrics, "PER_CLASS", most)
    expected = lvis_package.figures(LVIS, FOUND[detector], most)
    found = evaluate(DATASET, Predictions.of(FOUND[detector]), case.partition(",")[0]).figures
    assert found.keys() == expected.keys()
    assert {name: -1 if value is None else value for name, value in found.items()} == pytest.approx(expected, abs=1e-12)
