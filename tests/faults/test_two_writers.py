"""Two processes that write to one destination, from two sources: what is there in the end is of one of them."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.jobs import FORMS, Jobs, listing, make_jobs
from tests.support.mounts import Mount, mounted
from tests.support.program import Program, Run

ROUNDS = 30 if os.environ.get("FAULTS") == "all" else 2  # of each form, with --force and without
Programs = tuple[Program, Program]
FORM = pytest.mark.parametrize("form", FORMS)
FORCE = pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
# {first} is done after the first bytes; when all are written, it goes on at the time {moment}
TIMED = """
import contextlib, importlib, os, signal, threading, time
command = importlib.import_module("converter.cli.convert")

@contextlib.contextmanager
def progress(total, description):
    lock, written = threading.Lock(), [0]
    def advance(count):
        with lock:
            if not written[0]:
                {first}
            written[0] += count
            if written[0] >= total:
                time.sleep(max(0.0, {moment} - time.monotonic()))
    yield advance

command.progress = progress
"""
NAMED = "import os; del os.O_TMPFILE\n"  # as on a file system without files that have no name


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    with Program() as one, Program() as other:
        yield one, other


@pytest.fixture(scope="module")
def jobs(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return make_jobs(tmp_path_factory.mktemp("jobs"), programs[0])


def timed(moment: float = 0.0, first: str = "pass") -> str:
    return TIMED.format(moment=moment, first=first)


def race(form: str, force: bool, programs: Programs, jobs: Jobs, place: Path, before: str, late: float) -> list[Run]:
    """Both at once; the second gives its result a name by `late` seconds later than the first."""
    moment = time.monotonic() + 0.4

    def write(seed: int) -> Run:
        arguments = jobs.arguments(form, seed, force=force)
        return programs[seed](*arguments, cwd=place, before=before + timed(moment + late * seed))

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(write, (0, 1)))


def judge(force: bool, ended: list[Run], there: int | None) -> None:
    """`there`: which result is on the disk."""
    codes = {done.code for done in ended}
    assert codes in ({0}, {0, 6}) if force else codes == {0, 6}, ended
    assert there is not None
    assert ended[there].code == 0, ended
    for done in ended:
        if done.code == 6:
            assert re.fullmatch(
                r"error: out[^\n]* (exists; --force replaces it|[^\n]*appeared meanwhile[^\n]*)\n", done.err
            )


@FORM
@FORCE
def test_the_result_is_of_one(form: str, force: bool, programs: Programs, jobs: Jobs, tmp_path: Path) -> None:
    chance = random.Random(form + str(force))
    for number in range(ROUNDS):
        place = tmp_path / str(number)
        place.mkdir()
        late = chance.choice([0.0, chance.uniform(0, 0.003), chance.uniform(0, 0.2)])
        ended = race(form, force, programs, jobs, place, NAMED * (number % 2), late)
        judge(force, ended, jobs.seed(form, place))


@pytest.fixture(scope="module")
def exfat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Programs]]:
    with (
        mounted("exfat", tmp_path_factory.mktemp("exfat")) as mount,
        Program(prefix=mount.prefix) as one,
        Program(prefix=mount.prefix) as other,
    ):
        yield mount, (one, other)


@pytest.mark.parametrize("form", FORMS)
def test_the_result_is_of_one_where_there_are_no_links(form: str, exfat: tuple[Mount, Programs], jobs: Jobs) -> None:
    """There a rename would replace what is there: nothing but a lock keeps two writers apart."""
    mount, programs = exfat
    for number in range(max(2, ROUNDS // 2)):
        place = Path(f"{form}{number}")
        (mount.seen / place).mkdir()
        ended = race(form, False, programs, jobs, mount.path / place, "", 0.0)
        judge(False, ended, jobs.seed(form, mount.seen / place))


@FORM
def test_one_that_is_killed_meanwhile(form: str, programs: Programs, jobs: Jobs, tmp_path: Path) -> None:
    chance = random.Random(form)
    for number in range(ROUNDS):
        place = tmp_path / str(number)
        place.mkdir()
        named = NAMED * (number % 2)
        start = time.monotonic()
        lifetime = 0.4 + chance.uniform(-0.01, 0.02)  # to die about when both give their results a name

        def write(
            seed: int, place: Path = place, named: str = named, start: float = start, lifetime: float = lifetime
        ) -> Run:
            arguments = jobs.arguments(form, seed, force=True)
            life = 20 if seed else max(0.0, lifetime - (time.monotonic() - start))
            return programs[seed](*arguments, cwd=place, before=named + timed(start + 0.4), timeout=life)

        with ThreadPoolExecutor(2) as pool:
            ended = list(pool.map(write, (0, 1)))
        assert ended[0].code in (0, None), ended
        assert ended[1].code == 0, ended
        again = programs[1](*jobs.arguments(form, 1, force=True), cwd=place)
        assert again.code == 0, again
        assert jobs.seed(form, place) == 1


@FORM
def test_a_slow_one_is_not_disturbed(form: str, programs: Programs, jobs: Jobs, tmp_path: Path) -> None:
    place, gate = tmp_path / "place", tmp_path / "gate"
    place.mkdir()
    wait = f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)"

    def slow() -> Run:
        return programs[0](*jobs.arguments(form, 0, force=True), cwd=place, before=NAMED + timed(first=wait))

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(slow)
        while not listing(place):
            assert not first.done()
            time.sleep(0.01)
        for seed in (1, 0, 1):
            done = programs[1](*jobs.arguments(form, seed, force=True), cwd=place, before=NAMED)
            assert done.code == 0, done
        gate.touch()
        assert first.result().code == 0, first.result()
    assert jobs.seed(form, place) == 0


@FORM
@FORCE
def test_a_dead_one_is_cleaned_up(form: str, force: bool, programs: Programs, jobs: Jobs, tmp_path: Path) -> None:
    if force:
        jobs.put(form, 0, tmp_path)
    before = listing(tmp_path)
    arguments = jobs.arguments(form, 1, force=force)
    die = "os.kill(os.getpid(), signal.SIGKILL)"
    assert programs[0](*arguments, cwd=tmp_path, before=NAMED + timed(first=die)).code == -9
    assert len(listing(tmp_path)) > len(before)
    assert programs[1](*arguments, cwd=tmp_path).code == 0
    assert jobs.seed(form, tmp_path) == 1


@pytest.mark.parametrize("step", range(1, 9))
def test_one_that_is_killed_while_it_removes_the_old_folder(
    step: int, programs: Programs, jobs: Jobs, tmp_path: Path
) -> None:
    """What is left of the old folder is removed by the next run, however little of it is left to tell what it was."""
    jobs.put("shards", 0, tmp_path)
    arguments = jobs.arguments("folder", 1, force=True)
    killing = f"""
import os, signal
from pathlib import Path
unlink, done = os.unlink, []
def counted(path, *rest, **named):
    unlink(path, *rest, **named)
    done.append(path)
    if len(done) == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
os.unlink = counted
"""
    killed = programs[0](*arguments, cwd=tmp_path, before=killing)
    assert killed.code == -9
    assert programs[1](*arguments, cwd=tmp_path).code == 0
    assert jobs.seed("folder", tmp_path) == 1
