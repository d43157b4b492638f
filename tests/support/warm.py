"""Programs that have imported everything already: what a thousand runs that are killed need, one after the other.

A server process imports modules once and forks one child for each run. The child waits until it is released, so that
strace can be attached to it before its first step: `Warm.start`, `Run.traced`, `Run.release`, `Run.wait`. It runs a
program as a fresh interpreter would, to the very end: what it does when it exits is part of what is tested.

This file is also that server: `python -m tests.support.warm MODULE ...`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests import ROOT

_LONG = 60.0  # seconds after which a program is taken to hang
HANGS = -1000  # the exit status of one that had to be killed for that
_CALL = re.compile(r"^(\d+) +(?:\d+\.\d+ )?([a-z_0-9]+)\(")


class Warm:
    """The server. `modules` are imported by it; `environment` is all that its programs find in theirs."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            text=True,
        )

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_LONG)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(self, program: str, arguments: Sequence[str], folder: Path, **environment: str) -> Run:
        """A child about to run `program` (`module:function`) with arguments in `folder`; there its output goes."""
        request = {
            "program": program,
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": environment,
        }
        return Run(self, folder, self._ask(request)["pid"])

    def _ask(self, request: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@dataclass
class Run:
    """One run of a program; `code` is its exit status, negative for a signal, once it ended."""

    warm: Warm
    folder: Path
    pid: int
    code: int | None = None
    _strace: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def traced(self, *options: str) -> None:
        """Attach strace, with threads and children, before the program begins."""
        tracer = subprocess.Popen(["strace", "-f", "-qq", *options, "-p", str(self.pid)], stderr=subprocess.DEVNULL)
        self._strace.append(tracer)
        assert _attached(self.pid, tracer), "strace cannot attach to a process here"

    def release(self) -> None:
        """Let it begin."""
        self.warm._ask("go")

    def wait(self, seconds: float = _LONG) -> int:
        """Its exit status; HANGS if it did not end in time."""
        self.code = int(self.warm._ask({"wait": seconds})["code"])
        for tracer in self._strace:
            tracer.wait(_LONG)
        return self.code

    @property
    def said(self) -> str:
        """What it wrote to standard error."""
        return (self.folder / "stderr").read_text()

    @property
    def told(self) -> str:
        """What it wrote to standard output."""
        return (self.folder / "stdout").read_text()

    def is_alive(self) -> bool:
        """Whether it still runs; False for a zombie."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False


def why_no_strace() -> str | None:
    """Why nothing can be injected into system calls here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        command = ["strace", "-qq", "-o", os.devnull, "-e", "inject=getpid:retval=1", "-p", str(sleeper.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            is_attached = _attached(sleeper.pid, tracer)
            sleeper.kill()
            said = tracer.communicate()[1].strip()
    return None if is_attached else f"strace cannot attach to a process here: {said}"


def _attached(pid: int, tracer: subprocess.Popen[Any]) -> bool:
    """Whether it traces the process, once that is decided."""
    status = Path(f"/proc/{pid}/status")
    while "TracerPid:\t0\n" in status.read_text():
        if tracer.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def calls(log: Path, begin: str) -> list[tuple[str, int, bool]]:
    """Each system call that strace can stop at: its name, its `when=`, and whether `begin` was called by then.

    Of a log of `strace -f -o`. strace counts by threads: which one comes first to a number is chance.
    """
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, int], bool] = {}
    has_begun = False
    for match in filter(None, map(_CALL.match, log.read_text().splitlines())):
        thread, name = match.groups()
        counts[thread, name] += 1
        has_begun = has_begun or name == begin
        found.setdefault((name, counts[thread, name]), has_begun)
    return [(name, number, has_begun) for (name, number), has_begun in found.items()]


# The server


def _serve() -> None:
    """Read requests from standard input until it ends. Returns only in a child, which is then to run its program."""
    requests = iter(sys.stdin.readline, "")
    for line in requests:
        request = json.loads(line)
        readable, writable = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(writable)
            _become(request)
            select.select([readable], [], [])  # no read: whether strace sees one that it interrupts is chance
            os.close(readable)
            return
        os.close(readable)
        _answer(pid=pid)
        for line in requests:
            what = json.loads(line)
            if what == "go":
                with contextlib.suppress(BrokenPipeError):  # killed while it waited
                    os.write(writable, b"g")
                os.close(writable)
                _answer()
            else:
                _answer(code=_ended(pid, what["wait"]))
                break
    os._exit(0)


def _answer(**content: int) -> None:
    print(json.dumps(content), flush=True)


def _ended(pid: int, seconds: float) -> int:
    descriptor = os.pidfd_open(pid)
    is_over = bool(select.select([descriptor], [], [], seconds)[0])
    os.close(descriptor)
    if not is_over:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if is_over else HANGS


def _become(request: Mapping[str, Any]) -> None:
    """Be the process that was asked for, with streams, folder, environment and arguments of its own."""
    os.chdir(request["folder"])
    for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(request["environment"])
    module, _, function = request["program"].partition(":")
    sys.argv = [function, *request["arguments"]]
    globals()["program"] = getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child that collects would copy every page
    _serve()
    sys.exit(globals()["program"]())
