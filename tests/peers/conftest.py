"""The checkpoints that the tests of the peers share, and the table a run ends with."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

import pytest
import torch

from scripts.synthetic_checkpoint import write_checkpoint
from tests.peers.comparison import Results
from tests.peers.conversion import Official
from tests.peers.mmdet_evaluation import CONFIGURATIONS, Peer, peer_for

RESULTS = pytest.StashKey[Results]()


@pytest.fixture(scope="session", params=["glip-t-a", "glip-t", "glip-l"])
def official(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Official]:
    folder = tmp_path_factory.mktemp(request.param)
    path = folder / "official.pth"
    write_checkpoint(request.param, path, weights_only=True)
    yield Official(request.param, path)
    shutil.rmtree(folder)  # gigabytes, and pytest would keep it for three runs


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def peer(request: pytest.FixtureRequest) -> Peer:
    return peer_for(request.param)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> Results:
    return pytestconfig.stash.setdefault(RESULTS, Results())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (results := config.stash.get(RESULTS, None)) is None or not results.rows:
        return
    terminalreporter.section("peers, as a Markdown table")
    for line in (
        "| peer | model | compared | relative error | dtype |",
        "|---|---|---|---|---|",
        *(f"| {r.peer} | {r.model} | {r.compared} | {r.error:.1e} | {r.dtype} |" for r in results.rows),
        "",
        f"PyTorch {torch.__version__}, Python {sys.version.split()[0]}, CPU",
    ):
        terminalreporter.write_line(line)
