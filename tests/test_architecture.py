"""Data flows one way: a module imports only from what stands above it."""

from __future__ import annotations

import ast
import re
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
    "onnx",
    "evaluation",
    "publish",
    "grounding",
    "glip",
    "grounding_dino",
    "cli",
]
SOURCES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """`plan` for `converter.planning.plan`, `cli` for `converter.cli.inspect`, '' for the package itself."""
    return [*module.split("."), "", ""][1]


def imports_of(path: Path, *, types: bool = True) -> Iterator[str]:
    """Absolute names of all modules that a file imports, inside functions too; `types`: also what only types need."""
    package = ["converter", *path.relative_to(PACKAGE).parent.parts]
    tree = ast.parse(path.read_text())
    if not types:
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node))]
    for node in ast.walk(tree):
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
    """And of this package its own folder and errors; from_pretrained and save_pretrained alone know of files."""
    for path in SOURCES:
        if path.parent.name == "model":
            used = set(imports_of(path))
            assert {name.split(".")[0] for name in used} <= {"torch", "converter", *sys.stdlib_module_names}, path
            own = ".".join(["converter", *path.relative_to(PACKAGE).parent.parts])
            for name in used:
                files = ("converter.hub", "converter.glip.weights", "converter.glip.saving")
                allowed = (own, "converter.errors", *(files if path.name == "glip.py" else ()))
                assert not name.startswith("converter.") or name.startswith(allowed)


def test_only_what_runs_the_model_knows_torch() -> None:
    for path in SOURCES:
        if path.relative_to(PACKAGE).parts[0] not in {*FAMILIES, "grounding", "parity", "onnx", "evaluation"}:
            assert not {"torch", "safetensors"} & {name.split(".")[0] for name in imports_of(path)}, path


def test_nothing_unpickles() -> None:
    for path in SOURCES:
        assert not {"pickle", "_pickle", "shelve", "marshal", "dill"} & {n.split(".")[0] for n in imports_of(path)}, (
            path
        )


FAMILIES = {path.parent.name for path in PACKAGE.glob("*/family.py")} - {"parity"}


def test_families_are_found() -> None:
    assert {"glip", "grounding_dino"} <= FAMILIES


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(PACKAGE.rglob("*.*"))
        if path.suffix in {".py", ".json", ".html"}
        and path.relative_to(PACKAGE).parts[0] not in {*FAMILIES, "cli", "__init__.py"}
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_no_wing_but_its_own_and_the_command_line_names_a_family(path: Path) -> None:
    text = re.sub(r"[ _-]", "", path.read_text(encoding="utf-8").lower())  # nor as words of a sentence
    assert not [family for family in FAMILIES if family.replace("_", "") in text]


def test_families_do_not_know_each_other() -> None:
    for path in SOURCES:
        if (own := path.relative_to(PACKAGE).parts[0]) in FAMILIES:
            assert not {part_of(name) for name in imports_of(path)} & (FAMILIES - {own}), path


def test_the_command_line_finds_families_through_one_door() -> None:
    """The package itself points at what people import most, and imports none of it."""
    for path in SOURCES:
        if path.relative_to(PACKAGE).parts[0] not in FAMILIES:
            needed = imports_of(path, types=path != PACKAGE / "__init__.py")
            assert not [name for name in needed if part_of(name) in FAMILIES], path


def test_no_two_modules_import_each_other() -> None:
    """Directly or over others."""
    named = {".".join(["converter", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in SOURCES}
    named = {name.removesuffix(".__init__"): path for name, path in named.items()}
    # what only types need is no arrow: a class and what it is made by may know each other
    imports = {
        name: {other for other in imports_of(path, types=False) if other in named} - {name}
        for name, path in named.items()
    }
    done: set[str] = set()
    while free := {name for name in imports if name not in done and imports[name] <= done}:
        done |= free
    assert sorted(imports.keys() - done) == []


def test_the_house_is_small_and_drawn_as_it_is() -> None:
    entries = sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")
    drawing = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    tree = drawing.split("```\nconverter/\n")[1].split("```")[0]
    drawn = re.findall(r"^    ([\w.]+)/?(?= |$)", tree, re.MULTILINE)
    assert sorted(drawn) == entries
    assert [name.removesuffix(".py") for name in drawn if not name.startswith(("__", "py."))] == ORDER
    assert len(entries) <= 18
    for folder, about in re.findall(r"^    (\w+)/ (.*?)(?=^\S|^    \S)", tree, re.MULTILINE | re.DOTALL):
        named = set(re.findall(r"\w+\.(?:py|json)", about))
        assert named - {path.name for path in (PACKAGE / folder).rglob("*.*")} == set(), folder


@pytest.mark.parametrize(
    "path",
    [path for folder in ("converter", "scripts", "tests") for path in sorted((PACKAGE.parent / folder).rglob("*.py"))],
    ids=lambda path: str(path.relative_to(PACKAGE.parent)),
)
def test_rooms_are_of_a_size_to_live_in(path: Path) -> None:
    """A function is seen whole. A longer file says in its first line why it is one."""
    text = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in lengths.items() if lines > 50} == {}
    head = text.removeprefix("#!/usr/bin/env python3\n").partition("\n")[0]
    assert len(text.splitlines()) <= 350 or "one file" in head


def test_paths_that_documents_name_are_there() -> None:
    root = PACKAGE.parent
    texts = [path for path in (*root.glob("*.md"), *root.glob("docs/*.md")) if path.name != "CHANGELOG.md"]
    pattern = r"(?:converter|mappings|tests|scripts|docs)/[\w./-]*\w"
    named = {(path.name, found) for path in texts for found in re.findall(pattern, path.read_text(encoding="utf-8"))}
    assert sorted((text, found) for text, found in named if not (root / found).exists() and "NAME" not in found) == []


def test_tests_that_documents_name_are_there() -> None:
    root = PACKAGE.parent
    text = (root / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", text)
    assert len(named) > 15
    assert [name for path, name in named if f"def {name}(" not in (root / path).read_text(encoding="utf-8")] == []
