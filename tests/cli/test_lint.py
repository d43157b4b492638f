"""`converter lint` on a table of one's own: what its spec says of files of the library is checked, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from converter.cli import main
from tests.support.tiny import SPEC, write_table

COPY = {"source": "tied.weight", "reason": "one matrix", "written": {}}


def problems_of(*tables: Path) -> list[str]:
    result = CliRunner().invoke(main, ["lint", *map(str, tables), "--json"])
    content = json.loads(result.stdout)
    return content["error"]["problems"] if result.exit_code else content["problems"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"saved_as": {"config": {"depth": "=nope"}}},
            "tiny: tiny-2: tiny: /saved_as/config/depth: expression 'nope': unknown name",
        ),
        (
            {"ignore": [{**COPY, "rebuild": {"as": "copy", "of": "nothing"}}]},
            "/ignore/0: a copy of 'nothing', which no",
        ),
        ({"ignore": [{**COPY, "rebuild": {"as": "copy", "of": "embed.weight"}}]}, None),
    ],
)
def test_what_the_spec_says_of_files_is_checked(files: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    table = write_table(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(SPEC | files))
    found = problems_of(table)
    assert any(said in problem for problem in found) if said else found == [], found


def test_a_spec_of_two_tables_is_checked_once(tmp_path: Path) -> None:
    table = write_table(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(SPEC | {"saved_as": {"config": {"depth": "=nope"}}}))
    other = tmp_path / "other.json"
    other.write_text(table.read_text().replace('"tiny-table"', '"other"'))
    assert len(problems_of(table, other)) == len(SPEC["variants"])


def test_a_spec_is_checked_with_the_tables_of_its_folder(tmp_path: Path) -> None:
    """As pre-commit gives it, where only the spec was changed."""
    table = write_table(tmp_path)
    (tmp_path / "package.json").write_text("[]")  # of another program
    assert problems_of(tmp_path / "tiny.json") == []
    (tmp_path / "tiny.json").write_text(json.dumps(SPEC).replace('"scalar"', '"scale"'))
    (said, *_) = problems_of(tmp_path / "tiny.json")
    assert said == "tiny-table: tiny-2: /rules/7: makes nothing; 'scalar' fits no tensor of the target"
    assert problems_of(tmp_path / "tiny.json", table).count(said) == 1
    table.unlink()
    assert problems_of(tmp_path / "tiny.json") == []  # so far nothing says how it is made
    (tmp_path / "tiny.json").write_text(json.dumps({**SPEC, "tensors": [{}]}))
    assert problems_of(tmp_path / "tiny.json")


def test_what_is_no_table_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"kind": "else"}')
    result = CliRunner().invoke(main, ["lint", str(tmp_path / "other.json")])
    assert (result.exit_code, "/kind is 'else', expected 'table'" in result.stderr) == (4, True)
