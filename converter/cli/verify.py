"""`converter verify`: checking a copy of a model by its signature, its certificate, or the record in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.job import summarize, summary_option, tells_failures
from converter.cli.output import PATH, accept_table, cut, print_json, progress, reports
from converter.cli.places import places, source
from converter.cli.record import verify_by_record
from converter.cli.run_options import JOINED, MODEL, root, run_options
from converter.cli.signature import Asked, Signed, asks_for_signature, check_signed, signed_names
from converter.cli.summaries import evaluations_json, of_evaluations, of_verification
from converter.display import plain
from converter.errors import CaptureError, NotACheckpointError

if TYPE_CHECKING:
    from converter.evaluation.record import Evaluation
    from converter.parity.certificate import Verification

_VERIFY = f"""{MODEL}
{JOINED}

\b
Examples:
  converter verify glip-t.safetensors
  converter verify glip-t/ --dtype float32 --json
  converter verify org/glip-t@main
  converter verify mine.safetensors --accept-table HASH
  converter verify org/glip-t --signature-key signer.pub
  converter verify org/glip-t --require-signature me@example.org --signature-issuer https://accounts.google.com
\b
Exit codes: 0 this copy computes what was certified, or has no certificate and is
what its conversion recorded, 1 it does or is not, or its signature does not hold,
8 neither certificate nor record, no signature where one is asked for, a table that
was never released, or no tolerance is known for this dtype."""


@click.command(epilog=_VERIFY)
@places(source("The model: a path, org/name, or hf://org/name/file.pth.", "MODEL", "model_source"))
@click.option("--certificate", type=PATH, help="Default: beside the weights.")
@asks_for_signature
@root
@accept_table
@run_options("float64")
@summary_option
@reports
@tells_failures("model_source")
def verify(
    model_source: str,
    certificate: Path | None,
    asked: Asked,
    root: str | None,
    accepted_tables: tuple[str, ...],
    device: str,
    dtype: str,
    tf32: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check that MODEL, here or on the Hub (org/name[@revision]), is what was certified, and computes the same here.

    Configuration, preprocessing, vocabulary and every tensor are compared with what was certified, then the fingerprint
    is computed again. The reference is not needed. Where there is no certificate, every tensor is compared with the
    record that the conversion left, which shows that none was changed since; this needs no torch. Evaluations beside
    the weights (evaluation.json) and a bill of materials must be of them. A signature (model.sig) comes first.
    """
    from converter.cli.sources import locate

    located = locate(model_source, quiet=as_json, also=partial(signed_names, asked))
    model = located.path
    if not model.exists():
        raise NotACheckpointError(f"{model}: no such file or folder")
    signed = check_signed(model_source, located, asked, as_json)
    if certificate is None and verify_by_record(model, root, accepted_tables, signed, located.origin, as_json):
        return
    if located.origin and not model.is_dir() and certificate is None:
        said = "is one file; a certificate is of a whole model, so verify that: converter verify org/name"
        raise CaptureError(f"{plain(model_source)}: {said}")
    from converter.cli.families import family_of_weights, load_subject, open_weights
    from converter.evaluation.record import evaluations_beside
    from converter.parity.certificate import verify
    from converter.publish.bom_record import BOM, packaged_bill

    evaluations = evaluations_beside(model)
    beside: Any = {"certificate": certificate, "evaluations": [evaluation.entry for evaluation in evaluations]}
    with open_weights(model, root) as checkpoint, progress(checkpoint.size, "hashing") as advance:
        bill = packaged_bill(model, checkpoint)
        beside["stated"] = {BOM: bill.sha256} if bill else {}
        family = family_of_weights(model, checkpoint)
        load = partial(load_subject, model, checkpoint, device, dtype, tf32, threads)
        result = verify(model, checkpoint, family, load, **beside, accepted_tables=accepted_tables, on_bytes=advance)
    summarize(lambda: of_verification(model_source, result, evaluations, signed))
    if as_json:
        print_json(_verification_json(result, evaluations, signed) | {"origin": located.origin})
    else:
        _print_verification(result, evaluations, signed)
    _end(result.passed)


def _end(passed: bool | None) -> None:
    """End the program with the exit code of a verdict that is no pass."""
    if passed is not True:
        sys.exit(1 if passed is False else CaptureError.exit_code)


def _verification_json(
    result: Verification, evaluations: Sequence[Evaluation], signed: Signed | None
) -> dict[str, Any]:
    from converter.parity.report import json_safe
    from converter.parity.summary import verdict

    report = result.report
    return {
        "certificate": str(result.certificate),
        "record": None,
        "signature": signed and signed.json,
        "verdict": verdict(result.passed),
        "problems": result.problems,
        "custom_tables": [table.entry for table in result.custom],
        "unknown_table": result.by_unknown_table,
        "evaluations": evaluations_json(evaluations, result.evaluations),
        "device": report and report.device,
        "dtype": report and report.dtype,
        "largest_relative_error": report and json_safe(max(r.relative for r in report.modes["propagated"])),
    }


def _print_verification(result: Verification, evaluations: Sequence[Evaluation], signed: Signed | None) -> None:
    from converter.parity.summary import verdict
    from converter.writing.ledger import UNKNOWN_TABLE

    if signed is not None:
        click.echo(": ".join(signed.line))
    click.echo(f"certificate: {result.certificate}")
    for table in result.custom:
        click.echo(f"rests on {table}, as accepted")
    if result.by_unknown_table:
        click.echo(UNKNOWN_TABLE)
    for label, line in of_evaluations(evaluations, result.evaluations):
        click.echo(f"{label}: {line}")
    if result.exports:
        click.echo(f"exported: {', '.join(result.exports)} as certified")
    for line in cut([f"  {problem}" for problem in result.problems]):
        click.echo(line)
    if (report := result.report) is not None:
        taps = report.modes["propagated"]
        judged = sum(tap.passed is not None for tap in taps)
        worst = max(taps, key=lambda tap: tap.share)
        click.echo(
            f"{report.device}, {report.dtype}: {judged} of {len(taps)} taps judged by {report.gate}; "
            f"nearest to the limit: {worst.name}, {worst.relative:.1e}"
        )
    click.echo(verdict(result.passed))
