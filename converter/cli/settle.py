"""`converter settle`: the doubts of a drafted table, and what a person who looked says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import PATH, done_with, print_json, reports
from converter.display import counted, file_name
from converter.errors import DestinationError, TableError

if TYPE_CHECKING:
    from converter.mapping.settle import How
    from converter.planning.values import Answers

_EPILOG = """\b
Examples:
  converter settle tables/mine.json
  converter settle tables/mine.json keep /rules/4 --note "reshaped to (3, heads, size)"
  converter settle tables/mine.json transpose text_projection
  converter settle tables/mine.json exchange /rules/2 /rules/3
  converter settle tables/mine.json --values mine.pth theirs.safetensors
\b
A rule is named by its pointer or by its source. keep: it is right as it
stands; of 'ignore', the target does not need the tensor, of 'absent', the
source has none. transpose: it is right, but the target stores two axes
exchanged. exchange: two rules make each other's targets. Anything else is
written into the table by hand.
--values: both files hold the same weights, so that their numbers tell.
\b
Exit codes: 0 no doubt is left, or some were settled now; 4 doubts are left and
none was settled; others as in 'converter --help'."""


@click.command(epilog=_EPILOG)
@click.argument("table", type=PATH)
@click.argument("how", type=click.Choice(["keep", "transpose", "exchange"]), required=False)
@click.argument("rules", metavar="[RULE]...", nargs=-1)
@click.option("--note", help="Why, to be kept in the table beside the rule.")
@click.option(
    "--values",
    nargs=2,
    metavar="SOURCE TARGET",
    help="Settle what the numbers of two checkpoints of the same weights tell.",
)
@reports
def settle(
    table: Path, how: How | None, rules: tuple[str, ...], note: str | None, values: tuple[str, str] | None,
    as_json: bool,
) -> None:  # fmt: skip
    """List the doubts of TABLE, or settle those of some RULEs."""
    if values and how:
        raise click.UsageError("--values decides by itself what to keep, transpose and exchange; give no rules")
    if bool(how) != bool(rules) and not values:
        raise click.UsageError("name the rules that it is about, by their pointers: keep /rules/4 /rules/5")
    if not how and note:
        raise click.UsageError("--note goes with rules: keep /rules/4 --note TEXT")
    if table.suffix != ".json":
        raise TableError(f"{file_name(table)}: built-in tables have no doubts; give the path of a table, NAME.json")
    changes: list[tuple[How, Sequence[str]]] = [(how, rules)] if how else []
    told: Mapping[str, str] = {}
    if values:
        answers = _by_values(table, values, quiet=as_json)
        told = answers.told
        for one in ("keep", "transpose"):
            if pointers := [pointer for pointer, answer in told.items() if answer == one]:
                changes.append((one, pointers))
        changes += [("exchange", pair) for pair in answers.exchanges]
    before, left = _settled(table, changes, note or ("the values of two checkpoints say so" if values else None))
    if as_json:
        print_json({"table": str(table), "doubts": len(left), "doubtful": _listed(left), "values": told})
    else:
        _print(table, left, told, changes, before - len(left))
    if left and not changes:
        click.get_current_context().exit(TableError.exit_code)


def _by_values(table: Path, values: tuple[str, str], *, quiet: bool) -> Answers:
    from converter.cli.sources import locate
    from converter.mapping.load import load_table
    from converter.planning.formats import open_known
    from converter.planning.values import told_by_values

    source, target = (locate(text, quiet=quiet).path for text in values)
    with open_known(source, source=str(table)) as one, open_known(target, merge=False) as other:
        return told_by_values(load_table(table), one, other)


def _settled(table: Path, changes: Sequence[tuple[How, Sequence[str]]], note: str | None) -> tuple[int, dict[str, Any]]:
    """Write the table as it is changed; how many entries were in doubt, and those that still are."""
    from converter.mapping.documents import find_document, to_text
    from converter.mapping.doubts import in_doubt_of
    from converter.mapping.settle import settled
    from converter.writing.staging import write_whole

    content = find_document(table, "table").content
    before = len(in_doubt_of(content))
    if changes:
        if table.is_symlink():
            raise DestinationError(f"{file_name(table)} is a symbolic link; give the path of the table itself")
        for how, rules in changes:
            content = settled(table, content, how, rules, note)
        write_whole(table, to_text(content).encode(), on_done=done_with(file_name(table)))
    return before, dict(in_doubt_of(content))


def _listed(left: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"rule": pointer, **entry} for pointer, entry in left.items()]


def _print(
    table: Path,
    left: Mapping[str, Any],
    told: Mapping[str, str],
    changes: Sequence[tuple[How, Sequence[str]]],
    settled: int,
) -> None:
    for pointer, answer in told.items():
        click.echo(f"  {pointer}  by the values: {answer}")
    if changes:
        count = len({rule for _, rules in changes for rule in rules})
        others = f", and {counted(count - settled, 'rule')} changed that had none" if count > settled else ""
        click.echo(f"settled: {counted(settled, 'doubt')}{others}; {len(left) or 'none'} left in {table}")
    else:
        click.echo(f"{counted(len(left), 'doubt')} in {table}" if left else f"no doubt in {table}")
    if told or not changes:
        for line in doubt_lines(left):
            click.echo(line)
    click.echo(f"next: {next_step(table, left)}")


def doubt_lines(doubts: Mapping[str, Any]) -> list[str]:
    """Each entry in doubt in two lines: what it says, and why it is in doubt."""
    lines = []
    for pointer, entry in doubts.items():
        sides = [entry[side] for side in ("source", "target") if side in entry]
        texts = [side if isinstance(side, str) else " + ".join(side) for side in sides]
        alone = "is left out" if "source" in entry else "is made by no rule"
        lines += [f"  {pointer}  {' -> '.join(texts) if len(texts) > 1 else f'{texts[0]} {alone}'}"]
        if ops := [op["op"] for op in entry.get("ops", ())]:
            lines[-1] += f" ({', then '.join(ops)})"
        lines.append(f"      {entry['doubt']}")
    return lines


def next_step(table: Path, doubts: Mapping[str, Any]) -> str:
    """What to do with a table in which these entries are in doubt."""
    if not doubts:
        return f"converter lint {table}"
    return f"look at each, then converter settle {table} keep|transpose|exchange RULE"
