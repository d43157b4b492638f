#!/usr/bin/env python3
"""Every system call of a commit killed, interrupted and failed, and tables of what then lies on the disk.

    python scripts/faults.py                                # all: some 25 minutes on two cores
    python scripts/faults.py --sample 300                   # some of them, the same ones each time
    python scripts/faults.py --scenario pair --kind kill    # of some scenarios and kinds
    python scripts/faults.py --document                     # puts the numbers into docs/reliability.md

Needs Linux and strace. The exit code is 1 if anything came out otherwise than docs/reliability.md promises.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tests.faults.campaign import KINDS, Task, all_tasks, run_all, sample, tables, workplace
from tests.faults.injection import WHOLE, Outcome
from tests.faults.scenarios import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, metavar="COUNT", help="about as many of them")
    parser.add_argument("--whole", action="store_true", help="all on a whole system; --sample is of the others")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no more after so many")
    parser.add_argument("--scenario", default="", metavar="TEXT", help="those whose name contains it")
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--document", action="store_true", help="put the tables into docs/reliability.md")
    arguments = parser.parse_args()
    start = time.monotonic()
    with workplace() as place:
        tasks, broken = all_tasks(place, [scenario for scenario in SCENARIOS if arguments.scenario in scenario.name])
    tasks = [task for task in tasks if not arguments.kind or task.fault.kind in arguments.kind]
    always = [task for task in tasks if arguments.whole and task.system is WHOLE]
    others = [task for task in tasks if not (arguments.whole and task.system is WHOLE)]
    tasks = always + (sample(others, arguments.sample) if arguments.sample else others)
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

    outcomes = run_all(tasks, arguments.workers, show, arguments.minutes * 60)
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    removed = sum(bool(outcome.removed) for outcome in outcomes)
    seconds = time.monotonic() - start
    print(f"\n{tables(outcomes)}\n")
    print(f"{len(outcomes)} faults in {seconds:.0f} s, {len(wrong)} not as promised")
    print(f"{removed} left something, which the next run removed; {len(missed)} did not happen: a run has other calls")
    if arguments.document:
        _write(outcomes, seconds)
    return 1 if wrong or broken or not outcomes else 0


def _write(outcomes: list[Outcome], seconds: float) -> None:
    """Put the tables between the marks of the document, with date and machine."""
    path = ROOT / "docs" / "reliability.md"
    before, mark, rest = path.read_text(encoding="utf-8").partition("<!-- numbers -->\n")
    _, end, after = rest.partition("<!-- end of numbers -->\n")
    command = ["df", "--output=fstype", tempfile.gettempdir()]
    kind = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    machine = f"{os.cpu_count()} cores, {kind}, {seconds / 60:.0f} minutes"
    said = f"{len(outcomes)} faults on {datetime.date.today()} ({machine}):"
    path.write_text(f"{before}{mark}\n{said}\n\n{tables(outcomes)}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
