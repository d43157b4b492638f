"""The harness can fail: a commit that is wrong on purpose is found, for what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
import torch

from tests.faults.calls import Call, Fault, calls_of_commit, errors, interrupts, kills
from tests.faults.campaign import workplace
from tests.faults.disk import Reference, Seen, look, reads_as
from tests.faults.injection import Workplace
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.support.jobs import Listing
from tests.support.program import Program
from tests.support.strace import lines

_OVER_A_FILE = next(scenario for scenario in SCENARIOS if scenario.name == "file .safetensors, --force")
_OVER_A_PAIR = next(scenario for scenario in SCENARIOS if scenario.name == "pair, --force")


@pytest.fixture(scope="module")
def place(strace: None) -> Iterator[Workplace]:
    with workplace() as place:
        yield place


@pytest.mark.parametrize(
    ("program", "scenario", "faults", "wrong"),
    [
        ("in_place", _OVER_A_FILE, kills, "mixed"),
        ("late_error", _OVER_A_PAIR, kills, "mixed"),
        ("late_error", _OVER_A_FILE, interrupts, "leftover: .out.safetensors.partial"),
        ("late_error", _OVER_A_FILE, errors, "wrong exit: 1"),
        ("silent", _OVER_A_FILE, errors, "wrong exit: 0"),
    ],
)
def test_a_commit_that_is_wrong_is_found(
    program: str,
    scenario: Scenario,
    faults: Callable[[Iterable[Call]], list[Fault]],
    wrong: str,
    place: Workplace,
) -> None:
    place.instead = f"tests.faults.broken:{program}"
    outcomes = (place.inject(scenario, fault) for fault in faults(place.calls(scenario)))
    assert any(wrong in outcome.wrong for outcome in outcomes if outcome is not None)


def test_a_run_waits_for_strace_and_ends_in_time(strace: None) -> None:
    with Program() as program:
        run = program.start("--version")
        run.traced("-f")
        run.release()
        assert run.wait().code == 0
        names = [line.name for line in lines(run.trace)]
        # it waits in a call that strace sees or comes too late for; the next one it sees in any case
        assert "close" in names[:2]
        assert names[-1] == "exit_group"
        assert program(program="signal:pause", timeout=0.2).code is None


def test_the_disk_is_compared_byte_by_byte() -> None:
    old: Listing = {"user": b"u", "out": b"1", "more": b"1"}
    new: Listing = {"user": b"u", "out": b"2"}
    reference = Reference(old, new, None, {})
    assert look(old, reference) == Seen("old", ())
    assert look(new, reference) == Seen("new", ())
    assert look({**new, ".x": None, ".x/y": b""}, reference) == Seen("new", (".x",))
    assert look({**new, "more": b"1"}, reference) == Seen("between", ())
    assert look({**old, "out": b"12"}, reference) == Seen("torn", ())
    assert look({"out": b"2"}, reference) == Seen("between", ())


def test_tensors_are_compared_bit_by_bit() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    reference = Reference({}, {}, {"a": zero}, {"a": nan})
    assert reads_as({"a": nan.clone()}, reference) == "new"
    assert reads_as({"a": zero.clone()}, reference) == "old"
    assert reads_as({"a": -zero}, reference) is None
    assert reads_as({"a": nan, "b": nan}, reference) is None
    assert reads_as(None, reference) is None


def test_a_commit_begins_where_something_is_made_and_counts_each_thread() -> None:
    trace = """\
7  newfstatat(AT_FDCWD, "d/out", 0x7ffc, 0) = 0
7  openat(AT_FDCWD, "in/new.pth", O_RDONLY) = 3
7  openat(AT_FDCWD, "d", O_RDWR|O_TMPFILE, 0666) = 4
7  mmap(NULL, 8392704) = 0x7f
8  pwrite64(4, "x", 1, 0 <unfinished ...>
9  pwrite64(4, "y", 1, 1) = 1
8  <... pwrite64 resumed>) = 1
9  pwrite64(4, "z", 1, 2) = 1
7  linkat(6, "4", AT_FDCWD, "d/out", AT_SYMLINK_FOLLOW) = 0
7  close(3) = 0
7  close(4) = 0
7  +++ exited with 0 +++
"""
    calls = calls_of_commit(trace, "d")
    assert [(call.name, call.number, call.in_thread, call.is_late) for call in calls] == [
        ("openat", 2, False, False),
        ("linkat", 1, False, False),
        ("close", 1, False, True),
        ("close", 2, False, True),
        ("pwrite64", 1, True, False),
        ("pwrite64", 2, True, False),
    ]
    assert {(fault.call.name, fault.call.number) for fault in errors(calls)} == {
        ("openat", 2), ("linkat", 1), ("close", 2), ("pwrite64", 1), ("pwrite64", 2)
    }  # fmt: skip
