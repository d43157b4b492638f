"""`converter certify`: a certificate beside the weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.job import summarize, summary_option, tells_failures
from converter.cli.opened import known_weights
from converter.cli.output import PATH, done_with, note, print_json, progress, reports
from converter.cli.parity import compared, coverage, mutation_score
from converter.cli.places import places, source
from converter.cli.run_options import MODEL, references, root
from converter.cli.summaries import of_certificate, of_refusal, score_text
from converter.display import counted, file_name, listed, plain, quoted
from converter.errors import CaptureError, DestinationError

if TYPE_CHECKING:
    from converter.cli.opened import Opened
    from converter.parity.capture import Capture
    from converter.parity.coverage import Coverage
    from converter.parity.mutate import Score
    from converter.parity.run import Report, Weights
    from converter.parity.subject import Subject

_CERTIFY = f"""{MODEL}
The certificate is then of what `convert` makes of it; where `convert` asks for
--dtype, convert first.

\b
Examples:
  converter certify glip-t.safetensors --reference captures/glip-t.safetensors
  converter certify glip-t/ --reference captures/glip-t.safetensors --mutate 500
  converter certify glip-t/ --reference captures/one.safetensors --reference captures/two.safetensors
  converter certify glip-t/ --reference captures/glip-t.safetensors --export glip-t/glip-t.onnx
  converter certify official.pth --reference captures/glip-t.safetensors"""


@click.command(epilog=_CERTIFY)
@places(source("The model: a path.", "MODEL", "model", PATH))
@references
@root
@click.option(
    "--mutate", type=click.IntRange(0), default=200, show_default=True, help="Faults to make on purpose for the score."
)
@click.option(
    "--export",
    "graphs",
    multiple=True,
    type=PATH,
    help="A graph that `export` made of MODEL and that lies beside it: compared and certified, too. Repeatable.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads. Default: torch's.")
@click.option("--force", is_flag=True, help="Replace a certificate that is there.")
@summary_option
@reports
@tells_failures("model", also=("references", "graphs"))
def certify(
    model: Path,
    references: tuple[Path, ...],
    root: str | None,
    mutate: int,
    graphs: tuple[Path, ...],
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare MODEL with captures in float64 and float32, and write the certificate beside it.

    parity.json in a folder, NAME.parity.json beside a file. Nothing is written unless every comparison passes and
    every number is finite. It also records what lies beside the weights and decides results (configuration,
    preprocessing, vocabulary), and names the evaluations of whole data sets that do (evaluation.json).
    """
    from converter.cli.families import family_of_weights, load_subject, open_weights
    from converter.parity.certificate import certify, read_weights
    from converter.parity.coverage_report import proof_of_rows, to_json
    from converter.parity.evidence import certificate_path
    from converter.parity.suspects import with_suspects
    from converter.writing.ledger import is_by_unknown_table

    path = certificate_path(model)
    if path.exists() and not force:
        raise DestinationError(f"{path} exists; --force replaces it")
    with ExitStack() as opened:
        checkpoint = opened.enter_context(open_weights(model, root, joined=None))
        _check_places(graphs, model)
        captures = _captures(references, opened)
        known = known_weights(model, checkpoint, captures)
        with progress(checkpoint.size, "hashing") as advance:
            weights = read_weights(model, checkpoint, family_of_weights(model, checkpoint), advance)
        exported = _opened_graphs(graphs, model, weights.sha256, opened)
        subject = load_subject(model, checkpoint, "cpu", "float32", False, threads)
        runs = with_suspects(_in_both(subject, captures, known), checkpoint, model)
        _refuse_failed(model, runs, as_json)
        lists: Any = {"exports": [_exported(graph, captures, threads, as_json) for graph in exported]}
        lists["evaluations"] = _evaluated(model, weights.sha256)
        covered = coverage(subject, captures)
        score = mutation_score(subject, captures, mutate, None, covered) if mutate else None
        seen = to_json(covered, proof_of_rows(weights.ledger, weights.sha256))
        done = done_with(file_name(path))
        certify(weights, captures, runs, score, subject, seen, **lists, force=force, on_done=done)
    summarize(lambda: of_certificate(str(model), path, runs, covered, score))
    if as_json:
        found = {"unknown_table": is_by_unknown_table(weights.tables), "evaluations": lists["evaluations"]}
        print_json({"certificate": str(path), "passed": True, "mutation_score": score and score.value} | found)
    else:
        _print_certified(path, runs, covered, score)


def _evaluated(model: Path, sha256: str) -> list[dict[str, Any]]:
    """What the certificate names: evaluations on whole data sets, of the weights with that hash of all tensors."""
    from converter.evaluation.record import evaluations_beside

    return [evaluation.entry for evaluation in evaluations_beside(model, sha256) if not evaluation.is_limited]


def _check_places(paths: Sequence[Path], model: Path) -> None:
    """CaptureError for a graph that no certificate of the model could name."""
    from converter.cli.opened import is_exported
    from converter.parity.exports import NAME, beside

    for path in paths:
        if not is_exported(path):
            raise CaptureError(f"{path}: is no graph that `converter export` wrote, whose name ends in .onnx.")
        if path.resolve() != beside(model, path.name).resolve():
            raise CaptureError(
                f"{path}: is not beside the weights, where its certificate would be looked for. Move it."
            )
        if not NAME.fullmatch(path.name):
            raise CaptureError(
                f"{plain(str(path))}: has a name that no certificate has. Rename it: of letters, digits, . _ - alone, "
                "and a letter or digit first."
            )
    if twice := next((path for path in paths if [each.name for each in paths].count(path.name) > 1), None):
        raise CaptureError(f"{twice}: is given twice. Leave out one --export.")


def _opened_graphs(paths: Sequence[Path], model: Path, sha256: str, opened: ExitStack) -> list[Opened]:
    """The graphs, which are of the weights with that hash and whose data no two share, or CaptureError."""
    from converter.cli.opened import open_compared
    from converter.parity.exports import NAME

    graphs, known = [], set[str]()
    for path in paths:
        graph = opened.enter_context(open_compared(path))
        assert graph.graph is not None
        if graph.graph.about.weights != sha256:
            raise CaptureError(f"{path}: was exported from other weights than {file_name(model)}. Export it again.")
        for name in graph.graph.files:
            if name in known or not NAME.fullmatch(name):
                said = "which another graph has, too" if name in known else "a name that no certificate has"
                raise CaptureError(f"{path}: has its weights in {quoted(name)}, {said}. Export it again.")
        known.update(graph.graph.files)
        graphs.append(graph)
    return graphs


def _exported(opened: Opened, captures: Sequence[Capture], threads: int | None, as_json: bool) -> dict[str, Any]:
    """What a certificate says of a graph: its files, and what it was compared with. Ends the program as `certify`."""
    from converter.parity.report import to_json

    assert opened.graph is not None
    about = opened.graph.about
    subject = opened.load("cpu", about.dtype, False, threads)
    fitting = [capture for capture in captures if _fits(subject, capture)]
    fitting = fitting or list(captures)  # which says what does not fit
    left_out = f" of {len(captures)}; it is made for no other lengths" if len(fitting) < len(captures) else ""
    note(f"comparing {file_name(opened.path)} with {counted(len(fitting), 'capture')}{left_out}")
    reports = compared(subject, fitting, opened.weights(fitting))
    _refuse_failed(opened.path, reports, as_json)
    made = {"files": dict(opened.graph.files), "weights": about.weights, "dtype": about.dtype}
    shape = {"opset": about.opset, "size": about.size and list(about.size), "tokens": about.tokens}
    return made | shape | {"runs": [to_json(report) for report in reports]}


def _fits(graph: Any, capture: Capture) -> bool:
    """Whether the captured inputs are of the lengths that a graph was made for, where it was made for some."""
    inputs = graph.family.inputs(capture)
    lengths = (
        pair
        for node in graph.graph.session.get_inputs()
        if node.name in inputs
        for pair in zip(node.shape, inputs[node.name].shape, strict=False)
    )
    return all(wanted == here for wanted, here in lengths if isinstance(wanted, int))


def _refuse_failed(model: Path, runs: list[Report], as_json: bool) -> None:
    """End the program where a comparison did not pass, with the top of the first report that says so."""
    from converter.parity.summary import aligned, brief

    failed = sorted((report for report in runs if not report.passed), key=lambda report: report.passed is not False)
    if not failed:
        return
    summarize(lambda: of_refusal(str(model), failed, len(runs)))
    named = listed([f"{plain(report.capture)} in {report.dtype}" for report in failed])
    said = f"not certified: {len(failed)} of {len(runs)} comparisons did not pass: {named}"
    if as_json:
        problems = [f"{report.capture}, {report.dtype}: {problem}" for report in runs for problem in report.problems]
        summary = [said, *(f"{line.label}: {line.text}" for line in brief(failed[0]))]
        found = {"suspects": failed[0].suspects, "record": failed[0].record or None}
        print_json({"certificate": None, "passed": False, "summary": summary, **found, "problems": problems})
    click.echo("\n".join([said, *aligned(brief(failed[0]))]), err=True)
    sys.exit(1 if any(report.passed is False for report in runs) else CaptureError.exit_code)


def _captures(references: Sequence[Path], opened: ExitStack) -> list[Capture]:
    """The captures. CaptureError for two of a name: a certificate tells them apart by it."""
    from converter.parity.capture import load_capture

    captures = [opened.enter_context(load_capture(reference)) for reference in references]
    known: dict[str, Path] = {}
    for capture in captures:
        if (other := known.setdefault(capture.name, capture.path)) is not capture.path:
            raise CaptureError(
                f"{other} and {capture.path} are both captures of the name {quoted(capture.name)}, and a certificate "
                "tells them apart by it. Capture one of them again with another --name."
            )
    return captures


def _in_both(subject: Subject, captures: Sequence[Capture], weights: Sequence[Weights]) -> list[Report]:
    """The model beside each capture in float64, then in float32; it is float64 afterwards."""
    note(f"comparing with {counted(len(captures), 'capture')} in float32 and float64")
    single = compared(subject, captures, weights)
    subject.model.double()
    double = compared(subject, captures, weights)
    return [report for pair in zip(double, single, strict=True) for report in pair]


def _print_certified(path: Path, runs: list[Report], covered: Coverage, score: Score | None) -> None:
    from converter.parity.coverage_report import headline
    from converter.parity.evidence import made_by_unknown_table, read_evidence
    from converter.writing.ledger import UNKNOWN_TABLE

    click.echo(f"written: {path}")
    for report in runs:
        taps = [r for results in report.modes.values() for r in results]
        worst = max(taps, key=lambda r: r.share)
        click.echo(
            f"{plain(report.capture)}, {report.dtype}: {len(taps)} comparisons within {report.gate}; nearest to the "
            f"limit: {plain(worst.name)}"
        )
    click.echo(headline(covered))
    if score is not None:
        click.echo(f"mutations: {score_text(score)}")
    evidence = read_evidence(path)
    for exported in evidence.exports:
        click.echo(f"exported: {', '.join(exported.files)}: beside {counted(len(exported.runs), 'capture')}")
    for entry in evidence.evaluations:
        click.echo(f"names the evaluation on {plain(entry['dataset'])}, sha256 {entry['sha256']}")
    for table in evidence.custom:
        click.echo(f"{table}: verify and publish with --accept-table")
    if made_by_unknown_table(None, evidence):
        click.echo(UNKNOWN_TABLE)
