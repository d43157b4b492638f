"""`converter explain`: what becomes of one key, by which rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import print_json, reports
from converter.cli.places import FORMAT, Place, places, source

if TYPE_CHECKING:
    from converter.mapping.table import Table
    from converter.planning.plan import Plan

_EPILOG = """\b
Examples:
  converter explain module.rpn.head.bias0 --src official.pth
  converter explain text_encoder.layers.3.attention.qkv.weight --src official.pth"""


@click.command(epilog=_EPILOG)
@places(Place("key", "KEY"), source("Checkpoint to read: a path, or hf://..."))
@click.option(
    "--from",
    "--table",
    "table_name",
    type=FORMAT,
    metavar="FORMAT",
    help="Format of the checkpoint: a name of 'converter tables' or a path to JSON. Default: recognised.",
)
@click.option("--root", help="State dict to take where the file holds several.")
@click.option("--variant", help="State the variant instead of inferring it.")
@reports
def explain(
    key: str, source: str, table_name: str | None, root: str | None, variant: str | None, as_json: bool
) -> None:
    """Say what becomes of KEY, a name of the checkpoint (with or without its prefix) or of the converted model.

    Names the rule by its JSON pointer in the table, the ops and both shapes; for an unknown key, the nearest ones.
    Also works on a checkpoint that does not fit. Exit code 5 if KEY is unknown.
    """
    from converter.cli.sources import locate
    from converter.errors import PlanError
    from converter.planning.fit import make_plan
    from converter.planning.formats import choose_formats, open_known
    from converter.planning.nearest import nearest

    with open_known(locate(source, quiet=as_json).path, root, table_name) as checkpoint:
        table, _ = choose_formats(checkpoint, table_name, None)
        plan = make_plan(table, checkpoint, variant=variant, refuse=False)
    keys = {key, *(name for name in checkpoint.tensors if _is(table, name, key))}
    found = _find(plan, keys)
    if found is None:
        shapes = {t.name: t.shape for step in plan.steps for t in (*step.sources, *step.targets)}
        shapes |= {out.tensor.name: out.tensor.shape for out in plan.left_out}
        about = [problem for problem in plan.problems if any(repr(k) in problem for k in keys)]
        near = [f"nearest: {name} {shapes[name]}" for name in nearest(key, shapes)]
        raise PlanError(f"{table.name}: nothing is known of {key!r}", about or near)
    if as_json:
        print_json(found)
        return
    for label, value in found.items():
        for item in value if isinstance(value, list) else [value]:
            click.echo(f"{label.replace('_', ' ') + ':':<10}{item}")


def _is(table: Table, name: str, key: str) -> bool:
    """Whether `key` is `name`, perhaps without wrappers."""
    is_end = name.endswith(key) and table.names.is_prefix(name.removesuffix(key))
    return is_end or table.short(name) == table.short(key)


def _find(plan: Plan, keys: set[str]) -> dict[str, Any] | None:
    for step in plan.steps:
        if keys & {t.name for t in (*step.sources, *step.targets)}:
            return {
                "table": plan.table,
                "variant": plan.variant.name,
                "rule": step.pointer,
                "source": [str(t) for t in step.sources],
                "ops": step.describe(),
                "target": [str(t) for t in step.targets],
            }
    for out in plan.left_out:
        if out.tensor.name in keys:
            again = "can be rebuilt" if out.is_rebuildable else "cannot be rebuilt"
            return {
                "table": plan.table,
                "variant": plan.variant.name,
                "rule": out.pointer,
                "source": [str(out.tensor)],
                "left_out": f"{out.reason}; {again}",
            }
    return None
