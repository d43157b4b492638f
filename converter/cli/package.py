"""`converter package`: the folder to publish, from a conversion."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import PATH, done_with, print_json, progress, reports
from converter.cli.places import destination, places, source
from converter.display import file_name, gigabytes

if TYPE_CHECKING:
    from converter.publish.package import Package

_EPILOG = """\b
Examples:
  converter package glip-t.safetensors to-publish/ --vocab vocab.txt --model-name glip-t
  converter package glip-t/ to-publish/ --repo-id someone/glip-t --dry-run
\b
Certify first: without parity.json beside the weights the card says UNVERIFIED.
Exit codes: see 'converter --help'; 8 also for a certificate or an evaluation of
other weights."""


@click.command(epilog=_EPILOG)
@places(
    source("File or folder that `convert` wrote.", "CONVERSION", "conversion", PATH),
    destination("Folder to write.", "OUT", "out"),
)
@click.option(
    "--vocab",
    type=PATH,
    help="vocab.txt or tokenizer.json. Default: in CONVERSION's folder, else that of BERT base uncased.",
)
@click.option("--model-name", metavar="NAME", help="The released model that this is: glip-t-b, for example.")
@click.option("--repo-id", metavar="OWNER/NAME", help="Where it will be on the Hub; the card's example loads it there.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Page of a comparison to add. Default: report.html in the folder, NAME.report.html beside the file.",
)
@click.option("--force", is_flag=True, help="Replace a folder that an earlier run wrote.")
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@reports
def package(
    conversion: Path,
    out: Path,
    vocab: Path | None,
    model_name: str | None,
    repo_id: str | None,
    report: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the folder OUT to publish from CONVERSION, a file or folder that `convert` wrote for the model's own code.

    Weights (hard links where possible), configuration, tokenizer, evidence and a model card. It appears whole or not
    at all.
    """
    if repo_id is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", repo_id, re.ASCII):
        raise click.UsageError(f"--repo-id: {repo_id!r} is not OWNER/NAME")
    from converter.checkpoint import open_checkpoint
    from converter.cli.families import family_of_weights
    from converter.publish.package import check_package_destination, make_package, write_package

    with open_checkpoint(conversion) as checkpoint:
        check_package_destination(out, force=force, inputs=checkpoint.files)
        size = checkpoint.size
        family = family_of_weights(conversion, checkpoint)
    with progress(size, "hashing") as advance:
        made = make_package(
            conversion,
            family,
            vocabulary=vocab,
            model_name=model_name,
            repo_id=repo_id,
            report=report,
            on_bytes=advance,
        )
    if not dry_run:
        write_package(made, out, force=force, on_done=done_with(file_name(out)))
    if as_json:
        print_json(_json(made, out, dry_run))
    else:
        _print(made, model_name, out if not dry_run else None)


def _json(made: Package, out: Path, dry_run: bool) -> dict[str, Any]:
    return {
        "destination": str(out),
        "written": not dry_run,
        "certified": made.evidence is not None,
        "custom_tables": [table.entry for table in made.custom],
        "unknown_table": bool(made.unknown_origin),
        "evaluations": [evaluation.entry for evaluation in made.evaluations],
        "files": made.sizes,
        "card": made.documents["README.md"].decode(),
    }


def _print(made: Package, model_name: str | None, written: Path | None) -> None:
    for name, count in made.sizes.items():
        click.echo(f"  {gigabytes(count):>10}  {name}")
    if made.evidence is None:
        click.echo("UNVERIFIED: there is no certificate; the card says so. `converter certify` writes one.")
    for evaluation in made.evaluations:
        click.echo(f"evaluated: {evaluation}")
    for table in made.custom:
        click.echo(f"{table}: the card says so; publish it with --accept-table")
    if made.unknown_origin:
        click.echo(f"{made.unknown_origin}; the card says so")
    if model_name is None:
        click.echo("no --model-name: the card gives neither training data nor figures nor a licence")
    click.echo("dry run: nothing was written" if written is None else f"written: {written}")
