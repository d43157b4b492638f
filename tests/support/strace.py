"""strace: attached to a process that waits, told to stop a system call, and what it wrote read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_CALL = re.compile(r"^(?:(\d+) +)?(?:\d+\.\d+ )?(\w+)\(")


def attach(process: int, trace: Path, options: Sequence[str]) -> subprocess.Popen[str]:
    """Have the calls of a process written to a file, from now on; RuntimeError where the system does not let it."""
    command = ["strace", "-o", str(trace), *options, "-p", str(process)]
    strace = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    if "attached" not in (said := strace.stderr.readline()):
        raise RuntimeError(f"{said}{strace.communicate()[1]}".strip())
    return strace


def inject(call: str, what: str, number: int) -> list[str]:
    """The options that make something happen at a call: `signal=SIGINT`, `error=EIO`. Each thread counts its own."""
    return ["-e", f"inject={call}:{what}:when={number}"]


@dataclass(frozen=True, slots=True)
class Line:
    """A call as it begins: by which thread ('' without -f), and the how manieth of that name it is there."""

    thread: str
    name: str
    number: int
    text: str


def lines(trace: str) -> Iterator[Line]:
    """Each call that strace wrote, numbered as in `inject`."""
    counts: Counter[tuple[str, str]] = Counter()
    for text in trace.splitlines():
        if match := _CALL.match(text):
            thread, name = match[1] or "", match[2]
            counts[thread, name] += 1
            yield Line(thread, name, counts[thread, name], text)


def why_not() -> str | None:
    """Why nothing can be injected into system calls here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed: no system call can be stopped or made to fail"
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            with attach(sleeper.pid, Path(os.devnull), inject("getpid", "retval=1", 1)) as strace:
                sleeper.kill()
                strace.communicate()
        except RuntimeError as error:
            return f"strace may not trace a process here: {error}"
        finally:
            sleeper.kill()
    return None
