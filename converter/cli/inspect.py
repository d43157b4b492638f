"""`converter inspect`: what a checkpoint file holds, without executing anything in it."""

from __future__ import annotations

from typing import Any

import click

from converter.cli.output import print_json, reports
from converter.display import gigabytes, plain

_EPILOG = """\b
Examples:
  converter inspect official.pth
  converter inspect official.pth --root model_ema --json
  converter inspect hf://org/name/official.pth"""


@click.command(epilog=_EPILOG)
@click.argument("file")
@click.option("--root", help="State dict to show where the file holds several.")
@reports
def inspect(file: str, root: str | None, as_json: bool) -> None:
    """Show the layout, tensors, pickled globals, format and variant of a checkpoint. Nothing in it is executed."""
    from converter.checkpoint import open_checkpoint
    from converter.cli.sources import locate
    from converter.planning.formats import fitting

    with open_checkpoint(locate(file, quiet=as_json).path, root) as checkpoint:
        fits = [
            {"format": table.label, "variant": plan.variant.name, "also": plan.variant.also}
            for table, plan in fitting(checkpoint)
        ]
        content: dict[str, Any] = {
            "file": str(checkpoint.path),
            "layout": checkpoint.layout,
            "bytes": checkpoint.size,
            "roots": dict(checkpoint.roots),
            "root": checkpoint.root,
            "fits": fits,
            "globals": checkpoint.globals,
            "skipped": checkpoint.skipped,
            "unsupported": dict(checkpoint.unsupported),
            "objects": dict(checkpoint.objects),
            "metadata": dict(checkpoint.metadata),
            "tensors": [
                {
                    "name": t.name,
                    "shape": t.shape,
                    "dtype": t.dtype.name,
                    "bytes": t.nbytes,
                    "contiguous": t.contiguous,
                }
                for t in checkpoint.tensors.values()
            ],
        }
    if as_json:
        print_json(content)
    else:
        _print(content)


def _print(content: dict[str, Any]) -> None:
    tensors = content["tensors"]
    names = [plain(tensor["name"]) for tensor in tensors]
    width = max(map(len, names), default=0)
    for name, tensor in zip(names, tensors, strict=True):
        shape = "x".join(map(str, tensor["shape"])) or "scalar"
        note = "" if tensor["contiguous"] else "  (a view)"
        click.echo(f"{name:<{width}}  {tensor['dtype']:<9} {shape:<18} {gigabytes(tensor['bytes'])}{note}")
    click.echo(f"\nlayout:  {content['layout']}, {gigabytes(content['bytes'])}")
    if content["root"]:
        roots = ", ".join(f"{plain(name) or 'the file itself'} ({count})" for name, count in content["roots"].items())
        click.echo(f"root:    {plain(content['root'])} of {roots}")
    click.echo(f"tensors: {len(tensors)}, {gigabytes(sum(t['bytes'] for t in tensors))}")
    for fit in content["fits"]:
        variants = ", ".join([fit["variant"], *fit["also"]])
        click.echo(f"format:  {fit['format']}, variant {variants}")
    if not content["fits"]:
        click.echo("format:  fits no known format. 'converter convert --dry-run' lists what is wrong")
    for name in content["globals"]:
        click.echo(f"names (not imported): {name}")
    for sentence in (*content["skipped"], *content["unsupported"].values(), *content["objects"].values()):
        click.echo(f"left aside: {sentence}")
