"""What --json prints is described: a schema for each command, shipped with the package and printed by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from converter.cli import main
from converter.cli.output import print_json
from converter.cli.schema import FOLDER
from tests.support.schemas import problem_of

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# what others decide: facts on a capture, configurations of families, rules of a table
OPEN = {("capture", ""), ("draft", "/properties/doubtful/items"), ("settle", "/properties/doubtful/items")}


def content(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_every_command_with_json_has_a_schema() -> None:
    commands = [n for n, command in main.commands.items() if any(p.name == "as_json" for p in command.params)]
    assert sorted([*commands, "error"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one_and_is_printed(name: str) -> None:
    schema = content(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:converter:json:{name}:1"
    assert "schema_version" in schema["required"]
    assert json.loads(CliRunner().invoke(main, ["schema", name]).stdout) == schema


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_lists_every_property(name: str) -> None:
    """What it does not name may not be there; a part without a type belongs to a whole that says so."""
    closed = ({"additionalProperties", "unevaluatedProperties"} & part.keys() or (name, at) in OPEN for at, part in
              parts(content(name)) if part.get("type") == "object" and "properties" in part)  # fmt: skip
    assert all(closed)


def parts(schema: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        yield at, schema
        for key, value in schema.items():
            yield from parts(value, f"{at}/{key}")
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from parts(value, f"{at}/{number}")


def test_a_field_that_no_schema_has_makes_any_test_fail(unlike_schemas: list[str]) -> None:
    lint = main.commands["lint"]
    with lint.make_context("lint", []):
        print_json({"problems": []})
        assert unlike_schemas == []
        print_json({"problems": [], "suspects": []})
    problem = unlike_schemas.pop()
    assert "'suspects' was unexpected" in problem
    assert "goes into converter/cli/schemas/lint.json" in problem


@pytest.mark.parametrize(
    ("command", "document", "said"),
    [
        ("lint", {"schema_version": 2, "problems": []}, "at /schema_version"),
        ("lint", {"problems": [], "schema_version": 1}, "not the first key"),
        ("new", {"schema_version": 1}, "write converter/cli/schemas/new.json"),
        ("parity", {"schema_version": 1, "error": {"type": "PlanError"}}, "'message' is a required property"),
    ],
)
def test_a_document_that_is_not_as_its_schema_says(command: str, document: Any, said: str) -> None:
    assert said in (problem_of(command, document) or "")
