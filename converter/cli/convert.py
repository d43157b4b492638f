"""`convert`: a checkpoint of any known format becomes one of any other, by default what its model's own code loads."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import PATH, done_with, note, parse_size, print_json, progress, reports, told
from converter.cli.places import FORMAT, destination, places, source
from converter.display import counted, file_name, gigabytes, plain
from converter.errors import MissingPackageError, ModelError

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.planning.plan import Plan
    from converter.writing.convert import Conversion, Extras
    from converter.writing.ledger import CustomTable

_EPILOG = """\b
Examples:
  converter convert --src official.pth --dst glip-t.safetensors
  converter convert --src official.pth --dst glip-t/ --max-shard-size 500MB
  converter convert --src official.pth --dst glip-t.safetensors --dry-run --json
  converter convert --src official.pth --dst glip-t-bf16.safetensors --dtype bfloat16
  converter convert --src official.pth --dst mmdet.pth --to mmdet-glip
  converter convert --src mmdet.pth --dst swin-t/ --to transformers-swin-backbone
  converter convert --src official.pth --dst glip-t.safetensors --keep-residue
  converter convert --src glip-t.safetensors --dst again.pth --to glip-official
  converter convert --src hf://org/name/official.pth@main --dst glip-t.safetensors
\b
A --dst that ends in .safetensors becomes one self-describing file; one that ends
in .pth a file as torch.save writes it (for every format but glip). Any other
becomes a folder: model.safetensors (or shards and their index), conversion.json
and the config.json that the format's own tools read. The result appears whole or
not at all.
Exit codes: see 'converter --help'."""


@click.command(
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@places(
    source("Checkpoint to read: .pth or safetensors, here or on the Hub (hf://org/name/file.pth@revision)."),
    destination("File (.safetensors, .pth) or folder to write."),
)
@click.option(
    "--from",
    "--table",
    "source_format",
    type=FORMAT,
    metavar="FORMAT",
    help="Format of the checkpoint: a name of 'converter tables' or a path to JSON. Default: recognised.",
)
@click.option(
    "--to",
    "target_format",
    type=FORMAT,
    metavar="FORMAT",
    help="Format to write, named as for --from. Default: what the model's own code loads.",
)
@click.option("--keep-residue", is_flag=True, help="Also write what the format does not hold, for the way back.")
@click.option(
    "--residue",
    "residue_file",
    type=PATH,
    help="What an earlier conversion kept. Default: the one that lies beside --src, if it belongs to it.",
)
@click.option("--root", help="State dict to take where the file holds several (model, model_ema, ...).")
@click.option("--variant", help="State the variant instead of inferring it; a contradiction is an error.")
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32", "float16", "bfloat16"]),
    help="Cast all weights. Default: as stored.",
)
@click.option(
    "--max-shard-size",
    callback=parse_size,
    metavar="SIZE",
    help="Split a folder's weights into files of at most this size, e.g. 2GB.",
)
@click.option("--force", is_flag=True, help="Replace what an earlier conversion wrote to --dst.")
@click.option("--dry-run", is_flag=True, help="Make and check the plan, write nothing.")
@reports
def convert(
    source: str,
    destination: Path,
    source_format: str | None,
    target_format: str | None,
    keep_residue: bool,
    residue_file: Path | None,
    root: str | None,
    variant: str | None,
    dtype: str | None,
    max_shard_size: int | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint from one format to another, by default to what the model's own code loads.

    Format and variant are recognised; every tensor is accounted for, or nothing is written.
    """
    from converter.cli.sources import locate
    from converter.planning.formats import open_known
    from converter.writing.convert import convert as write_conversion
    from converter.writing.names import is_file_name
    from converter.writing.residue import prepare
    from converter.writing.route import make_conversion

    if max_shard_size is not None and is_file_name(destination):
        raise click.UsageError("--max-shard-size needs a folder as --dst, not a file")
    located = locate(source, quiet=as_json)
    with open_known(located.path, root, source_format) as checkpoint, ExitStack() as opened:
        inputs = list(checkpoint.files)
        prepare(destination, force=force, inputs=inputs, keep=keep_residue, dry_run=dry_run)
        plan, residue = make_conversion(
            located.path, checkpoint, opened, source=source_format, target=target_format, residue_file=residue_file,
            variant=variant, dtype=dtype, say=note,
        )  # fmt: skip
        if dry_run:
            print_json(_plan_json(checkpoint, plan)) if as_json else _print_plan(checkpoint, plan)
            return
        extras = None if is_file_name(destination) else _extras(located.path, plan)
        with progress(_size(plan), destination.name) as advance:
            done = write_conversion(
                checkpoint, plan, destination, max_shard_size=max_shard_size, force=force, residue=residue,
                trusts_ledger=residue_file is None, keep_residue=keep_residue, origin=located.origin, extras=extras,
                on_bytes=advance, on_done=done_with(file_name(destination)),
            )  # fmt: skip
        if as_json:
            print_json({"destination": str(destination), "files": done.files, "bytes": done.size, **done.ledger})
        else:
            _print_done(checkpoint, plan, destination, done)


def _extras(source: Path, plan: Plan) -> Extras | None:
    """What lies beside weights that their own library reads: the files of its tokenizer and the like."""
    from converter.cli.families import family_of
    from converter.mapping.documents import names_of
    from converter.writing.convert import Extras

    if plan.written is not None or plan.config_of_library is None or plan.target not in names_of("spec"):
        return None
    try:
        made = family_of(plan.target).companions(source, plan.config, None)
    except (MissingPackageError, ModelError) as error:
        note(f"written without the files of tokenizer and preprocessing: {error}")
        return None
    return Extras(made.files, made.config)


def _size(plan: Plan) -> int:
    """Bytes of tensor data that it writes."""
    from converter.writing.shards import nbytes

    return sum(map(nbytes, plan.targets))


def _print_summary(checkpoint: Checkpoint, plan: Plan) -> None:
    from converter.cli.sources import taken_from

    also = f" (same architecture: {', '.join(plan.variant.also)})" if plan.variant.also else ""
    click.echo(f"from {plan.table} to {plan.format}" + (f", {plan.part} alone" if plan.part else ""))
    click.echo(f"variant: {plan.variant.name}{also}")
    if taken := taken_from(checkpoint):
        click.echo(f"state dict: {taken}")
    sources = sum(len(step.sources) for step in (*plan.steps, *plan.carried))
    if plan.wrappers:
        shown = ", ".join(f"{plain(name)} ({count})" for name, count in plan.wrappers.items())
        click.echo(f"wrappers taken off names: {shown}")
    click.echo(
        f"{sources} tensors -> {sum(1 for _ in plan.targets)} tensors, {gigabytes(_size(plan))}, "
        + _exactness(checkpoint, plan)
    )
    if dtypes := _dtypes(plan):
        click.echo(dtypes)
    reasons: dict[str, int] = {}
    for out in plan.left_out:
        reasons[out.reason] = reasons.get(out.reason, 0) + 1
    for reason, count in reasons.items():
        click.echo(f"  left out: {count} ({reason})")
    if plan.rebuilt:
        click.echo(f"  rebuilt: {len(plan.rebuilt)} tensors that the format's own tools save")
    if plan.carried:
        click.echo(f"  from the residue: {len(plan.carried)} tensors")
    for entry in plan.missing:
        click.echo(f"  missing: {entry.names} ({entry.reason})")
    for sentence in (*checkpoint.skipped, *checkpoint.unsupported.values(), *checkpoint.objects.values()):
        click.echo(f"  not read: {sentence}")
    custom, unknown = _tables(checkpoint, plan)
    for table in custom:
        click.echo(f"{table}: verify and publish what it makes with --accept-table")
    if custom:
        click.echo("  only a comparison of outputs shows whether it is right: converter compare")
    if unknown:
        click.echo(f"the source was {unknown}")


def _tables(checkpoint: Checkpoint, plan: Plan) -> tuple[list[CustomTable], str]:
    """Those that were never released, of this conversion and of earlier ones; why one is not known, if that is so."""
    from converter.writing.ledger import custom_tables, draft_ledger, is_by_unknown_table, unknown_origin

    ledger = draft_ledger(checkpoint, plan, None)
    return custom_tables(ledger), unknown_origin(ledger) if is_by_unknown_table(ledger) else ""


def _print_done(checkpoint: Checkpoint, plan: Plan, destination: Path, done: Conversion) -> None:
    _print_summary(checkpoint, plan)
    click.echo(f"written: {file_name(destination)}" + (f" ({len(done.files)} files)" if len(done.files) > 1 else ""))
    click.echo(f"sha256 of all tensors: {done.ledger['sha256']}")


def _exactness(checkpoint: Checkpoint, plan: Plan) -> str:
    steps = (*plan.steps, *plan.carried)
    if checkpoint.computed:
        return f"{len(checkpoint.computed)} of them merged with an adapter, in float64"
    if not any(step.casts for step in steps):
        return "bit for bit"
    return "exactly, in another dtype" if all(step.is_lossless for step in steps) else "rounded to another dtype"


def _stored(plan: Plan) -> dict[str, int]:
    """How many of the tensors that are converted are stored in which dtype, the most frequent first."""
    counts = Counter(source.dtype.name for step in (*plan.steps, *plan.carried) for source in step.sources)
    return dict(counts.most_common())


def _dtypes(plan: Plan) -> str | None:
    """What becomes of the dtypes that are stored, where it is not all float32."""
    stored = _stored(plan)
    if stored.keys() <= {"float32"}:
        return None
    casts = {target.dtype.name for step in (*plan.steps, *plan.carried) if step.casts for target in step.targets}
    done = f"written as {', '.join(sorted(casts))}" if casts else "kept as stored; --dtype casts them"
    return f"dtypes: {', '.join(f'{count} {name}' for name, count in stored.items())}, {done}"


def _print_plan(checkpoint: Checkpoint, plan: Plan) -> None:
    _print_summary(checkpoint, plan)
    alike = plan.indistinguishable()
    if alike and not told().is_verbose:
        count = sum(len(names) for _, names in alike)
        click.echo(f"  same shape, told apart by values alone: {count} tensors of {counted(len(alike), 'shape')}")
    for shape, names in alike if told().is_verbose else ():
        click.echo(f"  same shape, told apart by values alone: {len(names)} tensors of {list(shape)}")
    click.echo(f"  square, so that no shape shows a transposition: {len(plan.transposable())} matrices")
    click.echo("dry run: nothing was written" + ("" if told().is_verbose else "; -v lists what becomes of each tensor"))
    if told().is_verbose:
        for step in (*plan.steps, *plan.carried):
            sources, targets = (", ".join(map(str, side)) for side in (step.sources, step.targets))
            click.echo(f"{sources} -> {targets}  [{'; '.join(step.describe())}]")


def _plan_json(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    custom, unknown = _tables(checkpoint, plan)

    def tensors(items: Any) -> list[dict[str, Any]]:
        return [{"name": t.name, "shape": t.shape, "dtype": t.dtype.name} for t in items]

    return {
        "from": plan.table,
        "to": plan.format,
        "table": plan.table,
        "custom_tables": [table.entry for table in custom],
        "unknown_table": bool(unknown),
        "part": plan.part,
        "variant": plan.variant.name,
        "also": plan.variant.also,
        "config": plan.config,
        "root": checkpoint.root,
        "roots": dict(checkpoint.roots),
        "wrappers": plan.wrappers,
        "dtypes": {
            "stored": _stored(plan),
            "written": dict(Counter(target.dtype.name for target in plan.targets).most_common()),
        },
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
            {"name": o.tensor.name, "entry": o.pointer, "reason": o.reason, "rebuildable": o.is_rebuildable}
            for o in plan.left_out
        ],
        "missing": [{"names": m.names, "entry": m.pointer, "reason": m.reason} for m in plan.missing],
        "rebuilt": tensors(rebuilt.tensor for rebuilt in plan.rebuilt),
        "carried": tensors(tensor for step in plan.carried for tensor in step.targets),
        "indistinguishable": [{"shape": shape, "tensors": names} for shape, names in plan.indistinguishable()],
        "transposable": plan.transposable(),
    }
