"""Running a command as a program, and its exit code where the output cannot be written."""

from __future__ import annotations

import errno
import gc
import io
import itertools
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn, TextIO

import click

from converter.cli.output import Outcome, message_of, print_error
from converter.errors import DestinationError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


FAULT = 70  # exit code of a fault in the program itself, which 1 would make a comparison that differs


def run_program(command: click.Command, name: str) -> NoReturn:
    """Run a command with the arguments of the process, and end the process with the exit code it deserves.

    A command finishes its work even when its output cannot be written. If it fails, its own exit code stands. If it
    succeeds but its output was lost, the exit code says so, unless what it was to do is on the disk.
    """
    gc.set_threshold(100_000)  # a checkpoint's pickle makes as many objects, and none of them is garbage
    output, outcome = _Stream(sys.stdout, 1), Outcome(is_program=True)
    sys.stdout, sys.stderr = _text(output, sys.stdout), _text(_Stream(sys.stderr, 2), sys.stderr)
    if is_interruptible := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, outcome.unwind)
    try:
        code = _exit_code(command, name, outcome)
    except (click.Abort, KeyboardInterrupt):  # outside of the command, which tells it itself
        click.echo("interrupted; nothing is half-written", err=True)
        code = 128 + signal.SIGINT
    if is_interruptible:  # and end at once: an error of what the interpreter still closes would be a traceback
        signal.signal(signal.SIGINT, outcome.after(signal.SIG_DFL))
    if outcome.done is not None:
        code = 0
    sys.stdout.flush()
    if output.failure is not None and not code:
        if outcome.done is not None:
            click.echo(f"warning: the output cannot be written: {output.failure.strerror}", err=True)
        elif output.failure.errno == errno.EPIPE:
            code = 128 + signal.SIGPIPE  # as of a program that a shell tells so; there is nobody else to tell
        else:
            click.echo(f"error: the output cannot be written: {output.failure.strerror}", err=True)
            code = DestinationError.exit_code
    gc.freeze()  # the interpreter looks twice for garbage while it ends, in all that was read
    sys.exit(code)


def _exit_code(command: click.Command, name: str, outcome: Outcome) -> str | int | None:
    """The one that click would end the process with. Raises click.Abort for Ctrl-C."""
    try:
        code: int | None = command.main(prog_name=name, obj=outcome, standalone_mode=False)
        return code
    except click.ClickException as error:
        if not _is_for_programs():
            error.show()
        else:
            print_error("UsageError" if isinstance(error, click.UsageError) else "Error", message_of(error))
        return error.exit_code
    except SystemExit as end:
        return end.code
    except click.Abort:
        raise
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if _is_for_programs():
            print_error(type(error).__name__, message_of(error))
        return FAULT


def _is_for_programs() -> bool:
    """Whether --json was asked for; where the command line is wrong, nobody else knows."""
    return "--json" in itertools.takewhile(lambda word: word != "--", sys.argv[1:])


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
