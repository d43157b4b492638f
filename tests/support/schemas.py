"""All JSON that tests make commands print, beside the schemas that are shipped with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import click
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from converter.cli import output
from converter.cli.schema import FOLDER


@contextmanager
def checked() -> Iterator[list[str]]:
    """In this process `output.versioned` also checks what it is given; a list of what was not as its schema says."""
    problems: list[str] = []
    versioned = output.versioned

    def check(content: Mapping[str, Any]) -> dict[str, Any]:
        document = versioned(content)
        name = click.get_current_context().command.name or ""
        if (problem := problem_of(name, json.loads(json.dumps(document)))) is not None:
            problems.append(problem)
        return document

    output.versioned = check
    yield problems
    output.versioned = versioned


def problem_of_run(arguments: Sequence[str], out: str) -> str | None:
    """The same of a whole program: `out` is what it printed, nothing if it was ended by a signal."""
    if "--json" not in arguments or not out:
        return None
    command = next((word for word in arguments if (FOLDER / f"{word}.json").exists()), "convert")
    try:
        document = json.loads(out)
    except ValueError as error:
        return f"{command} --json printed no JSON: {error}: {out[:200]!r}"
    return problem_of(command, document)


def problem_of(command: str, document: Any) -> str | None:
    """Where a document is not as its schema says, and what to do about it."""
    name = "error" if isinstance(document, dict) and document.keys() == {"schema_version", "error"} else command
    if not (FOLDER / f"{name}.json").exists():
        return f"{command} prints JSON and has no schema: write converter/cli/schemas/{command}.json"
    if not isinstance(document, dict) or next(iter(document)) != "schema_version":
        return f"{command} --json: schema_version is not the first key: use print_json"
    found = best_match(_validator(name).iter_errors(document))
    if found is None:
        return None
    return (
        f"{command} --json: at /{'/'.join(map(str, found.absolute_path))}: {found.message[-300:]}. "
        f"A new field goes into converter/cli/schemas/{name}.json, too; docs/ci.md says when schema_version changes."
    )


@cache
def _validator(name: str) -> Any:
    return Draft202012Validator(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
