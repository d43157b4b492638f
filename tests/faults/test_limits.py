"""Limits that a process is given, at whatever step they are reached."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support.jobs import FORMS, Jobs
from tests.support.program import Program, Run

EVERY = os.environ.get("FAULTS") == "all"
FORM = pytest.mark.parametrize("form", FORMS)
FORCE = pytest.mark.parametrize("force", [False, True], ids=["new", "force"])


def limited(
    kind: str, most: int, form: str, force: bool, program: Program, jobs: Jobs, tmp_path: Path
) -> tuple[Run, Path]:
    place = tmp_path / f"{kind}{most}"
    place.mkdir()
    if force:
        jobs.put(form, 0, place)
    before = f"import resource; resource.setrlimit(resource.RLIMIT_{kind}, ({most}, {most}))"
    done = program(*jobs.arguments(form, 1, force=force), cwd=place, before=before)
    there = jobs.seed(form, place)
    assert there == (1 if done.code == 0 else 0 if force else None), done
    return done, place


@pytest.mark.parametrize("form", FORMS)
@FORCE
def test_files_that_may_be_open(form: str, force: bool, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    codes = []
    for most in range(4, 27) if EVERY else (4, 9, 10, 13, 14, 26):
        done, _ = limited("NOFILE", most, form, force, program, jobs, tmp_path)
        codes.append(done.code)
        if done.code:
            assert re.fullmatch(r"error: [^\n]*Too many open files[^\n]*\n", done.err), done
    assert set(codes[:-1]) <= {0, 3, 4, 6}
    assert codes[0] != 0
    assert codes[-1] == 0


@FORM
@FORCE
def test_how_large_a_file_may_be(form: str, force: bool, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    codes: list[int] = []
    for most in range(1000, 20_000, 300) if EVERY else (1000, 3000, 20_000):
        done, _ = limited("FSIZE", most, form, force, program, jobs, tmp_path)
        assert done.code in (0, 6), done
        codes.append(done.code)
        if done.code:
            assert re.fullmatch(r"error: out[^\n]*File too large; free some space[^\n]*\n", done.err), done
    assert set(codes) == {0, 6}
    assert codes == sorted(codes, reverse=True)
