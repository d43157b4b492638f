"""`convert`: an official checkpoint becomes safetensors for the in-house model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import gigabytes, parse_size, print_json, progress, reports_errors
from converter.display import plain

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.plan import Plan

_EPILOG = """\b
Examples:
  convert --src official.pth --dst glip-t.safetensors
  convert --src official.pth --dst glip-t/ --max-shard-size 500MB
  convert --src official.pth --dst glip-t.safetensors --dry-run --json
  convert --src official.pth --dst glip-t-bf16.safetensors --dtype bfloat16
\b
A --dst that ends in .safetensors becomes one self-describing file. Any other
becomes a folder with model.safetensors (or shards and their index),
config.json and conversion.json. It appears whole or not at all.
Exit codes: see 'converter --help'."""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--src",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="Checkpoint to read: .pth or safetensors.",
)
@click.option(
    "--dst",
    "destination",
    required=True,
    type=click.Path(path_type=Path),
    help="File (.safetensors) or folder to write.",
)
@click.option(
    "--table",
    "table_name",
    default="glip-official",
    show_default=True,
    help="Mapping table: a name or a path to JSON.",
)
@click.option("--root", help="State dict to take where the file holds several (model, model_ema, ...).")
@click.option("--variant", help="State the variant instead of inferring it; a contradiction is an error.")
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32", "float16", "bfloat16"]),
    help="Cast every tensor. Default: as stored.",
)
@click.option(
    "--max-shard-size",
    callback=parse_size,
    metavar="SIZE",
    help="Split a folder's weights into files of at most this size, e.g. 2GB.",
)
@click.option("--force", is_flag=True, help="Replace what an earlier conversion wrote to --dst.")
@click.option("--dry-run", is_flag=True, help="Make and check the plan, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@reports_errors
def convert(
    source: Path,
    destination: Path,
    table_name: str,
    root: str | None,
    variant: str | None,
    dtype: str | None,
    max_shard_size: int | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert a GLIP checkpoint to safetensors for the in-house model.

    The variant is inferred; every tensor is accounted for, or nothing is written.
    """
    if max_shard_size is not None and destination.suffix == ".safetensors":
        raise click.UsageError("--max-shard-size needs a folder as --dst, not a .safetensors file")
    from converter import convert as engine
    from converter.checkpoint import open_checkpoint
    from converter.mapping.table import load_table
    from converter.plan import make_plan
    from converter.staging import check_destination
    from converter.writer import nbytes

    with open_checkpoint(source, root) as checkpoint:
        check_destination(destination, force=force, inputs=checkpoint.files)
        plan = make_plan(
            load_table(table_name),
            checkpoint.tensors,
            unsupported=checkpoint.unsupported,
            objects=checkpoint.objects,
            variant=variant,
            dtype=dtype,
        )
        engine.verify_left_out(checkpoint, plan)
        size = sum(map(nbytes, plan.targets))
        if dry_run:
            print_json(_plan_json(checkpoint, plan)) if as_json else _print_plan(checkpoint, plan, size)
            return
        with progress(size, destination.name) as advance:
            done = engine.convert(
                checkpoint, plan, destination, max_shard_size=max_shard_size, force=force, on_bytes=advance
            )
        if as_json:
            print_json({"destination": str(destination), "files": done.files, "bytes": done.size, **done.ledger})
            return
        _print_summary(checkpoint, plan, size)
        click.echo(f"written: {destination}" + (f" ({len(done.files)} shards)" if len(done.files) > 1 else ""))
        click.echo(f"sha256 of the ledger: {done.ledger['sha256']}")


def _print_summary(checkpoint: Checkpoint, plan: Plan, size: int) -> None:
    also = f" (same architecture: {', '.join(plan.variant.also)})" if plan.variant.also else ""
    click.echo(f"variant: {plan.variant.name}{also}")
    others = [name for name in checkpoint.roots if name != checkpoint.root]
    if checkpoint.root:
        hint = f"; also there: {', '.join(map(plain, others))} (--root chooses)" if others else ""
        click.echo(f"taken from the file: {plain(checkpoint.root)}{hint}")
    sources = sum(len(step.sources) for step in plan.steps)
    click.echo(f"{sources} tensors -> {sum(1 for _ in plan.targets)} tensors, {gigabytes(size)}, " + _exactness(plan))
    reasons: dict[str, int] = {}
    for out in plan.left_out:
        reasons[out.reason] = reasons.get(out.reason, 0) + 1
    for reason, count in reasons.items():
        click.echo(f"  left out: {count} ({reason})")
    for sentence in (*checkpoint.skipped, *checkpoint.unsupported.values(), *checkpoint.objects.values()):
        click.echo(f"  left aside: {sentence}")


def _exactness(plan: Plan) -> str:
    if not any(step.casts for step in plan.steps):
        return "bit for bit"
    return "exactly, in another dtype" if all(s.is_lossless for s in plan.steps) else "rounded to another dtype"


def _print_plan(checkpoint: Checkpoint, plan: Plan, size: int) -> None:
    for step in plan.steps:
        sources, targets = (", ".join(map(str, side)) for side in (step.sources, step.targets))
        click.echo(f"{sources} -> {targets}  [{'; '.join(step.describe())}]")
    _print_summary(checkpoint, plan, size)
    for shape, names in plan.indistinguishable():
        click.echo(f"  only numbers tell apart: {len(names)} tensors of shape {list(shape)}")
    click.echo(f"  only numbers tell transposed: {len(plan.transposable())} square matrices")
    click.echo("dry run: nothing was written")


def _plan_json(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    def tensors(items: Any) -> list[dict[str, Any]]:
        return [{"name": t.name, "shape": t.shape, "dtype": t.dtype.name} for t in items]

    return {
        "table": plan.table,
        "variant": plan.variant.name,
        "also": plan.variant.also,
        "config": plan.config,
        "root": checkpoint.root,
        "steps": [
            {
                "rule": step.pointer,
                "sources": tensors(step.sources),
                "ops": step.describe(),
                "targets": tensors(step.targets),
                "lossless": step.is_lossless,
            }
            for step in plan.steps
        ],
        "left_out": [
            {"name": o.tensor.name, "entry": o.pointer, "reason": o.reason, "rebuildable": o.rebuild is not None}
            for o in plan.left_out
        ],
        "indistinguishable": [{"shape": shape, "tensors": names} for shape, names in plan.indistinguishable()],
        "transposable": plan.transposable(),
    }
