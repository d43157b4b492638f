"""The program as a user starts it, many times a second: one process imports it once, and forks for every run.

To start Python and import everything takes half a second, several under strace; a fork takes milliseconds. The forked
process is a fresh one otherwise: folder, streams and limits are its own, and at its end the interpreter is shut down,
for what it does then is part of what is tested. It waits until it is released, so that strace can be attached before
its first step.

This file is also that server: `python -m tests.support.program MODULE ...` imports the modules, reads a request in JSON
from each line of stdin, and answers each on stdout.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests import ROOT
from tests.support import strace
from tests.support.schemas import problem_of_run

PROGRAM = "converter.cli:converter_main"
SECONDS = 60.0  # after which a run is taken to hang
# what a conversion imports, some of it only once it has begun
CONVERTS = (
    "converter.cli", "converter.cli.convert", "converter.cli.sources", "converter.planning.formats",
    "converter.writing.convert", "importlib.metadata", "jsonschema", "multiprocessing.synchronize", "tqdm",
)  # fmt: skip


class Program:
    """A context with a server, which carries out one run after the other.

    `modules` are imported by it. `environment`: what its runs find in theirs. `prefix`: the command that starts it
    elsewhere or as somebody else, as nsenter and setpriv do.
    """

    def __init__(
        self,
        modules: Sequence[str] = CONVERTS,
        environment: Mapping[str, str] = os.environ,
        prefix: Sequence[str] = (),
    ) -> None:
        self._files = tempfile.TemporaryDirectory(prefix="program")
        self.files = Path(self._files.name)
        # -P: nothing is imported from the folder of a run
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-P", "-m", "tests.support.program", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment, "PYTHONPATH": str(ROOT)},
            text=True,
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate(timeout=30)  # which ends its stdin
        self._files.cleanup()

    def __call__(self, *arguments: object, timeout: float = SECONDS, **how: Any) -> Run:
        """Run it, as `start` says, to its end."""
        run = self.start(*arguments, **how)
        run.release(timeout)
        return run.wait()

    def start(
        self,
        *arguments: object,
        cwd: Path | str = "/",
        stdin: str = os.devnull,
        before: str = "",
        program: str = PROGRAM,
    ) -> Run:
        """A process about to run `converter` with these arguments.

        `before`: Python that it executes first. `program`: what it runs instead, as `module:function`.
        """
        request = {"arguments": list(map(str, arguments)), "cwd": str(cwd), "stdin": stdin, "before": before,
                   "program": program, "streams": str(self.files)}  # fmt: skip
        self.send(request)
        return Run(self, self.receive(), request["arguments"] if program == PROGRAM else ())

    def send(self, request: object) -> None:
        """A line to the server."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)

    def receive(self) -> Any:
        """Its next answer."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@dataclass
class Run:
    """One process; once it ended, how: `code` as `subprocess` gives it, or None if it hung and was killed.

    `trace`: what strace wrote, if it was attached.
    """

    _program: Program = field(repr=False)
    pid: int
    _arguments: Sequence[str] = field(repr=False)
    code: int | None = None
    out: str = ""
    err: str = ""
    trace: str = field(default="", repr=False)
    _strace: subprocess.Popen[str] | None = field(default=None, repr=False)

    def traced(self, *options: str) -> None:
        """Attach strace, before the program begins."""
        self._strace = strace.attach(self.pid, self._program.files / "trace", options)

    def release(self, timeout: float = SECONDS) -> None:
        """Let it begin."""
        self._program.send(timeout)

    def wait(self) -> Run:
        """Until it has ended, or been killed after its time; how."""
        self.code = self._program.receive()
        out, err, trace = (self._program.files / name for name in ("out", "err", "trace"))
        self.out, self.err = (path.read_text(errors="backslashreplace") for path in (out, err))
        if self._strace is not None:
            self._strace.communicate()
            self.trace = trace.read_text(errors="backslashreplace")
        elif self.code is not None and 0 <= self.code < 128:
            assert problem_of_run(self._arguments, self.out) is None
        return self

    def is_alive(self) -> bool:
        """Whether it still runs; False for a zombie."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False


# The server


def serve(modules: Sequence[str]) -> Callable[[], object]:
    """Carry out requests until there are none. In a forked process, return at once what it is to do."""
    for name in modules:
        importlib.import_module(name)
    _warm_up()
    # a shell lets what it starts in the background ignore Ctrl-C, and nohup the end of the terminal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    gc.collect()
    gc.freeze()  # a forked process that looks for garbage would copy every page
    for line in iter(sys.stdin.readline, ""):
        (held, go), (waiting, ready) = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.close(go)
            os.close(waiting)
            step = _become(json.loads(line))
            os.close(ready)
            select.select([held], [], [])  # no read: whether strace sees one that it interrupts is chance
            os.close(held)
            return step
        os.close(held)
        os.close(ready)
        os.read(waiting, 1)  # until it is ready, or dead: strace is not to see how it gets there
        os.close(waiting)
        print(child, flush=True)
        timeout = sys.stdin.readline()  # '' if it is not to be released any more
        if timeout:
            with contextlib.suppress(BrokenPipeError):  # killed while it was held
                os.write(go, b"!")
        code = _ended(child, float(timeout or 0))
        os.close(go)
        print(json.dumps(code), flush=True)
    return lambda: None


def _warm_up() -> None:
    """Have everything read that is kept once it was: tables, their schema, families."""
    from converter.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["tables"])


def _become(request: Mapping[str, Any]) -> Callable[[], object]:
    """Be the process that was asked for, up to its first step; that step."""
    out, err = (f"{request['streams']}/{name}" for name in ("out", "err"))
    # who reads from a pipe without a writer would wait for one right here
    reading = os.O_RDWR if Path(request["stdin"]).is_fifo() else os.O_RDONLY
    writing = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND
    for number, path, flags in ((2, err, writing), (1, out, writing), (0, request["stdin"], reading)):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["cwd"])
    sys.argv[:] = ["converter", *request["arguments"]]
    module, _, function = request["program"].partition(":")
    step: Callable[[], object] = getattr(importlib.import_module(module), function)
    exec(request["before"], {})
    return step


def _ended(child: int, seconds: float) -> int | None:
    descriptor = os.pidfd_open(child)
    hangs = not select.select([descriptor], [], [], seconds)[0]
    os.close(descriptor)
    if hangs:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if hangs else os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    serve(sys.argv[1:])()
