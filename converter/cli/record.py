"""`converter verify` of weights without a certificate: what the record of their conversion shows, without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.job import as_table, page, prose, summarize
from converter.cli.output import cut, print_json, progress
from converter.cli.summaries import evaluations_json, of_evaluations
from converter.display import file_name, plain

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.cli.signature import Signed
    from converter.evaluation.record import Evaluation
    from converter.writing.changes import Changes
    from converter.writing.ledger import CustomTable

_PROVES = (
    "no tensor was changed since the file was written; not that the conversion is right, and nothing of the files "
    "beside the weights: a certificate shows that (`converter certify`). If the record was changed, too, nobody notices"
)


def verify_by_record(
    model: Path,
    root: str | None,
    accepted_tables: Collection[str],
    signed: Signed | None,
    origin: dict[str, Any] | None,
    as_json: bool,
) -> bool:
    """Compare every tensor with the record, and tell, with what is known of the signature.

    False, and nothing is told, if there is no record, or a certificate lies beside the weights, or should: the record
    of a folder names all its files. Ends the program with 1 where a tensor differs, or an evaluation or a bill of
    materials beside the weights is of others. CaptureError for a table that is not accepted or evaluations that are
    not sound, ModelError for a record that is not, CheckpointError.
    """
    from converter.checkpoint.hashes import tensor_hashes
    from converter.parity.evidence import certificate_path, check_tables
    from converter.planning.formats import open_known
    from converter.publish.bom_record import of_other_weights, packaged_bill
    from converter.writing.changes import changes_from, find_record_of_tensors
    from converter.writing.ledger import digest_of_checkpoint, files_of, is_by_unknown_table

    beside = certificate_path(model)
    if os.path.lexists(beside):
        return False
    with open_known(model, root) as checkpoint:
        record = find_record_of_tensors(checkpoint, model)
        if record is None or beside.name in files_of(record):
            return False
        custom = check_tables(model, record, None, accepted_tables)
        evaluations, bill = _evaluations(model, checkpoint), packaged_bill(model, checkpoint)
        with progress(checkpoint.size, "hashing") as advance:
            hashes = tensor_hashes(checkpoint, advance)
        found = changes_from(record, checkpoint, hashes)
        digest = digest_of_checkpoint(checkpoint, hashes)
        others = [*_of_others(evaluations, digest), *of_other_weights(bill, digest)]
        checkpoint.verify_unchanged()
    summarize(lambda: _markdown(model, found, others, evaluations, signed))
    if as_json:
        more = {"signature": signed and signed.json, "origin": origin}
        print_json(_json(found, others, evaluations, custom, is_by_unknown_table(record)) | more)
    else:
        if signed is not None:
            click.echo(": ".join(signed.line))
        _print(model, found, others, evaluations, custom, record)
    if found or others:
        sys.exit(1)
    return True


def _evaluations(model: Path, checkpoint: Checkpoint) -> Sequence[Evaluation]:
    """Those beside weights in the format that models are run in. Of another format they are of what it converts to."""
    from converter.evaluation.record import evaluations_beside
    from converter.writing.records import find_record

    evaluations = evaluations_beside(model)
    return evaluations if evaluations and find_record(model, checkpoint, "config") is not None else ()


def _of_others(evaluations: Sequence[Evaluation], sha256: str) -> list[str]:
    """A line for each evaluation of other weights than those with that hash of all tensors."""
    return [
        f"the evaluation on {plain(evaluation.dataset)}: of weights with sha256 {evaluation.weights}, these have "
        f"{sha256}; move it elsewhere"
        for evaluation in evaluations
        if evaluation.weights != sha256
    ]


def _json(
    found: Changes,
    others: list[str],
    evaluations: Sequence[Evaluation],
    custom: list[CustomTable],
    is_unknown: bool,
) -> dict[str, Any]:
    return {
        "certificate": None,
        "record": {
            "tensors": found.recorded,
            "changed": found.changed,
            "missing": found.missing,
            "added": found.added,
            "relabelled": found.relabelled,
            "proves": None if found else _PROVES,
        },
        "verdict": _verdict(found, others),
        "problems": [*found.problems, *others],
        "custom_tables": [table.entry for table in custom],
        "unknown_table": is_unknown,
        "evaluations": evaluations_json(evaluations),
        "device": None,
        "dtype": None,
        "largest_relative_error": None,
    }


def _markdown(
    model: Path, found: Changes, others: list[str], evaluations: Sequence[Evaluation], signed: Signed | None
) -> str:
    rows = [[prose(problem)] for problem in (*found.problems, *others)]
    lines = [("no certificate", found.summary), *([] if found else [("shows", f"that {_PROVES}")])]
    lines += [*([signed.line] if signed else []), *of_evaluations(evaluations)]
    verdict = _verdict(found, others)
    return page(f"converter verify {model}", verdict, lines, as_table(["difference"], rows, "differences"))


def _print(
    model: Path,
    found: Changes,
    others: list[str],
    evaluations: Sequence[Evaluation],
    custom: list[CustomTable],
    record: Mapping[str, Any],
) -> None:
    from converter.writing.ledger import UNKNOWN_TABLE, is_by_unknown_table, saved_from

    click.echo(f"no certificate: {file_name(model)} is compared with its own record")
    for table in custom:
        click.echo(f"rests on {table}, as accepted")
    if is_by_unknown_table(record):
        click.echo(saved_from(record) or f"its source was {UNKNOWN_TABLE}")
    for label, line in of_evaluations(evaluations):
        click.echo(f"{label}: {line}")
    click.echo(found.summary)
    for line in cut([f"  {problem}" for problem in (*found.problems, *others)]):
        click.echo(line)
    again = "Convert the original again; a model that was fine-tuned is saved by save_pretrained."
    click.echo(again if found else f"This shows that {_PROVES}.")
    click.echo(_verdict(found, others))


def _verdict(found: Changes, others: Sequence[str]) -> str:
    """No `pass`: that is the word of a certificate."""
    return "FAIL" if found or others else "as recorded"
