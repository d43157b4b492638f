"""Finding, parsing and schema-checking the JSON documents in `mappings/`, and writing such."""

from __future__ import annotations

import difflib
import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from converter.checkpoint.strict_json import parse_json, read_limited
from converter.display import counted, plain, quoted
from converter.errors import TableError
from converter.mapping import folders
from converter.mapping.folders import RELEASED, WRAPPERS
from converter.mapping.released import is_as_released

_LARGEST_DOCUMENT = 4 << 20
_MOST_VALUES = 200_000  # the schema takes some 20 microseconds for each
_DEEPEST = 64
_SHOWN = 100  # problems of one document


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON document that the schema accepts. `sha256` is that of its bytes."""

    path: Path
    sha256: str
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.content["name"])


def find_document(name_or_path: str | Path, kind: str) -> Document:
    """The table or spec (`kind`) of that name, or at that path if it ends in `.json`."""
    if str(name_or_path).endswith(".json"):
        return _checked(Path(name_or_path), kind)
    known = names_of(kind)
    if name_or_path not in known:
        raise unknown(kind, str(name_or_path), known)
    path = next(path for path, found in _listing() if path.stem == name_or_path and found == kind)
    return _as_released(path, kind)


def unknown(kind: str, name: str, known: Iterable[str]) -> TableError:
    """The error for a name that is not among those that are known, with the one that was probably meant."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower().replace("_", "-")[:100], names, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    return TableError(f"no {kind} is called {quoted(name)}; known: {', '.join(names)}{hint}")


def names_of(kind: str) -> list[str]:
    """Names of the tables or specs of this package, and of the families that are installed beside it."""
    return [path.stem for path, found in _listing() if found == kind]


def known_paths() -> tuple[Path, ...]:
    """The documents that have names."""
    return tuple(path for path, _ in _listing())


def kind_of(path: str | Path) -> str | None:
    """The kind that the document at a path says it is; None for a name."""
    return str(_parse(Path(path))[0].get("kind")) if str(path).endswith(".json") else None


def tables_beside(path: Path) -> list[Path]:
    """The tables in the folder of a document, by name; files there that are no documents are nobody's concern here."""
    found = []
    for other in sorted(path.parent.glob("*.json")):
        with suppress(TableError):
            found += [other] if kind_of(other) == "table" else []
    return found


def list_documents(kind: str) -> list[Document]:
    """All tables or specs that have a name, by name, checked by the schema."""
    return [_checked(path, kind) for path, found in _listing() if found == kind]


def read_wrappers(*, check: bool = False) -> dict[str, Any]:
    """The content of `wrappers.json`, checked by the schema if it is not as released, or where that is asked for."""
    return (_checked if check else _as_released)(folders.mappings_folder() / WRAPPERS, "wrappers").content


@cache
def _listing() -> tuple[tuple[Path, str], ...]:
    """Path and kind of every document that has a name; one of this package hides others of its name."""
    places = [*(family.mappings for family in reversed(folders.installed_families())), folders.mappings_folder()]
    about = {"schema.json", RELEASED, WRAPPERS}
    paths = {path.stem: path for folder in places for path in folder.glob("*.json") if path.name not in about}
    by_name = sorted(paths.values(), key=lambda path: path.name)
    return tuple((path, str(_parse(path)[0].get("kind"))) for path in by_name)


def to_text(document: Mapping[str, Any]) -> str:
    """JSON with a line for each rule, as tables are written by hand."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = ",\n".join("    " + json.dumps(item) for item in value)
            lines.append(f"  {json.dumps(key)}: [\n{items}\n  ]")
        elif key in ("config", "variants", "words") and value:
            items = ",\n".join(f"    {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items())
            lines.append(f"  {json.dumps(key)}: {{\n{items}\n  }}")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _as_released(path: Path, kind: str) -> Document:
    """A document that has a name. What was released is not checked again: the tests did that, and `lint` does."""
    content, sha256 = _parse(path)
    return Document(path, sha256, content) if is_as_released(path, sha256) else _checked(path, kind)


def _checked(path: Path, kind: str) -> Document:
    content, sha256 = _parse(path)
    if problems := list(islice(_unsayable(content), _SHOWN)):
        raise TableError(f"{path} holds what no table needs", problems)
    if content.get("kind") != kind:
        raise TableError(f"{path}: /kind is {quoted(str(content.get('kind')))}, expected {kind!r}")
    _validate(content, path)
    return Document(path, sha256, content)


def _parse(path: Path) -> tuple[dict[str, Any], str]:
    try:
        data = read_limited(path, _LARGEST_DOCUMENT)
        content = parse_json(data.removeprefix(BOM_UTF8))
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise TableError(f"{path} is not the JSON of a table or spec: {error}") from None
    if not isinstance(content, dict):
        raise TableError(f"{path}: a JSON object was expected")
    return content, hashlib.sha256(data).hexdigest()


def _unsayable(content: Any) -> Iterator[str]:
    """Problems of a document of any kind: too large, texts that cannot be printed, numbers that are no sizes."""
    values = 0
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), content)]
    while waiting:
        path, value = waiting.pop()
        values += 1
        if values > _MOST_VALUES:
            yield f"{pointer_to(path)}: more than {_MOST_VALUES} values up to here; a table needs fewer"
            return
        if len(path) > _DEEPEST:
            yield f"{pointer_to(path)}: deeper than {_DEEPEST} levels"
            return
        if isinstance(value, dict):
            yield from (
                f"{pointer_to(path)}: the name {quoted(name)} has characters that cannot be printed"
                for name in value
                if not name.isprintable()
            )
            waiting += (((*path, name), item) for name, item in reversed(value.items()))
        elif isinstance(value, list):
            waiting += (((*path, i), value[i]) for i in reversed(range(len(value))))
        elif isinstance(value, str) and not value.isprintable():
            yield f"{pointer_to(path)}: {quoted(value)} has characters that cannot be printed"
        elif isinstance(value, int) and abs(value) > 1 << 62:
            yield f"{pointer_to(path)}: a number beyond 2**62"


def pointer_to(path: Iterable[str | int]) -> str:
    """The JSON pointer of a place in a document: `/rules/3/source`; `/` for the whole."""
    steps = (plain(str(step).replace("~", "~0").replace("/", "~1")) for step in path)
    return "".join(f"/{step}" for step in steps) or "/"


@cache
def _schema_of(kind: str) -> Any:
    """The validator of one kind of document; naming the kind gives errors that point at the fault, not at `oneOf`."""
    from jsonschema import Draft202012Validator  # 60 ms: not on the path of --help
    from jsonschema.validators import extend

    schema, _ = _parse(folders.mappings_folder() / "schema.json")
    # JSON Schema takes 1.0 for an integer, but a size of 1.0 is none
    strict = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return extend(Draft202012Validator, type_checker=strict)({"$defs": schema["$defs"], "$ref": f"#/$defs/{kind}"})


def _innermost(error: Any) -> Any:
    """Where a value matches no alternative of the schema: the error of the alternative that it comes closest to."""
    from jsonschema.exceptions import best_match

    # alternatives with another 'op' or 'as' than the value has are left out
    others = {part.schema_path[0] for part in error.context if part.path and part.path[-1] in ("op", "as")}
    error.context = [part for part in error.context if part.schema_path[0] not in others] or error.context
    return best_match([error])


def _validate(content: dict[str, Any], path: Path) -> None:
    problems = []
    for error in map(_innermost, islice(_schema_of(content["kind"]).iter_errors(content), _SHOWN)):
        message = error.message if len(error.message) < 300 else f"{error.message[:150]} ... {error.message[-150:]}"
        problems.append(f"{pointer_to(error.absolute_path)}: {message}")
    if problems:
        more = "at least " if len(problems) == _SHOWN else ""
        raise TableError(f"{path} breaks mappings/schema.json in {more}{counted(len(problems), 'place')}", problems)
