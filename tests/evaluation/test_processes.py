"""`converter evaluate` as processes: several of them, and any of them stopped at any moment.

Whatever happens, what is done is kept, the same command goes on with it, and comes to the same bytes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from converter.evaluation.answer import JOURNAL
from tests import ROOT
from tests.support.evaluating import ARGUMENTS, PICTURES, Group, at_picture, contents, write_data
from tests.support.program import Run

SOON = 20.0  # seconds in which a run ends of which one process has ended; all of them begin within these, too


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    before = in_memory()
    with Group(write_data(tmp_path_factory.mktemp("processes")), 3) as made:
        yield made
    assert in_memory() <= before


def in_memory() -> set[str]:
    """What processes share by name, that outlives them."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("torch_", "sem.", "psm_"))}


@pytest.fixture(scope="module")
def whole(group: Group) -> dict[str, bytes]:
    """What one process writes that nothing stops."""
    run = group.run("--out", "whole")
    assert run.code == 0, run.err
    return contents(group.folder / "whole")


@pytest.fixture
def out(group: Group) -> Iterator[Path]:
    yield group.folder / "out"
    left = group.left()
    shutil.rmtree(group.folder / "out", ignore_errors=True)
    assert left == []


def kept(out: Path) -> int:
    """How many pictures are done."""
    return len((out / JOURNAL).read_bytes().splitlines()) - 1 if (out / JOURNAL).exists() else 0


def goes_on(group: Group, out: Path, whole: dict[str, bytes]) -> Run:
    """The same command once more, after which all is there."""
    done = kept(out)
    run = group.run("--out", "out")
    assert run.code == 0, run.err
    assert contents(out) == whole
    assert (f"{done} of 6 pictures are done already; going on" in run.err) == (done > 0), run.err
    return run


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_processes_writes_the_same_bytes(
    count: int, group: Group, out: Path, whole: dict[str, bytes]
) -> None:
    first, *others = group.ranks(count, "--out", "out", "--json")
    assert [run.code for run in (first, *others)] == [0] * count, [run.err for run in (first, *others)]
    assert json.loads(first.out)["evaluations"][0]["pictures"] == PICTURES
    assert [(run.out, run.err) for run in others] == [("", "")] * (count - 1)
    assert contents(out) == whole


def test_torchrun_starts_them(group: Group, out: Path, whole: dict[str, bytes]) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "converter",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, *ARGUMENTS, "--out", "out"],
        cwd=group.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("mine: 6 pictures, protocol official") == 1
    assert contents(out) == whole


def test_more_processes_than_pictures(group: Group, out: Path) -> None:
    runs = group.ranks(3, "--out", "out", "--limit", 2)
    assert [run.code for run in runs] == [0, 0, 0], [run.err for run in runs]
    alone = group.run("--out", "alone", "--limit", 2)
    assert alone.code == 0
    assert contents(out) == contents(group.folder / "alone")
    shutil.rmtree(group.folder / "alone")


ENDS = {
    "exits": ("os._exit(3)", 3, ""),
    "raises": (
        "from converter.errors import ModelError; raise ModelError('the model computes NaN')", 7,
        "error: the model computes NaN\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
def test_the_end_of_one_process_ends_all_soon_and_one_process_goes_on(
    how: str, group: Group, out: Path, whole: dict[str, bytes]
) -> None:
    what, code, said = ENDS[how]
    begun = time.monotonic()
    first, ended, third = group.ranks(3, "--out", "out", before={1: at_picture(2, what)})
    assert time.monotonic() - begun < SOON
    assert (ended.code, ended.err) == (code, said)
    gone = "error: another process of this run ended early; what it says itself is the reason.\n"
    assert (third.code, third.out, third.err) == (7, "", gone)
    assert first.code == 7
    assert first.err == f"what is done is kept in out; the same command goes on\n{gone}"
    assert kept(out) == 2  # those of the first process: what others have not handed over is lost
    goes_on(group, out, whole)


def test_what_one_process_did_several_go_on_with(group: Group, out: Path, whole: dict[str, bytes]) -> None:
    assert group.run("--out", "out", before=at_picture(3, "os.kill(os.getpid(), 9)")).code == -9
    runs = group.ranks(2, "--out", "out")
    assert [run.code for run in runs] == [0, 0], [run.err for run in runs]
    assert contents(out) == whole


def test_an_error_of_the_first_process_before_it_begins_ends_all(group: Group, out: Path) -> None:
    out.mkdir()
    (out / "other.txt").write_text("x")
    runs = group.ranks(2, "--out", "out", "--json")
    assert [run.code for run in runs] == [6, 7]
    assert json.loads(runs[0].out)["error"]["message"] == "out is not empty; --force writes into it"
    assert runs[1].out == ""


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment(seed: int, group: Group, out: Path, whole: dict[str, bytes]) -> None:
    chance = random.Random(seed)
    for _ in range(2):
        run = group.start(
            "--out", "out", "--threads", chance.choice([1, 2]), *["--force"] * (not kept(out) and out.exists())
        )
        time.sleep(chance.uniform(0.02, 0.6))
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait().code in (-signal.SIGKILL, 0)
    if out.exists() and JOURNAL not in contents(out):  # it was faster
        assert contents(out) == whole
        return
    goes_on(group, out, whole)


@pytest.mark.parametrize(("number", "when"), [(1, "before"), (2, "after"), (3, "half"), (PICTURES, "after")])
def test_killed_as_a_result_is_kept(number: int, when: str, group: Group, out: Path, whole: dict[str, bytes]) -> None:
    """Before it is written, after that, or with half of it."""
    kill = f"""
import os
from converter.writing import journal
from converter.writing.journal import Journal
add, write, count = Journal.add, journal.write_at, [0]
def half(descriptor, lines, end):
    write(descriptor, lines[:40], end)
    os.kill(os.getpid(), 9)
def stop(self, *results):
    count[0] += 1
    if count[0] == {number}:
        if {when!r} == "half":
            journal.write_at = half
        if {when!r} == "before":
            os.kill(os.getpid(), 9)
    add(self, *results)
    if count[0] == {number}:
        os.kill(os.getpid(), 9)
Journal.add = stop
"""
    assert group.run("--out", "out", before=kill).code == -signal.SIGKILL
    lines = (out / JOURNAL).read_bytes().splitlines(keepends=True)[1:]
    assert len([line for line in lines if line.endswith(b"\n")]) == number - (when != "after")
    if when == "half":
        assert len(lines[-1]) == 40
        run = group.run("--out", "out")
        assert (run.code, contents(out)) == (0, whole)
    else:
        goes_on(group, out, whole)


@pytest.mark.parametrize("name", ["predictions.json", JOURNAL])
def test_killed_as_files_are_written(name: str, group: Group, out: Path, whole: dict[str, bytes]) -> None:
    """Once all pictures are done: the rest is made of what is kept."""
    kill = f"""
import os
from pathlib import Path
from converter.writing import results
real, unlink = results.write_whole, Path.unlink
def stop(path, *rest, **how):
    real(path, *rest, **how)
    if path.name == {name!r}:
        os.kill(os.getpid(), 9)
def stop_too(path, **how):
    if path.name == {name!r}:
        os.kill(os.getpid(), 9)
    unlink(path, **how)
results.write_whole, Path.unlink = stop, stop_too
"""
    assert group.run("--out", "out", before=kill).code == -signal.SIGKILL
    assert kept(out) == PICTURES
    goes_on(group, out, whole)


@pytest.mark.parametrize(
    ("stop", "reaches"), [("INT", "it"), ("INT", "its readers, too"), ("TERM", "its readers, too"), ("HUP", "it")]
)
def test_a_signal_ends_it_and_it_says_what_is_kept(
    stop: str, reaches: str, group: Group, out: Path, whole: dict[str, bytes]
) -> None:
    send = "os.kill(os.getpid(), " if reaches == "it" else "os.killpg(0, "
    begin = "import os; os.setpgid(0, 0)\n"
    run = group.run("--out", "out", "--threads", 1, before=begin + at_picture(4, f"{send}signal.SIG{stop})"))
    assert run.code == {"INT": 130, "TERM": 143, "HUP": 129}[stop]
    word = "interrupted" if stop == "INT" else "terminated"
    assert run.err == f"{word}; what is done is kept in out; the same command goes on\n"
    assert run.out == ""
    assert kept(out) == 3
    goes_on(group, out, whole)


def test_a_signal_before_anything_is_done_or_without_a_folder_says_so(group: Group, out: Path) -> None:
    interrupt = at_picture(1, "os.kill(os.getpid(), signal.SIGINT)")
    assert group.run("--out", "out", before=interrupt).err == "interrupted; nothing is done yet\n"
    assert not out.exists()
    assert group.run(before=interrupt).err == "interrupted; nothing is kept; with --out FOLDER it is\n"


def test_a_signal_to_several_processes(group: Group, out: Path, whole: dict[str, bytes]) -> None:
    """As torchrun passes it on."""
    terminate = at_picture(3, "os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)")
    runs = group.ranks(2, "--out", "out", before={0: terminate, 1: terminate})
    assert [run.code for run in runs] == [143, 143], [run.err for run in runs]
    assert runs[0].err == "terminated; what is done is kept in out; the same command goes on\n"
    assert runs[1].err.count("\n") == 1
    goes_on(group, out, whole)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_reader_that_is_killed_is_told_with_what_to_do(
    threads: int, group: Group, out: Path, whole: dict[str, bytes]
) -> None:
    """As by a system that is out of memory."""
    kill = (
        "import multiprocessing; [os.kill(child.pid, 9) for child in multiprocessing.active_children()]; time.sleep(1)"
    )
    run = group.run("--out", "out", "--threads", threads, before=at_picture(5, kill))
    assert run.code == 7, run.err
    told, error = run.err.splitlines()
    assert told == "what is done is kept in out; the same command goes on"
    assert error.startswith("error: a process that reads pictures ended: DataLoader worker (pid")
    assert error.endswith("Give fewer --workers.")
    goes_on(group, out, whole)


def test_a_full_disk_keeps_what_is_done(group: Group, out: Path, whole: dict[str, bytes]) -> None:
    full = "from converter.writing import journal; journal.write_at = full"
    define = "import errno, os\ndef full(*_):\n    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
    run = group.run("--out", "out", "--threads", 1, before=define + at_picture(4, full))
    assert run.code == 6
    assert "what is done is kept in out" in run.err
    assert "No space left on device; free some space" in run.err
    goes_on(group, out, whole)


def test_a_second_run_into_one_folder_is_refused(group: Group, out: Path, whole: dict[str, bytes]) -> None:
    wait = at_picture(3, "open('waits', 'w'); [time.sleep(0.01) for _ in iter(lambda: os.path.exists('waits'), False)]")
    first = group.start("--out", "out", "--threads", 1, before=wait)
    flag = group.folder / "waits"
    while not flag.exists() and first.is_alive():
        time.sleep(0.01)
    second = group.start("--out", "out", at=1).wait()
    forced = group.start("--out", "out", "--force", at=1).wait()
    flag.unlink()
    assert first.wait().code == 0
    for run in (second, forced):
        assert run.code == 6
        assert f"out/{JOURNAL}: another run is at work on it. Wait for its end, or choose another folder." in run.err
    assert contents(out) == whole
