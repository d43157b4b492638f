"""A folder to publish, made by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from converter.cli import main


def run(folder: Path, conversion: str, out: Path, *more: object) -> Result:
    vocab = ["--vocab", folder / "vocab.txt"]
    return CliRunner().invoke(main, ["package", *map(str, [folder / conversion, out, *vocab, *more])])


def packaged(folder: Path, conversion: str = "glip.safetensors", *more: object) -> Path:
    out = folder / "out"
    result = run(folder, conversion, out, *more)
    assert result.exit_code == 0, result.output
    return out


def card_of(out: Path) -> str:
    return (out / "README.md").read_text(encoding="utf-8")


def bill_of(out: Path) -> dict[str, Any]:
    """The bill of materials, which the library's own strict validator takes, formats of addresses included."""
    content = (out / "bom.cdx.json").read_text(encoding="ascii")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(content) is None
    bill: dict[str, Any] = json.loads(content)
    return bill


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
