"""A sample of all faults: the disk shows the old, the new, or what the same command makes the new of."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.campaign import KINDS, Task, all_tasks, run_all, sample, tables, workplace
from tests.faults.injection import Outcome
from tests.faults.scenarios import SCENARIOS

pytestmark = pytest.mark.usefixtures("strace")
_FAULTS = 400


@pytest.fixture(scope="module")
def tried(strace: None) -> list[tuple[Task, Outcome | None]]:
    """Faults, and what came of each; nothing where the run did not come to it."""
    with workplace() as place:
        tasks, broken = all_tasks(place)
    assert not broken, "\n".join(map(str, broken))
    found: list[tuple[Task, Outcome | None]] = []
    run_all(sample(tasks, _FAULTS), 1, lambda task, outcome: found.append((task, outcome)))
    return found


@pytest.fixture(scope="module")
def outcomes(tried: list[tuple[Task, Outcome | None]]) -> list[Outcome]:
    return [outcome for _, outcome in tried if outcome is not None]


def test_what_lies_there_and_the_exit_code_are_as_promised(outcomes: list[Outcome]) -> None:
    print(tables(outcomes))
    assert [str(outcome) for outcome in outcomes if outcome.wrong] == []


def test_what_is_to_be_injected_happens(tried: list[tuple[Task, Outcome | None]]) -> None:
    """What a thread does is chance; what the program does from its beginning to its end is not."""
    assert [task for task, outcome in tried if outcome is None and not task.fault.call.in_thread] == []


def test_the_sample_is_of_everything(outcomes: list[Outcome]) -> None:
    """A harness that injects nothing finds nothing."""
    assert {outcome.scenario for outcome in outcomes} == set(SCENARIOS)
    counts = Counter(outcome.fault.kind for outcome in outcomes)
    assert all(counts[kind] > 60 for kind in KINDS), counts
    states = Counter((outcome.scenario, outcome.state) for outcome in outcomes)
    assert all(states[scenario, state] > 2 for scenario in SCENARIOS for state in ("old", "new")), states
