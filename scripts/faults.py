#!/usr/bin/env python3
"""Every system call of a commit killed, interrupted and failed, and the table of what then lies on the disk.

    python scripts/faults.py                                # all: some minutes on two cores
    python scripts/faults.py --sample 300                   # some of them, the same ones each time
    python scripts/faults.py --scenario pair --kind kill    # of some scenarios and kinds
    python scripts/faults.py --output faults.md

Needs Linux and strace. The exit code is 1 if anything came out otherwise than docs/reliability.md promises.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tests.faults.campaign import KINDS, Task, all_tasks, run_all, sample, table, workplace
from tests.faults.injection import Outcome
from tests.faults.scenarios import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, metavar="COUNT", help="about as many of them")
    parser.add_argument("--scenario", default="", metavar="TEXT", help="those whose name contains it")
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="where the table is written, too")
    arguments = parser.parse_args()
    start = time.monotonic()
    with workplace() as place:
        tasks, broken = all_tasks(place, [scenario for scenario in SCENARIOS if arguments.scenario in scenario.name])
    tasks = [task for task in tasks if not arguments.kind or task.fault.kind in arguments.kind]
    tasks = sample(tasks, arguments.sample) if arguments.sample else tasks
    print(*broken, sep="\n")
    missed: list[Task] = []

    done = itertools.count(1)

    def show(task: Task, outcome: Outcome | None) -> None:
        if (count := next(done)) % 500 == 0:
            print(f"{count} of {len(tasks)} after {time.monotonic() - start:.0f} s", file=sys.stderr)
        if outcome is None:
            missed.append(task)
        elif outcome.wrong:
            print(outcome, flush=True)

    outcomes = run_all(tasks, arguments.workers, show)
    text = table(outcomes)
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    removed = sum(bool(outcome.removed) for outcome in outcomes)
    print(f"\n{text}\n")
    print(f"{len(outcomes)} faults in {time.monotonic() - start:.0f} s, {len(wrong)} not as promised")
    print(f"{removed} left something, which the next run removed; {len(missed)} did not happen: a run has other calls")
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 1 if wrong or broken or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
