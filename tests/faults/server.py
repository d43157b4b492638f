"""A process that has imported the program, and forks for each request one that runs it, under strace if asked to.

To start Python and import everything takes half a second, and several under strace; a fork takes milliseconds. The
forked process waits until strace has attached to it, and then does what the console script does, to the last call:
the interpreter is shut down, too.

    python -m tests.faults.server    one request in JSON on each line of stdin, one answer on each of stdout
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_SECONDS = 10  # a run takes less than one


@dataclass(frozen=True, slots=True)
class Request:
    """`arguments` of `converter`, run in `folder`. `strace`: its options, if it is to be attached to the program.

    `without_tmpfile`: as on a system whose Python has no O_TMPFILE. `instead`: what is run in place of the program, as
    `module:function`, for a harness that is tested itself. `warms_up`: it is run here, not in a process of its own, so
    that whatever is imported late or cached is there for those that follow.
    """

    folder: str
    arguments: list[str]
    strace: list[str] | None = None
    without_tmpfile: bool = False
    instead: str | None = None
    warms_up: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """`code`: the exit code, negative for a signal, None where the program hung. `trace`: what strace wrote."""

    code: int | None
    output: str
    errors: str
    trace: str = field(repr=False)


def main() -> None:
    """Serve until stdin ends."""
    # a shell lets what it starts in the background ignore Ctrl-C, and nohup the end of the terminal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    requests, answers = sys.stdin, sys.stdout
    for line in requests:
        request = Request(**json.loads(line))
        gc.freeze()  # so that the forked one does not copy all memory by looking for garbage in it
        answer = _serve(request)
        if answer is None:  # the forked process: nothing of the server's is left to do on its way out
            return
        answers.write(json.dumps(asdict(answer)) + "\n")
        answers.flush()


def _warm_up(request: Request) -> None:
    before = os.getcwd()
    os.chdir(request.folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from converter.cli import main as command

        with contextlib.suppress(SystemExit):
            command(request.arguments)
    os.chdir(before)


def _serve(request: Request) -> Answer | None:
    if request.warms_up:
        _warm_up(request)
        return Answer(0, "", "", "")
    paths = [Path(request.folder) / name for name in ("stdout", "stderr", "trace")]
    for path in paths:
        path.unlink(missing_ok=True)
    waiting, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        _become(request, waiting)
        return None
    os.close(waiting)
    watched = _watch(child, request.strace, paths[2]) if request.strace is not None else None
    os.write(go, b"!")
    os.close(go)
    code = _ended(child)
    if watched is not None:
        watched.communicate()
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in paths]
    return Answer(code, *texts)


def _become(request: Request, waiting: int) -> None:
    """Turn into the program, as it is when its console script begins."""
    os.chdir(request.folder)
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "stdout", None), (2, "stderr", None)):
        opened = os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND if flags is None else flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv[:] = ["converter", *request.arguments]
    if request.without_tmpfile:
        del os.O_TMPFILE
    select.select([waiting], [], [])  # no read: whether strace sees one that it interrupts is chance
    os.close(waiting)
    if request.instead:
        import importlib

        module, _, function = request.instead.partition(":")
        getattr(importlib.import_module(module), function)()
    else:
        from converter.cli import converter_main

        converter_main()


def _watch(process: int, options: list[str], trace: Path) -> subprocess.Popen[Any]:
    command = ["strace", "-o", str(trace), *options, "-p", str(process)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert strace.stderr is not None
    said = strace.stderr.readline()
    if "attached" not in said:
        os.kill(process, signal.SIGKILL)
        raise RuntimeError(f"strace did not attach: {said}{strace.stderr.read()}")
    return strace


def _ended(process: int) -> int | None:
    descriptor = os.pidfd_open(process)
    hangs = not select.select([descriptor], [], [], _SECONDS)[0]
    os.close(descriptor)
    if hangs:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return None if hangs else os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
