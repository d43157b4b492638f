"""`converter schema`: what the JSON of a command holds."""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = Path(__file__).with_name("schemas")
_EPILOG = """\b
Examples:
  converter schema parity > parity.schema.json
  converter schema error
\b
Whatever the command, an error is as 'error' says. schema_version changes where a
field goes or changes its meaning, not where one is added."""


@click.command(epilog=_EPILOG)
@click.argument("name", type=click.Choice(sorted(path.stem for path in FOLDER.glob("*.json"))), metavar="COMMAND")
def schema(name: str) -> None:
    """Print the JSON Schema (2020-12) of what COMMAND prints with --json."""
    click.echo(FOLDER.joinpath(f"{name}.json").read_text(encoding="utf-8"), nl=False)
