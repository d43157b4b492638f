"""Running a command as a program: output that cannot be written changes a success into an error, never a failure."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, NoReturn, TextIO

import click

from converter.errors import DestinationError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def run_program(command: click.Command, name: str) -> NoReturn:
    """Run a command with the arguments of the process, and end the process with the exit code it deserves.

    A command finishes its work even when its output cannot be written. If it fails, its own exit code stands. If it
    succeeds but its output was lost, the exit code says so.
    """
    output = _Stream(sys.stdout, 1)
    sys.stdout, sys.stderr = _text(output, sys.stdout), _text(_Stream(sys.stderr, 2), sys.stderr)
    try:
        command.main(prog_name=name)
        code: str | int | None = 0
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    if output.failure is not None and not code:
        if output.failure.errno == errno.EPIPE:
            code = 1  # as click does; the reader is gone, so there is nobody to tell
        else:
            click.echo(f"error: the output cannot be written: {output.failure.strerror}", err=True)
            code = DestinationError.exit_code
    sys.exit(code)


class _Stream(io.FileIO):
    """Standard output or error. Its first failure is kept, not raised, and nothing is written after it.

    Python's own streams are of no use here: with a buffer, what could not be written fails once more when the
    interpreter flushes it at the very end, as exit code 120; without one, half of a text can get lost unnoticed.
    """

    failure: OSError | None = None

    def __init__(self, stream: TextIO | None, number: int) -> None:
        if stream is None:  # it was closed when the program began: use one that cannot be written to
            number = os.open(os.devnull, os.O_RDONLY)
        super().__init__(number, "w", closefd=False)

    def write(self, content: ReadableBuffer, /) -> int:
        if self.failure is None:
            try:
                return super().write(content)
            except OSError as error:
                self.failure = error
        return memoryview(content).nbytes


def _text(stream: _Stream, like: TextIO | None) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(stream),
        encoding=like.encoding if like else "utf-8",
        errors=like.errors if like else "backslashreplace",
        line_buffering=True,  # a line of one stream stays before a later one of the other
    )
