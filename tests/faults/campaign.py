"""Many faults, on several processes, and the tables of what came of them."""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from tests.faults.calls import Fault, errors, interrupts, kills
from tests.faults.injection import NO_EXCHANGE, NO_LINKS, NO_TMPFILE, WHOLE, Broken, Outcome, System, Workplace
from tests.faults.scenarios import SCENARIOS, Scenario

KINDS = ("kill", "interrupt", "error")
_COLUMNS = ("faults", "old", "new", "recoverable", "mixed", "wrong exit", "leftover", "other")


@dataclass(frozen=True, slots=True)
class Task:
    """A fault that is to be tried."""

    scenario: Scenario
    system: System
    fault: Fault


@contextmanager
def workplace() -> Iterator[Workplace]:
    """A workplace in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="faults") as folder, Workplace(Path(folder) / "w") as place:
        yield place


def systems_of(scenario: Scenario) -> tuple[System, ...]:
    """The systems on which a scenario is tried: two folders are exchanged only where there was one before."""
    exchanges = scenario.force and "." not in scenario.layout.destination
    return (WHOLE, NO_TMPFILE, NO_LINKS, *([NO_EXCHANGE] if exchanges else []))


def all_tasks(place: Workplace, scenarios: Iterable[Scenario] = SCENARIOS) -> tuple[list[Task], list[Broken]]:
    """Every fault of every scenario, and the scenarios that do not work on a system.

    On one that lacks something: kills and interrupts, as long as anything is done where the result goes. What follows
    is the same everywhere.
    """
    tasks, broken = [], []
    for scenario in scenarios:
        for system in systems_of(scenario):
            try:
                calls = place.calls(scenario, system)
            except Broken as error:
                broken.append(error)
                continue
            if system is WHOLE:
                faults = kills(calls) + interrupts(calls) + errors(calls)
            else:
                calls = [call for call in calls if not call.in_thread and not call.is_late]
                faults = kills(calls) + interrupts(calls)
            tasks += [Task(scenario, system, fault) for fault in faults]
    return tasks, broken


def sample(tasks: Sequence[Task], count: int) -> list[Task]:
    """Some `count` of them, the same ones each time.

    On a whole system all kills and interrupts where a name changes: that is where results get mixed. The others are
    spread over all scenarios, systems and kinds.
    """
    chosen = [task for task in tasks if _is_critical(task)]
    others = [task for task in tasks if not _is_critical(task)]
    step = max(1, len(others) // max(1, count - len(chosen)))
    return chosen + others[:: step if step % 2 else step + 1]


def _is_critical(task: Task) -> bool:
    return task.system is WHOLE and task.fault.kind != "error" and task.fault.call.changes_names


def run_all(
    tasks: Sequence[Task],
    workers: int,
    on_done: Callable[[Task, Outcome | None], None] = lambda task, outcome: None,
    seconds: float = math.inf,
) -> list[Outcome]:
    """Try all of them, in an order that is as good as any; those that a run did not come to are not among the outcomes.

    Once so many `seconds` have passed no more are begun.
    """
    end = time.monotonic() + seconds
    queue: Queue[Task] = Queue()
    for task in random.Random(0).sample(tasks, len(tasks)):
        queue.put(task)
    outcomes: list[Outcome] = []

    def work() -> None:
        with workplace() as place:
            while time.monotonic() < end:
                try:
                    task = queue.get_nowait()
                except Empty:
                    return
                outcome = place.inject(task.scenario, task.fault, task.system)
                on_done(task, outcome)
                if outcome is not None:
                    outcomes.append(outcome)

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work) for _ in range(workers)]:
            future.result()
    return outcomes


def tables(outcomes: Sequence[Outcome]) -> str:
    """How many faults of each kind came to what: in each scenario, and on each system. In Markdown."""
    scenarios = [scenario.name for scenario in SCENARIOS]
    systems = [system.name for system in (WHOLE, NO_TMPFILE, NO_LINKS, NO_EXCHANGE)]
    return "\n\n".join(
        (
            _table("scenario", scenarios, [(outcome.scenario.name, outcome) for outcome in outcomes]),
            _table("system", systems, [(outcome.system.name, outcome) for outcome in outcomes]),
        )
    )


def _table(title: str, names: Sequence[str], outcomes: Iterable[tuple[str, Outcome]]) -> str:
    counts = {(name, kind): Counter[str]() for name in (*names, "all") for kind in KINDS}
    for name, outcome in outcomes:
        for key in (name, "all"):
            counts[key, outcome.fault.kind].update(_columns(outcome))
    lines = [(title, "kind", *_COLUMNS), ("---", "---", *["---:"] * len(_COLUMNS))]
    lines += [(*key, *(str(found[column]) for column in _COLUMNS)) for key, found in counts.items() if found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(outcome: Outcome) -> list[str]:
    """Those in which an outcome counts: its state, and each thing that is wrong."""
    known = ("wrong exit", "leftover")
    found = {column for column in known for wrong in outcome.wrong if wrong.startswith(column)}
    others = [wrong for wrong in outcome.wrong if not wrong.startswith(("mixed", *known))]
    return ["faults", outcome.state, *found, *(["other"] if others else [])]
