"""Conversions by the hundred, in one process and one process after another: nothing grows, nothing is left.

Some in CI; FAULTS=all makes 200 rounds, and 200 in a row.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.jobs import FORMS, Jobs, listing

ALL = os.environ.get("FAULTS") == "all"
# a round: every form of result is written, replaced, and then refused because it is there
WARM_UP, ROUNDS = (20, 200) if ALL else (3, 5)
# threads have one heap together: with one of its own, each adds a MiB once, in a round that chance decides
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
# RssAnon grows in steps of up to half a MiB, and stops after some 600 conversions: it is what allocators keep. So few
# tell of what is not counted as an object only from 14 KiB a conversion on; the 3000 of FAULTS=all, from 1 KiB on
SLACK_KIB, KIB_A_CONVERSION = 1024, 0.5

# converts sys.argv[1] times, each command line of the file sys.argv[2] in turn, and tells what the process holds
MANY = """
import gc, json, os, sys, threading
from pathlib import Path
from converter.cli import main

def held():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {"kib": int(status["RssAnon"].split()[0]), "files": len(os.listdir("/proc/self/fd")),
            "objects": len(gc.get_objects()), "threads": threading.active_count(),
            "tasks": len(os.listdir("/proc/self/task"))}

answer, lines, samples = sys.stdout, json.loads(Path(sys.argv[2]).read_text()), []
sys.stdout = sys.stderr = open(os.devnull, "w")  # one for all: click keeps what it knows of each for good
for number in range(int(sys.argv[1])):
    for code, line in lines:
        try:
            main(line)
        except SystemExit as end:
            assert end.code == code, (end.code, line)
    gc.collect()
    samples.append(held())
print(json.dumps(samples), file=answer)
"""
# the program, which leaves its status in the file sys.argv[1]
ONCE = """
import atexit, shutil, sys
atexit.register(shutil.copyfile, "/proc/self/status", sys.argv.pop(1))
from converter.cli import converter_main
converter_main()
"""


def command_lines(jobs: Jobs, form: str, folder: Path) -> list[tuple[int, list[str]]]:
    """A conversion that replaces what the one before wrote, and one that is refused, late, for what is there."""
    lines = []
    for code, seed, force in ((0, 0, True), (0, 1, True), (6, 0, False)):
        line = jobs.arguments(form, seed, force=force)
        line[line.index("--dst") + 1] = str(folder / FORMS[form].name)
        lines.append((code, line))
    return lines


def hold_still(samples: list[dict[str, int]], a_round: int) -> None:
    """Check that the process holds at the end what it held after the warm-up."""
    before, after = samples[WARM_UP - 1], samples[-1]
    conversions = a_round * ROUNDS
    print(f"{conversions} conversions: {before} -> {after}")
    for what in ("files", "threads", "tasks"):
        assert after[what] == before[what]
    assert after["objects"] - before["objects"] < conversions / 2
    assert after["kib"] - before["kib"] <= SLACK_KIB + KIB_A_CONVERSION * conversions


def test_many_in_one_process(jobs: Jobs, tmp_path: Path) -> None:
    lines = []
    for form in FORMS:
        (tmp_path / form).mkdir()
        lines += command_lines(jobs, form, tmp_path / form)
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    rounds = WARM_UP + ROUNDS
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(rounds), tmp_path / "lines.json"], capture_output=True, text=True, check=False,
        env=os.environ | ONE_HEAP,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    hold_still(json.loads(done.stdout), len(lines))
    assert all(jobs.seed(form, tmp_path / form) == 1 for form in FORMS)


def test_many_in_a_row(jobs: Jobs, tmp_path: Path) -> None:
    """Each process begins anew; what could add up is on the disk: the folder, and the one for what is temporary."""
    place, temporary = tmp_path / "place", tmp_path / "temporary"
    place.mkdir()
    temporary.mkdir()
    peaks = []
    for number in range(200 if ALL else 5):
        line = jobs.arguments("pair", number % 2, force=True)
        done = subprocess.run(
            [sys.executable, "-c", ONCE, tmp_path / "status", *line], cwd=place, capture_output=True, check=False,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert jobs.seed("pair", place) == number % 2
        assert listing(temporary) == {}
        peaks.append(int((tmp_path / "status").read_text().partition("VmHWM:")[2].split()[0]))
    print(peaks[0], min(peaks), max(peaks))
    assert max(peaks) <= 1.1 * peaks[0]
