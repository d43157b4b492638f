"""What ends a command after its work is done is a warning; what ends it before is its exit code."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner, Result

from converter.cli.output import done_with, reports
from converter.errors import ConverterWarning, DestinationError, HubError, PlanError


@pytest.fixture(autouse=True)
def hangs_up() -> Iterator[None]:
    """nohup lets what it starts ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def raising(error: BaseException) -> Callable[[], None]:
    def end() -> None:
        raise error

    return end


def ended_by(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


ENDS = [
    (raising(PlanError("does not fit")), 5, "does not fit"),
    (raising(DestinationError("no space")), 6, "no space"),
    (raising(OSError(5, "Input/output error")), 1, "Input/output error"),
    (raising(FileNotFoundError(2, "No such file or directory", "gone.pth")), 3, "No such file or directory"),
    (raising(MemoryError()), 1, "MemoryError"),
    (raising(ModuleNotFoundError("no scipy", name="scipy")), 8, "scipy"),
    (raising(KeyboardInterrupt()), 130, "interrupted"),
    (ended_by(signal.SIGINT), 130, "interrupted"),
    (ended_by(signal.SIGTERM), 143, "terminated"),
    (ended_by(signal.SIGHUP), 129, "terminated"),
]


def run(end: Callable[[], None], *, is_done: bool) -> Result:
    @click.command()
    @reports
    def command(as_json: bool) -> None:
        if is_done:
            done_with("out.safetensors")()
        end()

    return CliRunner().invoke(command, [])


@pytest.mark.parametrize(("end", "code", "said"), ENDS)
def test_before_the_work_is_done_it_is_the_exit_code(end: Callable[[], None], code: int, said: str) -> None:
    result = run(end, is_done=False)
    assert result.exit_code == code
    assert said in result.stderr or said in repr(result.exception)


@pytest.mark.parametrize(("end", "code", "said"), ENDS)
def test_afterwards_it_is_a_warning(end: Callable[[], None], code: int, said: str) -> None:
    result = run(end, is_done=True)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: out.safetensors is complete; what came then: ")
    assert said in result.stderr


def test_our_warnings_are_for_people_and_others_as_ever() -> None:
    def warn() -> None:
        for _ in range(2):
            warnings.warn("too late", ConverterWarning, stacklevel=1)

    assert run(warn, is_done=False).stderr == "warning: too late\n" * 2
    with pytest.warns(UserWarning, match="another's"):
        run(lambda: warnings.warn("another's", stacklevel=1), is_done=False)


def test_handlers_are_as_before() -> None:
    """Where SIGHUP is ignored, as under nohup, it stays so."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert run(ended_by(signal.SIGHUP), is_done=False).exit_code == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("the library's own"), "terminated; the library's own\n"),
        (HubError("nothing was published"), "error: nothing was published\n"),
        (None, "terminated; nothing is half-written\n"),
    ],
)
def test_a_signal_of_which_a_library_makes_something_else(error: Exception | None, said: str) -> None:
    def end() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            if error is not None:
                raise error from None

    result = run(end, is_done=False)
    assert (result.exit_code, result.stderr) == (143, said)


@pytest.mark.parametrize(("seconds", "is_cleaned_up"), [(0.5, True), (1.5, False)])
def test_a_signal_that_is_passed_on_twice_unwinds_once(
    seconds: float, is_cleaned_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who presses Ctrl-C again, because it takes long, is heard."""
    clock = [100.0]
    monkeypatch.setattr("converter.cli.output.time", SimpleNamespace(monotonic=lambda: clock[0]))
    done: list[str] = []

    def end() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            clock[0] += seconds
            signal.raise_signal(signal.SIGTERM)
            done.append("cleaned up")

    assert run(end, is_done=False).exit_code == 143
    assert bool(done) == is_cleaned_up
