"""A model that nobody described, from a package of PyPI: the commands of docs/new-model.md, word by word, as typed.

The target is transformers' CLIPTextModelWithProjection. Without the transposition that no shape shows, all but the
last command say the same.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

DOCUMENT = (ROOT / "docs" / "new-model.md").read_text(encoding="utf-8")
PROGRAMS = {"converter": [sys.executable, "-m", "converter"], "python": [sys.executable]}


def blocks() -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block of the document, in order."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def typed(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, and the lines that the document shows of its output."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command, shown


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command as a shell would run it: its own process, its output perhaps into a file."""
    words = shlex.split(command)
    destination = folder / words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if destination else words
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*PROGRAMS[words[0]], *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if destination:
        destination.write_text(done.stdout)
    return done


def is_shown(shown: list[str], output: str) -> bool:
    """Whether the output has these lines, in this order, whatever is between them."""
    lines = iter(output.splitlines())
    return all(line in lines for line in shown)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which every command of the document was run, and the commands."""
    folder = tmp_path_factory.mktemp("new-model")
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "new_model.py", folder / "scripts")
    commands = []
    for language, text in blocks():
        if language == "python":
            (folder / text.splitlines()[0].removeprefix("# ")).write_text(text)
        for command, shown in typed(text) if language == "console" else ():
            done = run(folder, command)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            assert is_shown(shown, done.stdout), f"{command}\nprinted\n{done.stdout}\nthe document has\n{shown}"
            commands.append(command)
    return folder, commands


def test_the_document_reaches_the_end(walked: tuple[Path, list[str]]) -> None:
    _, commands = walked
    assert [" ".join(command.split()[:2]) for command in commands] == [
        "python scripts/new_model.py", "converter draft", "converter settle", "converter settle", "converter lint",
        "converter convert", "converter convert", "converter diff", "converter compare", "python record_openai.py",
        "python record_transformers.py", "converter compare",
    ]  # fmt: skip


def test_the_matrix_is_stored_transposed(walked: tuple[Path, list[str]]) -> None:
    from safetensors.torch import load_file

    before, after = (load_file(walked[0] / name) for name in ("clip/openai.safetensors", "converted.safetensors"))
    assert after["text_projection.weight"].equal(before["text_projection"].T)


def test_a_square_matrix_that_was_kept_is_seen_by_the_comparison_alone(walked: tuple[Path, list[str]]) -> None:
    folder, commands = walked
    table = folder / "tables" / "openai.json"
    content = json.loads(table.read_text())
    (rule,) = (rule for rule in content["rules"] if rule["source"] == "text_projection")
    assert rule.pop("ops") == [{"op": "transpose", "axes": [1, 0]}]
    table.write_text(json.dumps(content))
    lint, convert, back, diff = commands[4:8]
    record, compare = commands[-2:]
    for command in (lint, f"{convert} --force", f"{back} --force", diff, record):
        assert run(folder, command).returncode == 0, command
    done = run(folder, compare)
    assert done.returncode == 1
    (shown,) = (text for language, text in blocks() if language == "text")
    assert is_shown(shown.splitlines(), done.stdout), done.stdout
