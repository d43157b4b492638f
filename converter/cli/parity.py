"""`converter parity`: where a model departs from a capture, by how much, and what the capture would not notice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import print_json, progress, reports
from converter.cli.run_options import run_options
from converter.errors import CaptureError, DestinationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from converter.parity.capture import Capture, Mode
    from converter.parity.family import Subject
    from converter.parity.mutate import Score
    from converter.parity.run import Report

_EPILOG = """\b
Examples:
  converter parity glip-t.safetensors --reference captures/glip-t.safetensors
  converter parity glip-t.safetensors --reference captures/glip-t.safetensors --html report.html
  converter parity glip-t.safetensors --reference captures/glip-t.safetensors --dtype float32 --junit parity.xml
  converter parity glip-t.safetensors --reference captures/glip-t.safetensors --mutate 200
\b
Exit codes: 0 within every tolerance, 1 not, 8 could not be compared or judged;
others as in 'converter --help'."""


class _Mutations(click.ParamType[int]):
    """A number of mutations, or `all`, as 0."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all":
            return 0
        if not str(value).isdigit() or not int(value):
            self.fail(f"{value!r} is neither a number from 1 on nor 'all'", param, ctx)
        return int(value)


@click.command(epilog=_EPILOG)
@click.argument("model_source", metavar="MODEL")
@click.option("--reference", required=True, type=click.Path(path_type=Path), help="Capture to compare with.")
@click.option(
    "--mode",
    type=click.Choice(["propagated", "injected", "both"]),
    default="both",
    show_default=True,
    help="propagated: as for a user; injected: each block from captured inputs.",
)
@click.option("--gate", help="Another tolerance: a relative error like 1e-8, or 6x the captured model's own error.")
@run_options("float64")
@click.option("--mutate", type=_Mutations(), help="Make so many faults on purpose, and count those that are noticed.")
@click.option("--rows", type=click.IntRange(1), default=20, show_default=True, help="Taps to print, worst first.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page to look at.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Also write JUnit XML.")
@reports
def parity(
    model_source: str,
    reference: Path,
    mode: str,
    gate: str | None,
    device: str,
    dtype: str,
    tf32: bool,
    threads: int | None,
    mutate: int | None,
    rows: int,
    html: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Compare MODEL, a converted file or folder or one of the Hub (org/name), with a capture, tap by tap."""
    from converter.cli.families import load_subject
    from converter.cli.sources import locate

    model = locate(model_source, quiet=as_json).path
    for output in (html, junit):
        if output is not None and output.exists() and _is_input(output, model, reference):
            raise DestinationError(f"{output} is one of the inputs; choose another place")
    subject = load_subject(model, device, dtype, tf32, threads)
    from converter.checkpoint.hashes import file_sha256
    from converter.parity import report as text
    from converter.parity.capture import load_capture
    from converter.parity.certificate import score_json
    from converter.parity.run import parity as compare

    modes: Sequence[Mode] = ("propagated", "injected")
    if mode != "both":
        modes = [m for m in modes if m == mode]
    with load_capture(reference) as capture:
        report = compare(subject, capture, modes=modes, gate=gate, pictures=html is not None, twice=True)
        # of a comparison that fails, mutations would tell nothing
        score = mutation_score(subject, capture, mutate or None, gate) if mutate is not None and report.passed else None
    hashes = {str(path): file_sha256(path) for path in (*weight_files(model), reference)}
    _write_reports(report, hashes, html, junit)
    if as_json:
        content = text.to_json(report) | {"sha256": hashes}
        print_json(content | ({"mutations": score_json(score)} if score else {}))
    else:
        click.echo(text.to_text(report, rows))
        if score is not None:
            _print_score(score)
        elif mutate is not None:
            click.echo("no mutations were made, since the comparison does not pass")
    if report.passed is not True:
        sys.exit(1 if report.passed is False else CaptureError.exit_code)


def _is_input(output: Path, model: Path, reference: Path) -> bool:
    return any(path.exists() and output.samefile(path) for path in (*weight_files(model), reference))


def _write_reports(report: Report, hashes: dict[str, str], html: Path | None, junit: Path | None) -> None:
    """As a page and as JUnit XML, where they are asked for."""
    from converter.parity.html import to_html
    from converter.parity.report import to_junit
    from converter.writing.staging import write_whole

    if html is not None:
        page = to_html(report, hashes=hashes)
        write_whole(html, lambda partial: partial.write_text(page, encoding="utf-8"))
    if junit is not None:
        write_whole(junit, lambda partial: partial.write_bytes(to_junit(report)))


def weight_files(model: Path) -> list[Path]:
    """The files that hold the weights."""
    from converter.checkpoint import open_checkpoint

    with open_checkpoint(model) as checkpoint:
        return checkpoint.files


def mutation_score(subject: Subject, capture: Capture, count: int | None, gate: str | None = None) -> Score:
    """With a bar on stderr."""
    from converter.parity import mutate
    from converter.parity.mutations import mutations

    total = count or len(mutations(subject, capture.table))
    with progress(total, "mutations", " mutations") as advance:
        return mutate.mutation_score(subject, capture, count, gate=gate, on_done=lambda: advance(1))


def score_line(score: Score) -> str:
    """How many mutations were noticed."""
    return (
        f"mutations: {score.caught} of {len(score.outcomes)} noticed, {score.equivalent} that no input can show; "
        f"score {score.value:.4f}"
    )


def _print_score(score: Score) -> None:
    click.echo(f"\n{score_line(score)}")
    for outcome in score.survivors:
        click.echo(f"  not noticed: {outcome.mutation.kind}: {outcome.mutation.name}: {outcome.reason}")
    if score.uncovered:
        click.echo(
            f"  {len(score.uncovered)} tensors share their shape with others and were not exchanged; --mutate all does"
        )
