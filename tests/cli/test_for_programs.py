"""What a script can rely on: with --json there is JSON, whatever happens, and 1 is said of comparisons alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from converter import errors
from converter.cli import main
from converter.cli.program import FAULT
from tests import ROOT
from tests.support.program import Program
from tests.support.schemas import problem_of


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nothing --json", "No such command 'nothing'."),
        ("--json", "No such option"),
        ("inspect --json", "Missing argument"),
        ("inspect --json a b", "Got unexpected extra argument (b)"),
        ("inspect a --jsn --json", "No such option"),
        ("convert a b.safetensors --json --dtype float8", "'float8' is not one of"),
        ("convert a b.safetensors --json --max-shard-size 1GB", "--max-shard-size needs a folder"),
        ("lint --json --json=1", "does not take a value"),
    ],
)
def test_a_wrong_command_line_is_json(arguments: str, said: str, program: Program) -> None:
    run = program(*arguments.split())
    assert (run.code, run.err) == (2, "")
    document = json.loads(run.out)
    assert problem_of("error", document) is None
    assert document["error"]["type"] == "UsageError"
    assert said in document["error"]["message"]


@pytest.mark.parametrize("arguments", ["nothing", "explain --src a -- --json b", "nothing -- --json"])
def test_for_people_it_is_as_ever(arguments: str, program: Program) -> None:
    run = program(*arguments.split())
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("Usage: converter")


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_fault_in_the_program_is_no_difference(form: str, program: Program) -> None:
    broken = "from converter.cli import sources\nsources.locate = lambda *arguments, **options: {}['key']\n"
    run = program("inspect", "absent", *form.split(), before=broken)
    assert run.code == FAULT == 70
    assert run.err.endswith("KeyError: 'key'\n")
    message = "a fault in this program: KeyError: 'key'"
    wanted = {"schema_version": 1, "error": {"type": "KeyError", "message": message, "problems": []}}
    assert (json.loads(run.out) if form else run.out) == (wanted if form else "")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("inspect many.pth --json | head -n 1", 141),
        ("inspect many.pth -v | head -n 1", 141),
        ("diff many.pth other.pth --no-table --json | head -n 1", 1),
        ("lint many.json --json | head -n 1", 4),
    ],
)
def test_a_reader_that_leaves_is_no_difference(command: str, code: int, tmp_path: Path) -> None:
    """Of more than a pipe holds; where the command has a code of its own, that stands."""
    torch.save({f"layers.{i}.weight": torch.zeros(1) for i in range(2000)}, tmp_path / "many.pth")
    torch.save({f"layers.{i}.weight": torch.ones(1) for i in range(2000)}, tmp_path / "other.pth")
    (tmp_path / "many.json").write_text("{" * 100_000)
    script = f'"$0" -m converter {command}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.count("\n") == 1


def test_documents_and_help_list_the_same_exit_codes() -> None:
    """Those of all classes of errors, and those that others give."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    raised = {kind.exit_code for kind in kinds if issubclass(kind, errors.ConverterError)}
    known = {0, 1, 2, 70, 129, 130, 141, 143} | raised
    in_help = (main.epilog or "").split("Exit codes:")[1]
    assert {int(word) for word in in_help.split() if word.isdigit()} == known
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    rows = text.split("## Exit codes")[1].split("\n\n")[1].splitlines()[2:]
    assert {int(code) for row in rows for code in row.split("|")[1].split(",")} == known
