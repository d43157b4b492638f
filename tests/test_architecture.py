"""Data flows one way: a module imports only from what stands above it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import converter

PACKAGE = Path(converter.__file__).parent
ORDER = [
    "errors",
    "display",
    "checkpoint",
    "mapping",
    "planning",
    "writing",
    "hub",
    "parity",
    "glip",
    "publish",
    "cli",
]
SOURCES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """`plan` for `converter.planning.plan`, `cli` for `converter.cli.inspect`, '' for the package itself."""
    return [*module.split("."), "", ""][1]


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, inside functions too."""
    package = ["converter", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in {"__init__", "__main__"}:
        return
    allowed = {"", own, *ORDER[: ORDER.index(own)]}
    used = {part_of(name) for name in imports_of(path) if name.split(".")[0] == "converter"}
    assert used - {"__version__"} <= allowed


def test_a_model_needs_torch_alone() -> None:
    """And of this package its own folder, errors, and the Hub, where from_pretrained finds what is not here."""
    for path in SOURCES:
        if path.parent.name == "model":
            used = set(imports_of(path))
            assert {name.split(".")[0] for name in used} <= {"torch", "converter", *sys.stdlib_module_names}, path
            own = ".".join(["converter", *path.relative_to(PACKAGE).parent.parts])
            for name in used:
                assert not name.startswith("converter.") or name.startswith((own, "converter.errors", "converter.hub"))


def test_only_what_runs_the_model_knows_torch() -> None:
    for path in SOURCES:
        if path.relative_to(PACKAGE).parts[0] not in {"glip", "parity"}:
            assert not {"torch", "safetensors"} & {name.split(".")[0] for name in imports_of(path)}, path


def test_nothing_unpickles() -> None:
    for path in SOURCES:
        assert not {"pickle", "_pickle", "shelve", "marshal", "dill"} & {n.split(".")[0] for n in imports_of(path)}, (
            path
        )
