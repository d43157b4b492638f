"""Runs of a program against the stand-in of the Hub that are stopped at one point: a request, or a system call."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random

from tests.support.hub.server import HubServer
from tests.support.program import Run
from tests.support.strace import inject, lines

SIGNALS = {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}
STOPPED = {"kill": -signal.SIGKILL, "int": 130, "term": 143}  # exit states
_BEFORE = 20  # of so many calls before the first connection, one is stopped at
_PATIENCE = 0.5  # seconds that the Hub waits for a client to end that was sent a signal
_SIGNAL = re.compile(r" (--- SIG(INT|TERM) |\+\+\+ killed by SIGKILL)")
# system calls on files, on connections and between threads; not those for memory and time
CALLS = (
    "socket", "connect", "setsockopt", "getsockopt", "sendto", "write", "recvfrom", "read", "poll", "openat", "close",
    "fsync", "rename", "link", "symlink", "unlink", "mkdir", "chmod", "fchmod", "flock", "fcntl", "ftruncate", "futex",
    "getdents64", "exit", "exit_group", "preadv2", "pread64", "newfstatat", "lseek", "clone3", "rt_sigaction",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Where a run is stopped, and how: `kill`, `int`, `term`, or `cut`, which is the connection alone.

    `moment` is one of `HubServer.watch`, of request `number`, or `call`: at the system call `call`, for the number-th
    time. `acts`: whether the Hub does what it received.
    """

    how: str
    moment: str
    number: int
    acts: bool = True
    call: str = ""

    def __str__(self) -> str:
        at = f"{self.call} {self.number}" if self.call else f"request {self.number} {self.moment}"
        return f"{self.how} at {at}" + ("" if self.acts else ", lost")


@dataclass
class Watch:
    """What the Hub calls with each moment of each request; it stops `run` at its point."""

    hub: HubServer
    run: Run
    point: Point | None
    fired: list[float] = field(default_factory=list)  # when it was sent a signal, or cut off
    _commit: float = inf  # when a commit was asked for
    _open: set[int] = field(default_factory=set)

    def __call__(self, moment: str, number: int) -> bool:
        if moment == "received":
            self._open.add(number)
            if self.hub.count("commit") and self._commit == inf:
                self._commit = time.time()
        elif moment == "over":
            self._open.discard(number)
        point = self.point
        if point is None or point.call or self.fired or (moment, number) != (point.moment, point.number):
            return True
        self.fired.append(time.time())
        if point.how in SIGNALS:
            os.kill(self.run.pid, SIGNALS[point.how])
            until = time.monotonic() + _PATIENCE
            while self.run.is_alive() and time.monotonic() < until:
                time.sleep(0.002)
        return point.acts and point.how != "cut"

    @property
    def is_early(self) -> bool:
        """Whether it was stopped before any commit was asked for."""
        return bool(self.fired) and self.fired[0] < self._commit

    @property
    def is_ended_again(self) -> bool:
        """Whether it was on its way out, and another signal ended it at once: several threads came to that call."""
        assert self.point is not None
        return len(self.fired) > 1 and self.run.code == -SIGNALS.get(self.point.how, 0)

    def settle(self) -> None:
        """Wait until the Hub has done all that it was asked."""
        until = time.monotonic() + 10
        while self._open and time.monotonic() < until:
            time.sleep(0.002)


def carry_out(hub: HubServer, run: Run, point: Point | None) -> Watch:
    """Let a run go, to its point."""
    watch = hub.watch = Watch(hub, run, point)
    if point is not None and point.call:
        stop = inject(point.call, f"signal={SIGNALS[point.how].name}", point.number)
        run.traced("-f", "-ttt", "-e", f"trace={point.call}", *stop)
    run.release()
    run.wait()
    watch.settle()
    if point is not None and point.call:
        watch.fired += [float(line.split()[1]) for line in run.trace.splitlines() if _SIGNAL.search(line)]
    return watch


def request_points(
    requests: Sequence[tuple[str, str, str]], hows: Iterable[str] = (*SIGNALS, "cut")
) -> Iterator[Point]:
    """Every moment of every request, and each request lost on its way."""
    for number, (name, _, _) in enumerate(requests, start=1):
        halves = ["half"] if name in ("download", "resolve") else []
        for how in hows:
            for moment in ("received", "done", *halves, "answered"):
                if how != "cut" or moment != "answered":
                    yield Point(how, moment, number, acts=how != "cut" or moment != "received")
            if how != "cut":
                yield Point(how, "received", number, acts=False)


def call_points(trace: str, hows: Iterable[str] = ("kill", "int")) -> Iterator[Point]:
    """Every system call of a run that `strace -f` wrote down, of those in CALLS, from its first connection on; some
    before that.

    Threads that come to the same number of the same call make one point: which one comes first is chance.
    """
    found: dict[tuple[str, int], bool] = {}  # whether it had a connection by then
    has_begun = False
    for line in lines(trace):
        has_begun = has_begun or line.name == "socket"
        if line.name in CALLS:
            found.setdefault((line.name, line.number), has_begun)
    before = [call for call, begun in found.items() if not begun][::_BEFORE]
    for name, number in (*before, *(call for call, begun in found.items() if begun)):
        yield from (Point(how, "call", number, call=name) for how in hows)


def sample(points: Iterable[Point], count: int | None) -> list[Point]:
    """So many of them, from all over; None: all."""
    listed = list(points)
    return listed if count is None else Random(0).sample(listed, min(count, len(listed)))


@dataclass
class Tally:
    """What was seen of many points: a table for people, and what should not have been."""

    title: str
    seen: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, point: Point, state: str, code: int | None, problems: Iterable[str], said: str = "") -> None:
        self.seen[point.how, "hangs" if code is None else str(code), state] += 1
        self.wrong += [f"{point}: {problem} (exit {code}, {state}): {said[-300:]!r}" for problem in problems]

    def __str__(self) -> str:
        total = sum(self.seen.values())
        lines = [f"\n{self.title}: {total} points, {len(self.wrong)} wrong"]
        lines += [
            f"  {how:4}  exit {code:>5}  {state:20} {count:5}"
            for (how, code, state), count in sorted(self.seen.items())
        ]
        lines += [f"  {note}: {count}" for note, count in sorted(self.notes.items())]
        return "\n".join(lines + self.wrong)
