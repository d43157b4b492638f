"""What all tests share: a Hub on this machine, how they are divided among processes, and how a run ends.

No test reaches the real Hub: whenever huggingface_hub is imported, it is set up for the one on this machine.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.hub.server import HubServer
from tests.support.program import Program
from tests.support.schemas import checked

pytest_plugins = ["tests.support.fixtures"]

# before any import of huggingface_hub, which reads its settings then; those of whoever runs the tests are not theirs
for name in list(os.environ):
    if re.match(r"HF_|HUGGING|TRANSFORMERS_OFFLINE$", name) or name.lower().endswith("_proxy"):
        del os.environ[name]
_HUB = HubServer()
_HOME = TemporaryDirectory(prefix="hf_home")
os.environ |= {
    "HF_ENDPOINT": _HUB.url,
    "HF_HOME": _HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
# before any import of torch, which would take all processors for each of the processes
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
with suppress(ImportError):  # where peers or a GPU are tried, it is not there, nor are the tests that need it
    from hypothesis import HealthCheck, settings

    # a machine that is busy with something else is no reason to fail; a fixture of all examples is meant so
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings.register_profile("busy", deadline=None, suppress_health_check=checks)
    settings.load_profile("busy")
# a shell lets what it starts in the background ignore Ctrl-C, which tests send
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-point", action="store_true", help="stop programs at every point, not at some: an hour")


@pytest.fixture
def every_point(request: pytest.FixtureRequest) -> bool:
    """Whether programs are to be stopped at every point that there is."""
    return bool(request.config.getoption("--every-point"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is one process's, so that what its tests share is made once; full-size models are divided one by one."""
    if config.getoption("dist") != "load":  # that is the default; who asks for another has it
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            model = re.search(r"/test_fullsize\.py::.*\[(glip-(t-a|t|l))", nodeid)
            return model[1] if model else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # the order is below
    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, what takes minutes comes first: none shall be alone with it at the end."""
    if workers:
        items.sort(key=lambda item: item.get_closest_marker("fullsize") is None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """The last lines count the tests that did not run, and say why."""
    yield
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session", autouse=True)
def unlike_schemas() -> Iterator[list[str]]:
    """What commands printed with --json in this process that is not as their schemas say."""
    with checked() as problems:
        yield problems


@pytest.fixture(autouse=True)
def json_is_as_schemas_say(unlike_schemas: list[str]) -> Iterator[None]:
    """Of every command that any test runs."""
    yield
    found = unlike_schemas[:]
    unlike_schemas.clear()
    assert found == []


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with Program() as started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def running() -> Iterator[HubServer]:
    """The stand-in of the Hub, empty: what asks it for anything is told that it is not there."""
    with TemporaryDirectory(prefix="hub") as folder:
        _HUB.reset(Path(folder))
        _HUB.start()
        yield _HUB
        _HUB.stop()
    _HOME.cleanup()
