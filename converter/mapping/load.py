"""Tables from their documents: with the tables that they include, and with the spec of their target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter.errors import TableError
from converter.mapping.documents import Document, find_document, known_paths, names_of
from converter.mapping.joined import joined
from converter.mapping.spec import SUFFIXES, Spec, load_spec
from converter.mapping.table import SavedAs, Table


def load_table(name_or_path: str | Path) -> Table:
    """Read a table by name or path (`my-table.json`), with the spec of its target.

    A table at a path may name a spec at a path beside it: `target` is looked up there first.
    Raises TableError, also for a table of one's own that has the name of a built-in one.
    """
    document = find_document(name_or_path, "table")
    if str(name_or_path).endswith(".json"):
        document = _as_known(document)
    content = document.content
    spec = load_target(content["target"], document.path)
    if document.name == spec.name:
        raise TableError(
            f"{document.path}: /name is {document.name!r}, which is the target's own naming. Choose another name"
        )
    if (part := content.get("part")) is not None:
        if part not in spec.parts:
            raise TableError(f"{document.path}: {spec.name} has no part {part!r}; known: {', '.join(spec.parts)}")
        spec = spec.parts[part]
    merged = _Merged()
    merged.add(content, "", "", (document.name,))
    hashes = [document.sha256, *merged.included]
    return Table(
        document.name,
        content["title"],
        hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
        document.path,
        spec,
        tuple(content.get("prefixes", ())),
        merged.names["aliases"],
        SavedAs(**content.get("saved_as", {})),
        merged.names["words"],
        merged.names["constants"],
        {section: tuple(entries) for section, entries in merged.entries.items()},
        parts_of_others={part: entry["reason"] for entry in content.get("foreign", ()) for part in entry["parts"]},
    )


def load_target(name: str, path: Path) -> Spec:
    """The whole spec that a table at `path` names: beside it, or built in."""
    beside = path.parent / f"{name}.json"
    # one that has a name is not checked by the schema again for each of its tables
    return load_spec(beside if beside.is_file() and beside not in known_paths() else name)


def _as_known(document: Document) -> Document:
    """The document; a copy of the table that is known by its name has the hash of that one, however it is laid out.

    TableError for another table of that name.
    """
    name = document.name
    known = find_document(name, "table") if name in names_of("table") else None
    if known is not None and document.content == known.content:
        return replace(document, sha256=known.sha256)
    if known is not None or name in names_of("spec"):
        raise TableError(
            f"{document.path}: /name is {name!r}, and it is not the table that is known by this name. Choose another"
        )
    return document


class _Merged:
    """What a table and those that it includes say together; `included` are the hashes of the latter."""

    def __init__(self) -> None:
        self.entries: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        self.names: dict[str, dict[str, Any]] = {"words": {}, "constants": {}, "aliases": {}}
        self.included: list[str] = []

    def add(self, content: Mapping[str, Any], at: str, origin: str, path: tuple[str, ...]) -> None:
        """Add the entries of `content`, with `at` before the source keys. `path`: the chain of includes down to it."""
        for include in content.get("include", ()):
            if include["table"] in path:
                raise TableError(f"{path[0]}: /include: {' includes '.join([*path, include['table']])}")
            kind = "table" if include["table"] in names_of("table") else "fragment"
            document = find_document(include["table"], kind)
            self.included.append(document.sha256)
            name = document.name
            content_of = document.content
            if (through := include.get("through")) is not None:
                if "include" in content_of:
                    raise TableError(
                        f"{path[0]}: /include: {name!r} includes others, and cannot be gone through; include these"
                    )
                beyond = find_document(through["table"], "fragment")
                self.included.append(beyond.sha256)
                content_of = joined(content_of, beyond, through["at"])
            self.add(content_of, at + include["at"], f"{name}:", (*path, name))
        for section, known in self.names.items():
            for name, value in content.get(section, {}).items():
                if known.setdefault(name, value) != value:
                    raise TableError(f"{path[0]}: included tables disagree on /{section}/{name}")
        for section in ("rules", "ignore", "absent"):
            for position, entry in enumerate(content.get(section, ())):
                moved = {**entry, "source": _behind(at, entry["source"])} if at and "source" in entry else entry
                self.entries.setdefault(section, []).append((f"{origin}/{section}/{position}", moved))
        if not origin:  # the modules of an included format are elsewhere here
            self.entries["taps"] = [(f"/taps/{i}", entry) for i, entry in enumerate(content.get("taps", ()))]


def _behind(at: str, patterns: str | list[str]) -> str | list[str]:
    return at + patterns if isinstance(patterns, str) else [at + pattern for pattern in patterns]


def hub_table(spec: Spec) -> Table:
    """The table of the spec's own naming, by which a converted file is read and written like any other format."""
    rules: dict[str, dict[str, Any]] = {}
    for entry in spec.entries:
        for suffix, key in SUFFIXES:
            if key in entry:
                name = entry["name"] + suffix
                optional = {"optional": spec.optional[entry["name"]]} if entry["name"] in spec.optional else {}
                rules[name] = {"source": name, "target": name, **optional}
    entries = {
        "rules": tuple((f"/{name}", rule) for name, rule in rules.items()),
        "ignore": tuple((f"/ignore/{i}", entry) for i, entry in enumerate(spec.files.get("ignore", ()))),
    }
    return Table(
        spec.name,
        spec.title,
        spec.sha256,
        Path(spec.name),
        spec,
        (),
        spec.files.get("aliases", {}),
        SavedAs(**spec.files.get("saved_as", {})),
        spec.files.get("words", {}),
        {},
        entries,
        is_hub=True,
    )
