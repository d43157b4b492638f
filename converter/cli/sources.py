"""Where a command reads: a local path, or what `org/name` or `hf://org/name/file.pth@revision` names on the Hub."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from converter.hub.requests import show_progress
from converter.hub.resolve import is_on_hub, resolve


@dataclass(frozen=True, slots=True)
class Located:
    """A local path. `origin`: the commit of the Hub that it is from, with the SHA-256 of each file."""

    path: Path
    origin: dict[str, Any] | None


def locate(text: str, *, quiet: bool = False) -> Located:
    """`text` as a local path; what is on the Hub is downloaded, or found in the cache, and hashed. Raises HubError."""
    if not is_on_hub(text):
        return Located(Path(text), None)
    show_progress(sys.stderr.isatty() and not quiet)
    found = resolve(text, say=lambda line: click.echo(line, err=True))
    click.echo(f"using {found.reference}", err=True)
    return Located(found.path, {"reference": found.reference, "files": dict(found.files)})
