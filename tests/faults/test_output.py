"""Output that cannot be written takes nothing from a result that is on the disk: exit code 0."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults.campaign import workplace
from tests.faults.disk import Seen, look
from tests.faults.injection import Workplace
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.support.jobs import listing

_SOME = [s for s in SCENARIOS if s.name in ("file .safetensors, new", "pair, --force", "folder, --force")]


@pytest.fixture(scope="module")
def place() -> Iterator[Workplace]:
    with workplace() as place:
        yield place


@pytest.mark.parametrize("output", [">&-", "| true", "> /dev/full", "2>&-", "2> /dev/full", ">&- 2>&-"])
@pytest.mark.parametrize("scenario", _SOME, ids=lambda scenario: scenario.name)
def test_the_result_is_there_and_the_exit_code_says_so(scenario: Scenario, output: str, place: Workplace) -> None:
    place.restore(scenario)
    script = f'set -o pipefail; "$0" -m converter "$@" {output}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, *scenario.command()], cwd=place.folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert look(listing(place.folder / "d"), place.reference(scenario)) == Seen("new", ())
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
