"""The programs as processes of their own: their exit codes when nobody can read what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors.numpy import load_file

from tests import ROOT
from tests.support.program import Program
from tests.support.tiny import tiny_weights, write_table

FULL = "error: the output cannot be written: No space left on device\n"
CLOSED = "error: the output cannot be written: Bad file descriptor\n"

# as pip writes them: the programs that are declared, whatever is installed here
PROGRAMS = {
    name: ["-c", f"import sys; from {module} import {function}; sys.exit({function}())"]
    for name, (module, _, function) in (
        (name, place.partition(":"))
        for name, place in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
    )
} | {"module": ["-m", "converter"]}
# a program, its arguments and its exit code where all can be read
TOLD = [
    ("module", "tables", 0),
    ("module", "--help", 0),
    ("module", "--version", 0),
    ("module", "inspect absent --json", 3),
    ("converter", "inspect source.pth --json", 0),
    ("module", "diff source.pth other.pth --no-table --json", 1),
    ("converter", "nothing --json", 2),
    ("converter", "--version", 0),
    ("convert", "--help", 0),
    ("convert", "--src source.pth --dst out.safetensors --table tiny-table.json --dry-run", 0),
]
COMPLAINTS = [
    ("module", "nothing", 2),
    ("converter", "inspect absent", 3),
    ("convert", "--src source.pth --dst no/out.safetensors --table tiny-table.json", 6),
]
PLACES = pytest.mark.parametrize("place", ["full", "left", "closed"])


@dataclass
class Shell:
    """Starts programs in an environment with nothing in it but what they cannot do without."""

    folder: Path
    environment: dict[str, str]

    def run(self, program: str, arguments: str, **places: str) -> tuple[int, str, str]:
        """Exit code, standard output and error of a program; `places` says which of the two goes where."""
        streams: dict[str, IO[bytes] | int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        start = 'exec "$@"'
        with ExitStack() as opened:
            for stream, place in places.items():
                if place == "full":
                    streams[stream] = opened.enter_context(open("/dev/full", "wb"))
                elif place == "left":  # a pipe whose reader is gone, as that of `| head` soon is
                    reader, writer = os.pipe()
                    os.close(reader)
                    streams[stream] = opened.enter_context(os.fdopen(writer, "wb"))
                else:
                    start += {"stdout": " >&-", "stderr": " 2>&-"}[stream]
            done = subprocess.run(
                ["sh", "-c", start, "sh", sys.executable, *PROGRAMS[program], *arguments.split()],
                **streams,
                cwd=self.folder,
                env=self.environment,
                text=True,
                check=False,
            )
        return done.returncode, done.stdout or "", done.stderr or ""


@pytest.fixture(params=["buffered", "unbuffered"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    write_table(tmp_path)
    torch.save(tiny_weights(), tmp_path / "source.pth")
    torch.save({"scalar": torch.zeros(1)}, tmp_path / "other.pth")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    if request.param == "unbuffered":
        environment["PYTHONUNBUFFERED"] = "1"
    return Shell(tmp_path, environment)


@PLACES
@pytest.mark.parametrize(("program", "arguments", "code"), TOLD)
def test_output_that_cannot_be_written(program: str, arguments: str, code: int, place: str, shell: Shell) -> None:
    instead, said = {"full": (6, FULL), "left": (141, ""), "closed": (6, CLOSED)}[place]
    assert shell.run(program, arguments, stdout=place) == ((code, "", "") if code else (instead, "", said))


@PLACES
@pytest.mark.parametrize(("program", "arguments", "code"), COMPLAINTS)
def test_complaints_that_nobody_reads(program: str, arguments: str, code: int, place: str, shell: Shell) -> None:
    assert shell.run(program, arguments, stderr=place) == (code, "", "")


@PLACES
def test_a_success_does_not_need_standard_error(place: str, shell: Shell) -> None:
    code, said, _ = shell.run("convert", "--src source.pth --dst out.safetensors --table tiny-table.json", stderr=place)
    assert code == 0
    assert "variant: tiny-2" in said


def test_neither_can_be_written(shell: Shell) -> None:
    assert shell.run("module", "--help", stdout="full", stderr="full")[0] == 6
    assert shell.run("module", "--help", stdout="closed", stderr="closed")[0] == 6
    assert shell.run("module", "nothing", stdout="left", stderr="left")[0] == 2


@PLACES
@pytest.mark.parametrize("form", ["", " --json"])
def test_what_is_converted_is_there_though_nobody_was_told(form: str, place: str, shell: Shell) -> None:
    """The exit code is that of the work, which is done."""
    arguments = f"--src source.pth --dst out.safetensors --table tiny-table.json{form}"
    code, _, said = shell.run("convert", arguments, stdout=place)
    assert (code, said.startswith("warning: the output cannot be written")) == (0, True)
    assert len(load_file(shell.folder / "out.safetensors")) > 5


def test_a_text_of_which_a_part_fits(shell: Shell) -> None:
    """A disk that fills up between two bytes; Python alone would lose the rest unnoticed when it does not buffer."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    with (shell.folder / "said").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", f"{code}from converter.cli import converter_main; converter_main()", "tables"],
            stdout=file,
            stderr=subprocess.PIPE,
            env=shell.environment,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (6, "error: the output cannot be written: File too large\n")
    assert (shell.folder / "said").stat().st_size == 100


# at its first step
INTERRUPTED = """
from converter.cli import sources
sources.locate = lambda *arguments, **options: signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize(
    ("arguments", "before", "code", "said"),
    [
        ("--version", "", -signal.SIGINT, ""),
        ("inspect absent", "", -signal.SIGINT, "error: absent: "),
        ("inspect source.pth", INTERRUPTED, -signal.SIGINT, "interrupted; nothing is half-written\n"),
        ("convert --src source.pth --dst out.safetensors --table tiny-table.json", "", 0, ""),
    ],
)
def test_ctrl_c_while_the_interpreter_closes(
    arguments: str, before: str, code: int, said: str, program: Program, tmp_path: Path
) -> None:
    """It ends at once, without a traceback; where the work is done, there is nothing left to interrupt."""
    write_table(tmp_path)
    torch.save(tiny_weights(), tmp_path / "source.pth")
    closing = f"import atexit, signal\n{before}\natexit.register(signal.raise_signal, signal.SIGINT)\n"
    run = program(*arguments.split(), cwd=tmp_path, before=closing)
    assert (run.code, run.err[: len(said)]) == (code, said)
    assert "Traceback" not in run.err


def test_ctrl_c_before_the_command_begins(program: Program) -> None:
    early = "import signal\nfrom converter.cli import output\n"
    early += "output._signals_unwind = lambda outcome: signal.raise_signal(signal.SIGINT)\n"
    run = program("inspect", "absent", before=early)
    assert (run.code, run.err.strip()) == (130, "interrupted; nothing is half-written")


def test_ctrl_c_of_which_a_library_makes_nothing(program: Program, tmp_path: Path) -> None:
    torch.save(tiny_weights(), tmp_path / "source.pth")
    dropped = """
import signal
from converter.cli import sources

class Closing:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

locate = sources.locate
sources.locate = lambda *arguments, **options: Closing() and locate(*arguments, **options)
"""
    run = program("inspect", "source.pth", cwd=tmp_path, before=dropped)
    assert run.code == 130
    assert run.err.endswith("interrupted; nothing is half-written\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("is_first_told", [True, False])
def test_a_signal_while_it_is_told_how_the_command_ended(
    number: signal.Signals, is_first_told: bool, program: Program, tmp_path: Path
) -> None:
    """It does not take the message's place; another one, a second later, ends the process at once."""
    before = told_meanwhile(number, is_first_told) + INTERRUPTED.replace("SIGINT", number.name)
    run = program("inspect", "source.pth", cwd=tmp_path, before=before)
    how = "interrupted" if number == signal.SIGINT else "terminated"
    said = f"{how}; nothing is half-written\n" if is_first_told else ""
    assert (run.code, run.err) == (-number, said)


def test_no_signal_matters_once_the_result_is_on_the_disk(program: Program, tmp_path: Path) -> None:
    write_table(tmp_path)
    torch.save(tiny_weights(), tmp_path / "source.pth")
    arguments = "convert --src source.pth --dst out.safetensors --table tiny-table.json"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        last = f"""
import importlib

def stopped(text, **options):
    if text.startswith("written: "):
        signal.raise_signal({int(number)})

importlib.import_module("converter.cli.convert").click = SimpleNamespace(echo=stopped)
"""
        before = told_meanwhile(number, True) + last
        run = program(*arguments.split(), "--force", cwd=tmp_path, before=before)
        assert run.code == 0, run
        assert "out.safetensors is complete; what came then: " in run.err


def told_meanwhile(number: signal.Signals, is_first_told: bool) -> str:
    """Python that sends two signals before each line that the program says, and one 1.5 seconds after."""
    return f"""
import signal
from types import SimpleNamespace
from converter.cli import output

clock, echo = [100.0], output.click.echo
output.time = SimpleNamespace(monotonic=lambda: clock[0])

def blocked(text, **options):
    for _ in range(2):
        signal.raise_signal({int(number)})
    {"echo(text, **options)" if is_first_told else ""}
    clock[0] += 1.5
    signal.raise_signal({int(number)})

output.click = SimpleNamespace(**{{**vars(output.click), "echo": blocked}})
"""
