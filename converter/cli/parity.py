"""`converter parity`: where a model departs from a capture, by how much, and what the capture would not notice."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from converter.cli.job import check_outputs, summarize, summary_option, tells_failures
from converter.cli.output import note, print_json, progress, reports, told
from converter.cli.places import places, source
from converter.cli.run_options import JOINED, MODEL, references, root, run_options
from converter.cli.summaries import of_parity, score_text
from converter.display import counted
from converter.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from converter.checkpoint import Checkpoint
    from converter.parity.capture import Capture, Mode
    from converter.parity.coverage import Coverage
    from converter.parity.mutate import Score
    from converter.parity.run import Report, Weights
    from converter.parity.subject import Subject

_EPILOG = f"""{MODEL}
{JOINED}

\b
Examples:
  converter parity glip-t.safetensors --reference captures/glip-t.safetensors
  converter parity glip-t.safetensors --reference captures/glip-t.safetensors --html report.html
  converter parity glip-t.safetensors --reference captures/glip-t.safetensors --dtype float32 --junit parity.xml
  converter parity glip-t.safetensors --reference captures/glip-t.safetensors --mutate 200
  converter parity glip-t.safetensors --reference small.safetensors --reference large.safetensors --coverage
  converter parity official.pth --reference captures/glip-t.safetensors
\b
Exit codes: 0 within every tolerance, 1 not, 8 could not be compared or judged;
others as in 'converter --help'."""


_BOTH: Sequence[Mode] = ("propagated", "injected")
_OTHER = " (--other-weights compares anyway)"


def _mutations(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Option callback: a number of mutations, or `all`, as 0."""
    if value is None or value == "all":
        return None if value is None else 0
    if not value.isdigit() or not int(value):
        raise click.BadParameter(f"{value!r} is neither a number from 1 on nor 'all'")
    return int(value)


@click.command(epilog=_EPILOG)
@places(source("The model: a path, org/name, or hf://org/name/file.pth.", "MODEL", "model_source"))
@references
@root
@click.option(
    "--mode",
    type=click.Choice(["propagated", "injected", "both"]),
    default="both",
    show_default=True,
    help="propagated: as for a user; injected: each block from captured inputs.",
)
@click.option(
    "--other-weights", is_flag=True, help="Compare even if the capture says that it was made of other weights."
)
@click.option("--gate", help="Another tolerance: a relative error like 1e-8, or 6x the captured model's own error.")
@run_options("float64")
@click.option("--coverage", "cover", is_flag=True, help="Also tell which elements of the weights the captures see.")
@click.option(
    "--mutate",
    metavar="N|all",
    callback=_mutations,
    help="Make so many faults on purpose, and count those that are noticed.",
)
@click.option(
    "--rows",
    type=click.IntRange(1),
    help="Rows of a table, worst first. Default: 20 of what fails, none of what passes.",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page to look at.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Also write JUnit XML.")
@summary_option
@reports
@tells_failures("model_source", also="references")
def parity(
    model_source: str,
    references: tuple[Path, ...],
    root: str | None,
    mode: str,
    other_weights: bool,
    gate: str | None,
    device: str,
    dtype: str,
    tf32: bool,
    threads: int | None,
    cover: bool,
    mutate: int | None,
    rows: int | None,
    html: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Compare MODEL, here or on the Hub (org/name, hf://org/name/file.pth), with a capture, tap by tap."""
    from converter.cli.opened import is_exported, open_compared, refuse_options
    from converter.cli.sources import locate

    if cover and dtype != "float64":
        raise click.UsageError(f"--coverage needs float64; leave out --dtype {dtype}")
    model = locate(model_source, quiet=as_json).path
    if is_exported(model):
        refuse_options()
    from converter.checkpoint.hashes import file_sha256
    from converter.parity.capture import load_capture

    modes = [each for each in _BOTH if mode in (each, "both")]
    options: Any = {"modes": modes, "gate": gate, "pictures": html is not None}
    with ExitStack() as stack:
        opened = stack.enter_context(open_compared(model, root))
        check_outputs([html, junit], [*opened.files, *references])
        captures = [stack.enter_context(load_capture(path)) for path in references]
        weights = opened.weights(captures, None if other_weights else _OTHER)
        subject = opened.load(device, dtype, tf32, threads)
        hashes = {str(path): file_sha256(path) for path in (*opened.files, *references)}
        found = opened.suspected(compared(subject, captures, weights, **options))
        result = _result(found, subject, captures, gate, cover, mutate)
        proof = _proof_of_rows(model, opened.checkpoint) if cover and opened.checkpoint else ""
    _write_reports(model_source, result, hashes, proof, html, junit)
    if as_json:
        print_json(_json(result, hashes, proof))
    else:
        _print(result, proof, rows, asked=cover or mutate is not None)
    if not _passed(found):
        sys.exit(1 if any(report.passed is False for report in found) else CaptureError.exit_code)


def compared(subject: Subject, captures: Sequence[Capture], weights: Sequence[Weights], **options: Any) -> list[Report]:
    """The model beside each capture. `weights`: what is known of them beside each; `options`: of `parity.run`."""
    from converter.parity.run import parity

    pairs = zip(captures, weights, strict=True)
    return [parity(subject, capture, weights=known, twice=True, **options) for capture, known in pairs]


class _Result(NamedTuple):
    """A report for each capture; the others are of all captures together, None where they were not asked for."""

    reports: list[Report]
    coverage: Coverage | None
    score: Score | None


def _passed(reports: Sequence[Report]) -> bool:
    return all(report.passed for report in reports)


def _result(
    reports: list[Report],
    subject: Subject,
    captures: Sequence[Capture],
    gate: str | None,
    cover: bool,
    mutate: int | None,
) -> _Result:
    """With what the captures see of the weights. Of a comparison that fails it would tell nothing."""
    if not _passed(reports):
        return _Result(reports, None, None)
    found = coverage(subject, captures, gate) if cover else None
    score = None if mutate is None else mutation_score(subject, captures, mutate or None, gate, found)
    return _Result(reports, found, score)


def _proof_of_rows(model: Path, checkpoint: Checkpoint) -> str:
    """What shows that rows of embeddings that no capture uses are right: the record of the conversion of this file."""
    from converter.checkpoint.hashes import tensor_hashes
    from converter.parity.coverage_report import proof_of_rows
    from converter.writing.ledger import digest_of_checkpoint
    from converter.writing.records import find_record

    ledger = find_record(model, checkpoint, "conversion")
    return proof_of_rows(ledger, digest_of_checkpoint(checkpoint, tensor_hashes(checkpoint)) if ledger else "")


def _write_reports(
    model: str, result: _Result, hashes: dict[str, str], proof: str, html: Path | None, junit: Path | None
) -> None:
    """As a page, as JUnit XML and as Markdown, where they are asked for."""
    from converter.parity import coverage_report
    from converter.parity.html import to_html
    from converter.parity.report import to_junit
    from converter.writing.staging import write_whole

    if html is not None:
        # one that fails, if any does, else one that could not be judged
        first = min(result.reports, key=lambda report: (report.passed is not False, report.passed is True))
        others = [report for report in result.reports if report is not first]
        weights = None if result.coverage is None else coverage_report.to_html(result.coverage, proof)
        page = to_html(first, hashes=hashes, others=others, weights=weights)
        write_whole(html, page.encode())
    if junit is not None:
        write_whole(junit, to_junit(*result.reports))
    summarize(lambda: of_parity(model, *result))


def _json(result: _Result, hashes: dict[str, str], proof: str) -> dict[str, Any]:
    """Of one capture its report; of several a list of them, and what they come to."""
    from converter.parity.certificate import score_json
    from converter.parity.coverage_report import to_json
    from converter.parity.report import to_json as report_json
    from converter.parity.summary import overall, verdict

    each = [report_json(report) for report in result.reports]
    passed = overall(result.reports)
    summary = {
        "verdict": verdict(passed),
        "passed": passed,
        "problems": [f"{report.capture}: {line}" for report in result.reports for line in report.problems],
        "references": each,
    }
    content: dict[str, Any] = (each[0] if len(each) == 1 else summary) | {"sha256": hashes}
    if result.coverage is not None:
        content["coverage"] = to_json(result.coverage, proof)
    if result.score is not None:
        content["mutations"] = score_json(result.score)
    return content


def _print(result: _Result, proof: str, rows: int | None, asked: bool) -> None:
    from converter.parity.coverage_report import to_text
    from converter.parity.report import to_text as report_text
    from converter.parity.summary import overall, verdict

    passed = overall(result.reports)
    rows = rows or (sys.maxsize if told().is_verbose else None)
    if len(result.reports) > 1:
        agree = sum(report.passed is True for report in result.reports)
        click.echo(f"{verdict(passed)}: {agree} of {len(result.reports)} captures agree\n")
    for report in sorted(result.reports, key=lambda report: report.passed is True):
        click.echo(report_text(report, rows))
    if result.coverage is not None:
        click.echo(to_text(result.coverage, proof, rows or 20))
    if result.score is not None:
        _print_score(result.score)
    elif asked and not _passed(result.reports):
        click.echo("no mutations were made and no coverage computed, since the comparison does not pass")


def coverage(subject: Subject, captures: Sequence[Capture], gate: str | None = None) -> Coverage:
    """With a word and a bar on stderr."""
    from converter.parity import coverage as seen

    note("computing which elements of the weights the captures see")
    with progress(seen.work(subject, captures), "coverage", " passes of a tensor") as advance:
        return seen.coverage(subject, captures, gate=gate, on_done=advance)


def mutation_score(
    subject: Subject, captures: Sequence[Capture], count: int | None, gate: str | None, found: Coverage | None
) -> Score:
    """With a word and a bar on stderr. `found` explains what goes unnoticed; if it is None it is computed if needed."""
    from converter.parity import mutate
    from converter.parity.mutations import mutations

    total = count or len(mutations(subject, captures[0].table))
    seen = (lambda: found or coverage(subject, captures, gate)) if subject.dtype == "float64" else None
    note(f"making {counted(total, 'fault')} on purpose")
    with progress(total, "mutations", " mutations") as advance:
        return mutate.mutation_score(subject, captures, count, gate=gate, coverage=seen, on_done=lambda: advance(1))


def _print_score(score: Score) -> None:
    click.echo(f"\nmutations: {score_text(score)}")
    width = max(map(len, score.kinds), default=0)
    for kind, numbers in score.kinds.items():
        never = f", {numbers.equivalent} that no input can show" if numbers.equivalent else ""
        click.echo(f"  {kind:<{width}}  {numbers.caught} of {numbers.made}{never}")
    for outcome in score.survivors:
        loud = "not noticed" if outcome.explained else "NOT NOTICED"
        click.echo(f"  {loud}: {outcome.mutation.kind}: {outcome.mutation.name}: {outcome.reason}")
    if score.uncovered:
        click.echo(
            f"  {len(score.uncovered)} tensors share their shape with others and were not exchanged; --mutate all does"
        )
