"""The program as a user starts it, many times a second: one process imports it once, and forks for every command."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

# what a conversion imports, some of it only once it has begun
_IMPORTED = ("converter.cli", "converter.cli.convert", "converter.cli.sources", "converter.planning.formats",
             "converter.writing.convert", "jsonschema")  # fmt: skip


@dataclass(frozen=True)
class Done:
    """How a command ended. `code` is as `subprocess` gives it; None: it did not end in time and was killed."""

    code: int | None
    out: str
    err: str


class Program:
    """A context whose call runs `converter` with the arguments given, in a process of its own.

    `prefix`: the command that starts the first process elsewhere, as nsenter does.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        # -c: for -m the folder of tests would have to be readable by whoever a command runs as
        start = "import sys; from tests.support.program import serve; serve()"
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

    def __call__(
        self, *arguments: object, cwd: Path | str = "/", timeout: float = 20, before: str = "", stdin: str = os.devnull
    ) -> Done:
        """Run it. `before`: Python that the new process executes first, with `arguments` to change at will."""
        assert self._process.stdin
        assert self._process.stdout
        order = {"arguments": list(map(str, arguments)), "cwd": str(cwd), "timeout": timeout, "before": before,
                 "stdin": stdin}  # fmt: skip
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))


def serve() -> None:
    """Carry out the orders on stdin, one a line, until it ends."""
    for name in _IMPORTED:
        __import__(name)
    for line in sys.stdin:
        print(json.dumps(_carry_out(json.loads(line))), flush=True)


def _carry_out(order: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (child := os.fork()) == 0:
            try:
                given = os.open(order["stdin"], os.O_RDWR if Path(order["stdin"]).is_fifo() else os.O_RDONLY)
                for number, stream in enumerate((given, out.fileno(), err.fileno())):
                    os.dup2(stream, number)
                _become(order)
            finally:
                os._exit(99)
        code = _wait(child, order["timeout"])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace"))
    return {"code": code, "out": texts[0], "err": texts[1]}


def _become(order: dict[str, Any]) -> None:
    """Be the program, up to the very end of the process."""
    code: object = 98
    try:
        os.chdir(order["cwd"])
        sys.argv = ["converter", *order["arguments"]]
        exec(order["before"], {"arguments": sys.argv})
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.modules["converter.cli"].converter_main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _wait(child: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    descriptor = os.pidfd_open(child)
    try:
        ended = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]
        if not ended:
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code if ended else None
    finally:
        os.close(descriptor)
