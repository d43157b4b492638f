"""`converter inspect`: what a checkpoint file holds, without executing anything in it."""

from __future__ import annotations

import shlex
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import print_json, reports, told
from converter.cli.places import places, source
from converter.display import gigabytes, plain

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.mapping.table import Table
    from converter.planning.plan import Plan

_EPILOG = """\b
Examples:
  converter inspect official.pth
  converter inspect official.pth -v
  converter inspect official.pth --root model_ema --json
  converter inspect hf://org/name/official.pth"""


@click.command(epilog=_EPILOG)
@places(source("Checkpoint to read: a path, or hf://...", "FILE", "file"))
@click.option("--root", help="State dict to show where the file holds several.")
@reports
def inspect(file: str, root: str | None, as_json: bool) -> None:
    """Show the layout, format, variant and pickled globals of a checkpoint, its tensors (-v), and how to convert it.

    Nothing in it is executed.
    """
    from converter.cli.sources import locate
    from converter.errors import UnsupportedCheckpointError
    from converter.planning.adapters import with_adapters_merged
    from converter.planning.formats import fitting, open_known

    path = locate(file, quiet=as_json).path
    with open_known(path, root, merge=False) as opened:
        checkpoint, why_not = opened, None
        try:
            checkpoint = with_adapters_merged(opened)
            found = list(fitting(checkpoint))
        except UnsupportedCheckpointError as error:
            found, why_not = [], str(error)
        if not found and why_not is None:
            why_not = _why_not(path, checkpoint)
        content: dict[str, Any] = {
            "file": str(checkpoint.path),
            "layout": checkpoint.layout,
            "bytes": checkpoint.size,
            "roots": dict(checkpoint.roots),
            "root": checkpoint.root,
            "fits": [_fit(table, plan) for table, plan in found],
            "why_not": why_not,
            "next": _next(file, root, checkpoint, [table for table, _ in found]),
            "globals": checkpoint.globals,
            "skipped": checkpoint.skipped,
            "unsupported": dict(checkpoint.unsupported),
            "objects": dict(checkpoint.objects),
            "metadata": dict(checkpoint.metadata),
            "tensors": _tensors(checkpoint),
        }
    if as_json:
        print_json(content)
    else:
        _print(content)


def _fit(table: Table, plan: Plan) -> dict[str, Any]:
    return {
        "format": table.label,
        "variant": plan.variant.name,
        "also": plan.variant.also,
        "wrappers": plan.wrappers,
        "left_out": len(plan.left_out),
    }


def _tensors(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    return [
        {"name": t.name, "shape": t.shape, "dtype": t.dtype.name, "bytes": t.nbytes, "contiguous": t.contiguous}
        for t in checkpoint.tensors.values()
    ]


def _why_not(path: Path, checkpoint: Checkpoint) -> str:
    """What a conversion says first of a checkpoint that fits no format."""
    from converter.errors import PlanError
    from converter.planning.formats import choose_formats, make_route
    from converter.writing.route import check_sizes

    try:
        check_sizes(path, checkpoint)
        make_route(*choose_formats(checkpoint, None, None), checkpoint)
    except PlanError as error:
        headline, *problems = str(error).splitlines()
        return headline if len(problems) != 1 else f"{headline}:{problems[0].removeprefix('  -')}"
    return "its buffers are not those of a known model"


def _next(file: str, root: str | None, checkpoint: Checkpoint, formats: list[Table]) -> str | None:
    """The command that converts the file, as it is to be typed, or that lists what is wrong; None where it is done.

    A name that no terminal can show cannot be typed either.
    """
    if any(table.is_hub for table in formats) or not file.isprintable():
        return None
    stem = Path(file.partition("@")[0]).name.partition(".")[0] or "converted"
    name = f"{stem}.{formats[0].spec.name}" if formats else stem
    # a library reads a folder, with its config.json and more
    ending = "" if formats and "saved_as" in formats[0].spec.files else ".safetensors"
    free = (f"{name}{number}{ending}" for number in chain([""], (f"-{n}" for n in count(2))))
    words = ["converter", "convert", "--src", file]
    words += ["--root", root] if root else []
    words += ["--from", formats[0].name] if len(formats) > 1 else []
    words += ["--dst", next(target for target in free if not Path(target).exists())]
    return shlex.join([*words, *([] if formats else ["--dry-run"])])


def _print(content: dict[str, Any]) -> None:
    tensors, is_verbose = content["tensors"], told().is_verbose
    click.echo(f"layout:  {content['layout']}, {gigabytes(content['bytes'])}")
    if content["root"]:
        roots = ", ".join(f"{plain(name) or 'the file itself'} ({count})" for name, count in content["roots"].items())
        click.echo(f"root:    {plain(content['root'])} of {roots}")
    size = gigabytes(sum(t["bytes"] for t in tensors))
    click.echo(f"tensors: {len(tensors)}, {size}" + ("" if is_verbose else "; -v lists them"))
    for fit in content["fits"]:
        variants = ", ".join([fit["variant"], *fit["also"]])
        click.echo(f"format:  {fit['format']}, variant {variants}")
        if fit["wrappers"]:
            click.echo(f"         wrappers in its names: {', '.join(map(plain, fit['wrappers']))}")
        if fit["left_out"]:
            click.echo(f"         tensors that the conversion leaves out: {fit['left_out']}")
    if not content["fits"]:
        click.echo(f"format:  fits none: {content['why_not']}")
    if content["next"]:
        click.echo(f"next:    {content['next']}" + ("" if content["fits"] else "  # lists what is wrong"))
    for name in content["globals"]:
        click.echo(f"names (not imported): {name}")
    for sentence in (*content["skipped"], *content["unsupported"].values(), *content["objects"].values()):
        click.echo(f"not read: {sentence}")
    if is_verbose:
        _print_tensors(tensors)


def _print_tensors(tensors: list[dict[str, Any]]) -> None:
    names = [plain(tensor["name"]) for tensor in tensors]
    width = max(map(len, names), default=0)
    click.echo()
    for name, tensor in zip(names, tensors, strict=True):
        shape = "x".join(map(str, tensor["shape"])) or "scalar"
        note = "" if tensor["contiguous"] else "  (a view)"
        click.echo(f"{name:<{width}}  {tensor['dtype']:<9} {shape:<18} {gigabytes(tensor['bytes'])}{note}")
