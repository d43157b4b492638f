"""`converter tables` and `converter lint`: which tables there are, what they tap, and whether they are sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import print_json, reports
from converter.display import counted

if TYPE_CHECKING:
    from converter.mapping.spec import Config, Spec
    from converter.mapping.table import Table

_EPILOG = """\b
Examples:
  converter tables --json
  converter tables --taps glip-official --variant glip-t > taps.json
\b
The second writes what scripts/capture_official.py needs: that script runs where
this package is not installed."""


@click.command(epilog=_EPILOG)
@click.option("--taps", metavar="TABLE", help="Print which activations to capture for TABLE, as JSON.")
@click.option("--variant", help="Variant whose taps to print.")
@reports
def tables(taps: str | None, variant: str | None, as_json: bool) -> None:
    """List the built-in formats: the targets' own naming, the mapping tables to it, and the variants each serves."""
    from converter.mapping.documents import list_documents
    from converter.mapping.load import load_table
    from converter.mapping.spec import load_spec

    if (taps is None) != (variant is None):
        raise click.UsageError("--taps and --variant are used together: a table taps other modules for each variant")
    if taps is not None and variant is not None:
        chosen = load_table(taps)
        print_json(source_taps(chosen, variant, chosen.spec.variant(variant).config))
        return
    content: list[dict[str, Any]] = []
    for document in list_documents("spec"):
        spec = load_spec(document.name)
        content.append(
            {
                "name": spec.name,
                "title": spec.title,
                "target": spec.name,
                "variants": _variants(spec),
                "parts": {name: _variants(part) for name, part in spec.parts.items()},
                "sha256": spec.sha256,
            }
        )
    for document in list_documents("table"):
        table = load_table(document.name)
        content.append(
            {
                "name": table.name,
                "title": table.title,
                "target": table.spec.name,
                "variants": _variants(table.spec),
                "rules": len(table.pointers("rules")),
                "sha256": table.sha256,
            }
        )
    if as_json:
        print_json({"formats": content})
        return
    for entry in content:
        click.echo(f"{entry['name']}: {entry['title']}")
        kind = f"{entry['rules']} rules to {entry['target']}" if "rules" in entry else "the target's own naming"
        click.echo(f"  {kind}; variants {', '.join(entry['variants'])}")
        for part, variants in entry.get("parts", {}).items():
            click.echo(f"  a file may hold its part {part} alone; variants {', '.join(variants)}")


def _variants(spec: Spec) -> list[str]:
    return [name for variant in spec.variants for name in (variant.name, *variant.also)]


def source_taps(table: Table, model: str, config: Config) -> dict[str, Any]:
    """What scripts/capture_official.py reads: each activation's name, the module that returns it, and where in that;
    and the tensors by which the weights are known."""
    from converter.writing.state_dict import names_read

    return {
        "table": table.name,
        "table_sha256": table.sha256,
        "model": model,
        "taps": [
            {"name": tap.name, "module": tap.module, "output": list(tap.output)}
            | ({"axes": list(tap.axes)} if tap.axes else {})
            for tap in table.bind(config).source_taps
        ],
        "tensors": names_read(table, config),
    }


@click.command(
    epilog="\b\nExamples:\n  converter lint\n  converter lint my-table.json\n  converter lint mappings/*.json"
)
@click.argument("names", metavar="[TABLE]...", nargs=-1)
@reports
def lint(names: tuple[str, ...], as_json: bool) -> None:
    """Check tables, built-in ones and the list of wrappers by default: schema, coverage of every variant, ambiguity,
    reversibility; and what the spec of each says of files. A spec or a fragment is checked with all tables of its
    folder, whose meaning it changes."""
    from converter.errors import TableError
    from converter.mapping.documents import list_documents
    from converter.mapping.doubts import unsettled
    from converter.mapping.lint import lint as problems_of
    from converter.mapping.lint import lint_wrappers
    from converter.mapping.load import hub_table, load_table
    from converter.mapping.spec import load_spec

    problems: list[str] = []
    checked = set()
    in_doubt = None  # the table of which nothing but doubts is wrong, if it is the only one
    if not names:
        for document in list_documents("spec"):  # the schema checks them
            problems += [f"{document.name}: {said}" for said in problems_of(hub_table(load_spec(document.name)))]
        problems += lint_wrappers()
    for name in _tables_of(names) if names else [document.name for document in list_documents("table")]:
        table = load_table(name)
        if names and table.spec.files and table.spec.sha256 not in checked:
            checked.add(table.spec.sha256)
            problems += [f"{table.spec.name}: {said}" for said in problems_of(hub_table(table.spec))]
        found = problems_of(table)
        in_doubt = table.path if not problems and len(found) == len(table.doubts()) else None
        problems += [f"{table.name}: {problem}" for problem in found]
        if not as_json and not problems:
            click.echo(f"{table.name}: {len(table.pointers('rules'))} rules, sound for every variant")
    if problems:
        raise TableError(
            unsettled(in_doubt, len(problems)) if in_doubt else counted(len(problems), "problem"), problems
        )
    if as_json:
        print_json({"problems": []})


def _tables_of(names: Sequence[str]) -> list[str]:
    """Those tables, and in place of a spec or a fragment, once it is sound by itself, all tables of its folder."""
    from converter.mapping.documents import find_document, kind_of, tables_beside
    from converter.mapping.spec import load_spec

    found: dict[str, None] = {}
    for name in names:
        kind = kind_of(name)
        if kind not in ("spec", "fragment"):
            found[name] = None
            continue
        if kind == "spec":
            load_spec(name)
        document = find_document(name, kind)
        found |= dict.fromkeys(str(path) for path in tables_beside(document.path))
    return list(found)
