"""Finding, parsing and schema-checking the JSON documents in `mappings/`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from converter.errors import TableError

_LARGEST_DOCUMENT = 4 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON document that the schema accepts. `sha256` is that of its bytes."""

    path: Path
    sha256: str
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.content["name"])


def mappings_folder() -> Path:
    """`mappings/` of the installed package, or of the checkout it runs from."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "mappings"
    return installed if installed.is_dir() else package.parent / "mappings"


def find_document(name_or_path: str | Path, kind: str) -> Document:
    """The table or spec (`kind`) of that name, or at that path if it ends in `.json`."""
    if str(name_or_path).endswith(".json"):
        return _checked(Path(name_or_path), kind)
    known = names_of(kind)
    if name_or_path not in known:
        raise TableError(f"no {kind} is called {str(name_or_path)!r}; known: {', '.join(sorted(known))}")
    content, sha256 = _parse(path := mappings_folder() / f"{name_or_path}.json")
    return Document(path, sha256, content)  # `list_documents` checks the built-in ones, where there is time for it


def names_of(kind: str) -> list[str]:
    """Names of the built-in tables or specs."""
    return [path.stem for path, found in _listing() if found == kind]


def kind_of(path: str | Path) -> str | None:
    """The kind that the document at a path says it is; None for a name."""
    return str(_parse(Path(path))[0].get("kind")) if str(path).endswith(".json") else None


def list_documents(kind: str) -> list[Document]:
    """All built-in tables or specs, by name, checked by the schema."""
    return [_checked(path, kind) for path, found in _listing() if found == kind]


@cache
def _listing() -> tuple[tuple[Path, str], ...]:
    paths = (path for path in sorted(mappings_folder().glob("*.json")) if path.name != "schema.json")
    return tuple((path, str(_parse(path)[0].get("kind"))) for path in paths)


def _checked(path: Path, kind: str) -> Document:
    content, sha256 = _parse(path)
    if content.get("kind") != kind:
        raise TableError(f"{path}: 'kind' is {content.get('kind')!r}, expected {kind!r}")
    _validate(content, path)
    return Document(path, sha256, content)


def _parse(path: Path) -> tuple[dict[str, Any], str]:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_DOCUMENT + 1)
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST_DOCUMENT:
        raise TableError(f"{path} is larger than {_LARGEST_DOCUMENT >> 20} MiB; this is no mapping table")
    try:
        content = json.loads(data, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise TableError(f"{path}: a JSON object was expected")
    return content, hashlib.sha256(data).hexdigest()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} occurs twice in one object")
    return result


@cache
def _schema_of(kind: str) -> Any:
    """The validator of one kind of document; naming the kind gives errors that point at the fault, not at `oneOf`."""
    import jsonschema  # 60 ms: not on the path of --help

    schema, _ = _parse(mappings_folder() / "schema.json")
    return jsonschema.Draft202012Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{kind}"})


def _innermost(error: Any) -> Any:
    """Of the alternatives that a value could have met, the error of the one it came closest to."""
    from jsonschema.exceptions import best_match

    return best_match([error])


def _validate(content: dict[str, Any], path: Path) -> None:
    problems = []
    for error in map(_innermost, _schema_of(content["kind"]).iter_errors(content)):
        pointer = "".join(f"/{part}" for part in error.absolute_path)
        message = error.message if len(error.message) < 300 else error.message[:300] + "..."
        problems.append(f"{pointer or '/'}: {message}")
    if problems:
        raise TableError(f"{path} breaks mappings/schema.json in {len(problems)} places", problems)
