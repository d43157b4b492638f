"""One vocabulary for all commands: what help says, and what a command takes by option, position and completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from converter import __version__
from converter.cli import main
from tests.support.tiny import tiny_weights, write_table

COMMANDS = main.commands


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def options_of(command: click.Command) -> dict[str, str]:
    """The parameter of each option, by how it is written."""
    return {written: p.name or "" for p in command.params if isinstance(p, click.Option) for written in p.opts}


def test_without_a_command_there_is_help() -> None:
    alone = run()
    assert (alone.exit_code, alone.stdout) == (0, run("--help").stdout)
    sections = [line for line in alone.stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sections == ["Options:", "Convert:", "Run:", "Prove:", "Publish:", "Describe a format:", "For programs:"]
    listed = [line.split()[0] for line in alone.stdout.split("Convert:")[1].splitlines() if line.startswith("  ")]
    assert sorted(COMMANDS) == sorted(set(listed) & set(COMMANDS))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_says_in_a_line_what_it_is_for(name: str) -> None:
    assert 0 < len(COMMANDS[name].short_help or "") <= 45
    assert f"\n  {name:<9} {COMMANDS[name].short_help}\n" in run().stdout
    assert f"    converter {name}" in run(name, "--help").stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_speaks_of_no_model_in_particular_as_ours(name: str) -> None:
    assert "in-house" not in run(name, "--help").stdout


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"schema"}))  # which prints JSON, and that alone
def test_options_have_one_name_for_one_thing(name: str) -> None:
    options = options_of(COMMANDS[name])
    assert {"--json", "-q", "--quiet", "-v", "--verbose"} <= options.keys()
    for written in ("--out", "-o"):
        assert options.get(written) == options.get("--dst") or name in {"diff", "compare"}
    if name not in {"tables", "lint", "settle"}:
        assert "--src" in options
    assert not {"--source", "--output", "--destination", "--input"} & options.keys()


def test_the_version_is_told() -> None:
    assert run("-V").stdout == run("--version").stdout == f"converter, version {__version__}\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save(tiny_weights(), tmp_path / "source.pth")
    write_table(tmp_path)
    return tmp_path / "source.pth"


@pytest.mark.parametrize(
    "words",
    [
        ["--src", "source.pth", "--dst", "OUT"],
        ["source.pth", "OUT"],
        ["source.pth", "-o", "OUT"],
        ["--dst", "OUT", "source.pth"],
        ["--src", "source.pth", "OUT"],
        ["--out", "OUT", "--src=source.pth"],
    ],
)
def test_places_are_given_by_option_or_position(
    words: list[str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.replace("OUT", "out.safetensors") for word in words]
    assert run("convert", *words, "--table", "tiny-table.json").exit_code == 0
    assert len(load_file("out.safetensors")) > 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing argument 'SRC' (or --src)."),
        (["a.pth"], "Missing argument 'DST' (or --dst)."),
        (["a.pth", "b", "c"], "Got unexpected extra argument (c)."),
        (["--src", "a.pth", "--dst", "b", "c"], "Got unexpected extra argument (c)."),
    ],
)
def test_a_missing_or_extra_place_is_named(words: list[str], said: str) -> None:
    refused = run("convert", *words)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Usage: main convert [OPTIONS] SRC DST\n")
    assert refused.stderr.endswith(f"Error: {said}\n")


def test_quiet_leaves_errors_and_json(source: Path, tmp_path: Path) -> None:
    words = ["convert", source, tmp_path / "out.safetensors", "--table", tmp_path / "tiny-table.json", "-q"]
    done = run(*words)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    again = run(*words)
    assert (again.exit_code, again.stdout) == (6, "")
    assert again.stderr.startswith("error: ")
    assert json.loads(run(*words, "--json", "--force").stdout)["files"]


PROGRAM = [sys.executable, "-c", "from converter.cli import converter_main; converter_main()"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ins"], ["plain,inspect"]),
        (["inspect", "sou"], ["file,sou"]),
        (["convert", "--src", "sou"], ["file,sou"]),
        (["convert", "a.pth", "--dtype", "b"], ["plain,bfloat16"]),
        (["convert", "a.pth", "--to", "mmdet-gl"], ["plain,mmdet-glip"]),
        (["convert", "a.pth", "--to", "./m"], ["file,./m"]),
        (["detect", "model/", "pic"], ["file,pic"]),
    ],
)
def test_a_shell_completes_commands_files_and_choices(words: list[str], offered: list[str]) -> None:
    typed = {"COMP_WORDS": " ".join(["converter", *words]), "COMP_CWORD": str(len(words))}
    environment = {**os.environ, **typed, "_CONVERTER_COMPLETE": "bash_complete"}
    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_a_shell_takes_the_completion() -> None:
    environment = {**os.environ, "_CONVERTER_COMPLETE": "bash_source"}
    script = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, check=True).stdout
    done = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p converter"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
