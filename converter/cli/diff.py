"""`converter diff`: whether two checkpoints hold the same weights, in whatever format."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from converter.cli.job import as_table, page, prose, summarize, summary_option, tells_failures
from converter.cli.output import print_json, progress, reports, told
from converter.cli.places import Place, places
from converter.display import counted, plain

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.mapping.table import Table
    from converter.parity.diff import Difference, Pair, Seen

_EPILOG = """\b
Examples:
  converter diff official.pth glip-t.safetensors
  converter diff official.pth mmdet.pth
  converter diff official.pth glip-t-bf16.safetensors --tolerance 0.01
  converter diff before.pth after.pth --root-a model --root-b model_ema
  converter diff one.safetensors folder-of-shards --no-table --json
\b
Exit codes: 0 equal, 1 different (or nothing to compare); others: see
'converter --help'."""
_TABLE = "glip-official"
_FAMILIES = {"source": " (source format)", "target": " (target format)", "unknown": ""}
_LINES = 40  # for people


@click.command(epilog=_EPILOG)
@places(
    Place("a", "A", ("--src",), "One checkpoint: a path, or hf://..."),
    Place("b", "B", ("--dst",), "The other one."),
)
@click.option("--table", "table_name", help="Mapping table: a name or a path to JSON.  [default: recognised]")
@click.option("--no-table", is_flag=True, help="Compare by the keys as they are in the files.")
@click.option("--root-a", help="State dict of A to take where the file holds several.")
@click.option("--root-b", help="State dict of B to take where the file holds several.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="T",
    help="Let floats differ by at most T, in whatever float dtype. Default: not in one bit.",
)
@summary_option
@reports
@tells_failures("a", "b")
def diff(
    a: str,
    b: str,
    table_name: str | None,
    no_table: bool,
    root_a: str | None,
    root_b: str | None,
    tolerance: float | None,
    as_json: bool,
) -> None:
    """Compare checkpoints A and B tensor by tensor: names, shapes, dtypes, values.

    Formats are recognised. Files of two formats are both converted to the target's naming on the way, tensor by tensor;
    files of one format are compared by key, without prefixes. What a format cannot hold, or its table leaves out, is
    compared only if both files have it.
    """
    if no_table and table_name is not None:
        raise click.UsageError("--table and --no-table contradict each other")
    if tolerance is not None and not math.isfinite(tolerance):
        raise click.UsageError("--tolerance needs a finite number")
    from converter.cli.sources import locate
    from converter.mapping.load import load_table
    from converter.parity import diff as engine
    from converter.planning.formats import open_known

    tables: list[Table | None] | None = [None] if no_table else [load_table(table_name)] if table_name else None
    paths = [locate(text, quiet=as_json).path for text in (a, b)]
    opened = partial(open_known, source=table_name, or_target=True)
    with opened(paths[0], root_a) as first, opened(paths[1], root_b) as second:
        total = sum(tensor.nbytes for tensor in first.tensors.values())
        with progress(total, "comparing") as advance:
            if tables is None:
                tables = _tables(first, second)
            found = engine.diff(first, second, *tables, tolerance=tolerance, on_bytes=advance)
    summarize(lambda: _markdown(found, a, b, tolerance))
    if as_json:
        print_json(_json(found, a, b, tolerance))
    else:
        click.echo("\n".join(_text(found, a, b, tolerance)))
    click.get_current_context().exit(0 if found.is_equal else 1)


def _tables(a: Checkpoint, b: Checkpoint) -> list[Table | None]:
    """The recognised tables, one or two of the same target; else the default table."""
    from converter.errors import PlanError
    from converter.mapping.load import load_table
    from converter.planning.formats import recognise

    found: list[Table] = []
    for checkpoint in (a, b):
        try:
            table = recognise(checkpoint)
        except PlanError:  # unknown, or several: by key, then
            continue
        if (not table.is_hub or table.spec.files) and table.name not in [known.name for known in found]:
            found.append(table)
    if found and len({table.spec.name for table in found}) == 1:
        return list(found)
    return [load_table(_TABLE)]


def _text(found: Difference, a: str, b: str, tolerance: float | None) -> list[str]:
    lines = [f"{label}: {text}" for label, text in _about(found, a, b, tolerance)]
    sections = _sections(found)
    lines.append(_verdict(found, sections))
    return lines + _cut(sections, _LINES - len(lines))


def _about(found: Difference, a: str, b: str, tolerance: float | None) -> Iterator[tuple[str, str]]:
    """What was compared, and how; a label and a text each."""
    yield "A", f"{plain(a)}{_FAMILIES[found.families[0]]}"
    yield "B", f"{plain(b)}{_FAMILIES[found.families[1]]}"
    how = f"through {' and '.join(found.by)}, {found.variant}" if found.by else "by key"
    same = found.compared - len(found.different)
    yield f"compared {how}", f"{counted(found.compared, 'tensor')}, {same} identical"
    if tolerated := [pair for pair in found.different if pair.tolerated]:
        yield f"within {tolerance:g}", f"{len(tolerated)}, the worst {_pair(tolerated[0])}"


def _sections(found: Difference) -> dict[str, list[str]]:
    """Lines on all that is not the same, by what is wrong with it."""
    return {
        "unreadable": [f"unreadable in {out.side}: {plain(out.reason)}" for out in found.unreadable],
        "only in A": [f"only in A: {_lone(seen)}" for seen in found.only_in_a],
        "only in B": [f"only in B: {_lone(seen)}" for seen in found.only_in_b],
        "different": [f"different: {_pair(pair)}" for pair in found.different if not pair.tolerated],
        "left out": [
            f"left out of {side}, no difference: {count} ({plain(reason)})"
            for (side, reason), count in Counter((out.side, out.reason) for out in found.left_out).items()
        ],
    }


def _verdict(found: Difference, sections: dict[str, list[str]]) -> str:
    if not found.compared:
        return "different: nothing was compared, since A and B have no tensor in common"
    counts = [f"{len(items)} {label}" for label, items in sections.items() if items and label != "left out"]
    return "equal" if found.is_equal else f"different: {', '.join(counts)}"


def _markdown(found: Difference, a: str, b: str, tolerance: float | None) -> str:
    sections = _sections(found)
    verdict, _, why = _verdict(found, sections).partition(": ")
    lines = [*_about(found, a, b, tolerance), *([("found", why)] if why else [])]
    rows = [[prose(line)] for label, items in sections.items() if label != "left out" for line in items]
    return page(f"converter diff {a} {b}", verdict, lines, as_table(["difference"], rows, "differences"))


def _cut(sections: dict[str, list[str]], room: int) -> list[str]:
    """As many lines of each section as fit in `room`, all by -v; short sections are whole before long ones share it."""
    if told().is_verbose:
        return [line for items in sections.values() for line in items]
    room -= 1 + sum(bool(items) for items in sections.values())  # the lines that say how many more
    shares = {}
    for position, label in enumerate(sorted(sections, key=lambda label: len(sections[label]))):
        shares[label] = min(len(sections[label]), room // (len(sections) - position))
        room -= shares[label]
    lines = []
    for label, items in sections.items():
        lines += items[: shares[label]]
        if more := len(items) - shares[label]:
            lines.append(f"... and {more} more {label}")
    return [*lines, "-v lists all"] if any(line.startswith("... and ") for line in lines) else lines


def _lone(seen: Seen) -> str:
    near = f"; nearest: {', '.join(map(plain, seen.nearest))}" if seen.nearest else ""
    return f"{plain(seen.name)} {seen.shape} {seen.dtype}" + (f"; {plain(seen.note, 400)}" if seen.note else near)


def _pair(pair: Pair) -> str:
    said = []
    if note := pair.a.note or pair.b.note:
        said.append(
            f"{pair.kinds[0]}: A has {pair.a.shape} {pair.a.dtype}, B has {pair.b.shape} {pair.b.dtype}; {note}"
        )
    elif "shape" in pair.kinds:
        said.append(f"shape {pair.a.shape} in A, {pair.b.shape} in B")
    if "dtype" in pair.kinds and not note:
        said.append(f"dtype {pair.a.dtype} in A, {pair.b.dtype} in B")
    if pair.differing:
        said.append(f"{pair.differing} of {math.prod(pair.a.shape)} elements")
    elif pair.differing == 0:
        said.append("equal numbers")
    if pair.differing and pair.max_abs < math.inf:
        relative = "" if pair.relative is None else f", relative Frobenius {pair.relative:.3g}"
        said.append(f"by at most {pair.max_abs:.3g}{relative}")
    if pair.not_finite:
        said.append(f"{pair.not_finite} of them NaN or infinite on one side")
    return f"{plain(pair.a.name)}: {'; '.join(said)}"


def _json(found: Difference, a: str, b: str, tolerance: float | None) -> dict[str, Any]:
    def tensor(seen: Seen) -> dict[str, Any]:
        return {"from": seen.sources, "shape": seen.shape, "dtype": seen.dtype.name}

    def lone(seen: Seen) -> dict[str, Any]:
        return {"name": seen.name, **tensor(seen), "nearest": seen.nearest, "note": seen.note}

    return {
        "equal": found.is_equal,
        "a": {"file": a, "side": found.families[0]},
        "b": {"file": b, "side": found.families[1]},
        "tables": found.by,
        "variant": found.variant,
        "tolerance": tolerance,
        "compared": found.compared,
        "identical": found.compared - len(found.different),
        "within_tolerance": sum(pair.tolerated for pair in found.different),
        "only_in_a": [lone(seen) for seen in found.only_in_a],
        "only_in_b": [lone(seen) for seen in found.only_in_b],
        "different": [
            {
                "name": pair.a.name,
                "kinds": pair.kinds,
                "a": tensor(pair.a),
                "b": tensor(pair.b),
                "elements": math.prod(pair.a.shape),
                "differing": pair.differing,
                "max_abs": pair.max_abs if pair.max_abs < math.inf else None,
                "relative_frobenius": pair.relative,
                "not_finite": pair.not_finite,
                "within_tolerance": pair.tolerated,
                "note": pair.a.note or pair.b.note,
            }
            for pair in found.different
        ],
        "left_out": [{"side": out.side, "name": out.name, "reason": out.reason} for out in found.left_out],
        "unreadable": [{"side": out.side, "name": out.name, "reason": out.reason} for out in found.unreadable],
    }
