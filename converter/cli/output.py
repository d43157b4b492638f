"""What every command shares: how errors, JSON, sizes and progress reach the user."""

from __future__ import annotations

import functools
import io
import json
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from converter.display import plain, size_of
from converter.errors import (
    EXTRAS,
    CaptureError,
    CheckpointError,
    ConverterError,
    ConverterWarning,
    HubError,
    MissingPackageError,
    missing_package,
    require,
)

PATH = click.Path(path_type=Path, readable=False)  # what cannot be read is told by who reads it
Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
SCHEMA_VERSION = 1  # of all that --json prints: another one where a field goes or changes its meaning (docs/ci.md)
PREPARE = "prepare"  # the attribute of a command with what is to be done before anything that can fail
SHOWN = 40  # lines of a list, unless all are asked for
_DATA = ("as_json", "format_", "taps")  # options that ask for data on stdout, which -q leaves there
# command -> the extra that brings what it needs, and what it cannot even begin without
_NEEDS = {
    "export": ("onnx", ("torch", "onnx", "onnxscript")),
    "parity": ("model", ("torch",)),
    "certify": ("model", ("torch",)),
    "capture": ("model", ("torch",)),
    "verify": ("model", ()),
    "detect": ("detect", ("torch", "PIL", "tokenizers")),
    "evaluate": ("evaluate", ("faster_coco_eval",)),
    "package": ("package", ("tokenizers", "huggingface_hub", "cyclonedx")),
    "sign": ("sign", ("model_signing", "OpenSSL", "torch", "huggingface_hub")),
    "publish": ("detect", ("huggingface_hub",)),
}


@dataclass(slots=True)
class Outcome:
    """What a run has come to, as the object of click's context.

    `done`: the result that is on the disk, once nothing is left but to tell of it. The exit code is 0 from then on, and
    what fails is a warning. `signal`: the one that ends the run. `is_program`: the process ends with the run.
    `is_told`: the command has ended, and the user is being told how. `is_quiet`: only errors and warnings are told.
    `is_verbose`: nothing that is told is cut short. `on_failure`: what else is to be told of an error.
    """

    done: str | None = None
    signal: int | None = None
    is_program: bool = False
    is_told: bool = False
    is_quiet: bool = False
    is_verbose: bool = False
    on_failure: list[Callable[[Exception], object]] = field(default_factory=list)
    _deaf_until: float = field(default=0.0, init=False)

    def after(self, handler: Handler) -> Handler:
        """What is to be done on a signal from now on: nothing if all is done and the process is about to end."""
        return signal.SIG_IGN if self.is_program and self.done is not None else handler

    def unwind(self, number: int, frame: FrameType | None) -> None:
        """Act on a signal as on Ctrl-C, but not on another one within a second.

        That is the same one, passed on by whoever started the program, and would break what the first one unwinds.
        """
        if time.monotonic() < self._deaf_until:
            return
        self._deaf_until = time.monotonic() + 1
        if self.is_told:  # nothing is left to unwind, but nobody may be reading
            signal.signal(number, self.after(signal.SIG_DFL))
            signal.raise_signal(number)
            return
        self.signal = number
        raise KeyboardInterrupt


def done_with(result: str) -> Callable[[], None]:
    """What a command has called once `result` is on the disk and its work is done."""
    outcome = click.get_current_context().ensure_object(Outcome)

    def done() -> None:
        outcome.done = result

    return done


class Interrupted(ConverterError):
    """A signal ended the command without a result; never raised, but told where errors are."""


def on_failure(tell: Callable[[Exception], object]) -> None:
    """Have `tell` called with the error that ends the command without a result, or Interrupted."""
    click.get_current_context().ensure_object(Outcome).on_failure.append(tell)


def reports(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--json`, `-q` and `-v`; turn an error into one message and its exit code, with `--json` into JSON on stdout.

    What fails once the command's work is done is a warning.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("-q", "--quiet", "is_quiet", is_flag=True, help="Print no text but errors and warnings.")
    @click.option("-v", "--verbose", "is_verbose", is_flag=True, help="Print lists in full.")
    @functools.wraps(command)
    def wrapped(*args: Any, is_quiet: bool, is_verbose: bool, **kwargs: Any) -> None:
        outcome = click.get_current_context().ensure_object(Outcome)
        outcome.is_quiet, outcome.is_verbose = is_quiet, is_verbose
        with ExitStack() as told, warnings.catch_warnings():
            if is_quiet and not any(kwargs.get(name) for name in _DATA):
                told.enter_context(redirect_stdout(_Nowhere()))
            warnings.simplefilter("always", ConverterWarning)
            warnings.showwarning = functools.partial(_show, warnings.showwarning)
            with _signals_unwind(outcome):
                try:
                    getattr(command, PREPARE, lambda given: None)(kwargs)
                    name = click.get_current_context().info_name or ""
                    if name in _NEEDS:
                        require(name, *_NEEDS[name])
                    command(*args, **kwargs)
                    if outcome.signal is not None:  # a library swallowed it
                        raise KeyboardInterrupt
                    outcome.is_told = True  # here and below before any call, in which a signal could act
                except (Exception, KeyboardInterrupt) as error:
                    outcome.is_told = True
                    if outcome.done is not None:
                        _warn(f"{outcome.done} is complete; what came then: {_reason(error, outcome)}")
                    else:
                        _stop(error, outcome, as_json=bool(kwargs.get("as_json")))

    return wrapped


@contextmanager
def _signals_unwind(outcome: Outcome) -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C does, so that nothing half-written stays. nohup stays what it is."""

    with ExitStack() as handlers:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                handlers.callback(lambda number, before: signal.signal(number, outcome.after(before)), number, before)
                signal.signal(number, outcome.unwind)
        yield


def _stop(error: Exception | KeyboardInterrupt, outcome: Outcome, *, as_json: bool) -> NoReturn:
    """End a run that has not done its work."""
    if isinstance(error, ModuleNotFoundError):
        error = _of_package(error)
    if isinstance(error, OSError) and error.filename is not None:  # it was there a moment ago
        error = CheckpointError(f"{plain(str(error.filename), 1024)}: {error.strerror}. Check the path.")
    if outcome.signal is not None or isinstance(error, KeyboardInterrupt):
        _tell_others(Interrupted(f"{_of_signal(outcome)} before there was a result"), outcome)
    elif not isinstance(error, click.Abort | click.exceptions.Exit):
        _tell_others(error, outcome)
    code = 128 + signal.SIGINT
    if isinstance(error, ConverterError):
        _tell(error, as_json=as_json)
        code = error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        click.echo(f"{_of_signal(outcome)}; {str(error) or 'nothing is half-written'}", err=True)
    elif outcome.signal is not None:
        click.echo(f"{_of_signal(outcome)}; {_reason(error, outcome)}", err=True)
    else:
        raise error
    # whatever became of a signal on its way: some take it for an error of their own
    sys.exit(code if outcome.signal is None else 128 + outcome.signal)


def _of_package(error: ModuleNotFoundError) -> Exception:
    """The error for a package that is not installed; the same one if no extra has it."""
    module = error.module if isinstance(error, MissingPackageError) else (error.name or "").split(".")[0]
    name = click.get_current_context().info_name or ""
    extras = [extra for extra in (_NEEDS.get(name, ("",))[0], *EXTRAS) if module in EXTRAS.get(extra, ())]
    if not extras:
        return error
    if not isinstance(error, MissingPackageError):
        error = missing_package(name, extras[0])
    return (HubError if module == "huggingface_hub" else CaptureError)(str(error))


def _of_signal(outcome: Outcome) -> str:
    return "interrupted" if outcome.signal in (None, signal.SIGINT) else "terminated"


def _reason(error: Exception | KeyboardInterrupt, outcome: Outcome) -> str:
    if isinstance(error, KeyboardInterrupt):
        return _of_signal(outcome)
    return plain(str(error) or type(error).__name__, 1024)


def _show(others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    """`warnings.showwarning` for people: our own in one line, `others` as ever."""
    if issubclass(category, ConverterWarning):
        _warn(str(message))
    else:
        others(message, category, *place)


class _Nowhere(io.StringIO):
    """Standard output that nobody reads."""

    def write(self, text: str, /) -> int:
        return len(text)


def told() -> Outcome:
    """How the command that runs is to tell what it does; the default outside of a command."""
    context = click.get_current_context(silent=True)
    return context.ensure_object(Outcome) if context is not None else Outcome()


def cut(lines: Sequence[str], most: int = SHOWN) -> list[str]:
    """The first lines of a list, and how many are left; all of them by -v."""
    if told().is_verbose or len(lines) <= most:
        return list(lines)
    return [*lines[:most], f"  ... and {len(lines) - most} more; -v lists all"]


def note(text: str) -> None:
    """Tell on stderr what is done on the way."""
    if not told().is_quiet:
        click.echo(text, err=True)


def is_read() -> bool:
    """Whether anybody reads standard output: `| head` does for some lines. What is written then is lost in silence."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return getattr(raw, "failure", None) is None  # as `converter.cli.program` keeps it


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def _tell(error: ConverterError, *, as_json: bool) -> None:
    problems = list(error.problems)
    if as_json:
        print_error(type(error).__name__, message_of(error), problems)
    else:
        click.echo(f"error: {message_of(error)}", err=True)
        for line in cut([f"  - {problem}" for problem in problems]):
            click.echo(line, err=True)


def _tell_others(error: Exception, outcome: Outcome) -> None:
    """What cannot be told there takes nothing from what is told here."""
    for tell in outcome.on_failure:
        try:
            tell(error)
        except (ConverterError, OSError) as other:
            _warn(plain(str(other), 1024))


def message_of(error: Exception) -> str:
    """An error without the list of its problems."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, ConverterError):
        return str(error).split("\n", 1)[0] if error.problems else str(error)
    return f"a fault in this program: {type(error).__name__}: {error}"


def print_error(kind: str, message: str, problems: Sequence[str] = ()) -> None:
    """An error as JSON on stdout, as schemas/error.json says."""
    print_json({"error": {"type": kind, "message": message, "problems": list(problems)}})


def _hashes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Option callback: each a whole SHA-256."""
    for value in values:
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise click.BadParameter(
                f"{value!r} is not the SHA-256 of a table: 64 characters of 0-9 and a-f, all of them, as the refusal "
                "prints it"
            )
    return values


accept_table = click.option(
    "--accept-table",
    "accepted_tables",
    metavar="HASH",
    multiple=True,
    callback=_hashes,
    help="SHA-256 of a table that was never released and may have made the weights; may be given several times.",
)


def print_json(content: Mapping[str, Any]) -> None:
    """Machine-readable output on stdout, as the command's file in schemas/ says; keys stay in their order."""
    click.echo(json.dumps(versioned(content), indent=2, allow_nan=False))


def versioned(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` as it is printed. Tests compare here all that they make commands print with its schema."""
    return {"schema_version": SCHEMA_VERSION, **content}


def parse_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Option callback: bytes written as `500MB`, `2GB`, `1GiB` or `1048576`."""
    if value is None:
        return None
    try:
        return size_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@contextmanager
def progress(total: int, description: str, unit: str = "B", done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that counts bytes, or what `unit` says, from `done`; silent where that is no terminal."""
    if told().is_quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=done, desc=description, unit=unit, unit_scale=unit == "B", leave=False) as bar:
        yield lambda count: bar.update(count) and None
