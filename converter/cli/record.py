"""`converter verify` of weights without a certificate: what the record of their conversion shows, without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.job import as_table, page, prose, summarize
from converter.cli.output import cut, print_json, progress
from converter.display import file_name

if TYPE_CHECKING:
    from converter.writing.changes import Changes
    from converter.writing.ledger import CustomTable

_PROVES = (
    "no tensor was changed since the file was written; not that the conversion is right, and nothing of the files "
    "beside the weights: a certificate shows that (`converter certify`). If the record was changed, too, nobody notices"
)


def verify_by_record(
    model: Path, root: str | None, accepted_tables: Collection[str], origin: dict[str, Any] | None, as_json: bool
) -> bool:
    """Compare every tensor with the record, and tell.

    False, and nothing is told, if there is no record, or a certificate lies beside the weights, or should: the record
    of a folder names all its files. Ends the program with 1 where a tensor differs. CaptureError for a table that is
    not accepted, ModelError for a record that is not sound, CheckpointError.
    """
    from converter.checkpoint.hashes import tensor_hashes
    from converter.parity.evidence import certificate_path, check_tables
    from converter.planning.formats import open_known
    from converter.writing.changes import changes_from, find_record_of_tensors
    from converter.writing.ledger import files_of, is_by_unknown_table

    beside = certificate_path(model)
    if os.path.lexists(beside):
        return False
    with open_known(model, root) as checkpoint:
        record = find_record_of_tensors(checkpoint, model)
        if record is None or beside.name in files_of(record):
            return False
        custom = check_tables(model, record, None, accepted_tables)
        with progress(checkpoint.size, "hashing") as advance:
            found = changes_from(record, checkpoint, tensor_hashes(checkpoint, advance))
        checkpoint.verify_unchanged()
    summarize(lambda: _markdown(model, found))
    if as_json:
        print_json(_json(found, custom, is_by_unknown_table(record)) | {"origin": origin})
    else:
        _print(model, found, custom, record)
    if found:
        sys.exit(1)
    return True


def _json(found: Changes, custom: list[CustomTable], is_unknown: bool) -> dict[str, Any]:
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
        "verdict": _verdict(found),
        "problems": found.problems,
        "custom_tables": [table.entry for table in custom],
        "unknown_table": is_unknown,
        "device": None,
        "dtype": None,
        "largest_relative_error": None,
    }


def _markdown(model: Path, found: Changes) -> str:
    rows = [[prose(problem)] for problem in found.problems]
    lines = [("no certificate", found.summary), *([] if found else [("shows", f"that {_PROVES}")])]
    return page(f"converter verify {model}", _verdict(found), lines, as_table(["difference"], rows, "differences"))


def _print(model: Path, found: Changes, custom: list[CustomTable], record: Mapping[str, Any]) -> None:
    from converter.writing.ledger import UNKNOWN_TABLE, is_by_unknown_table, saved_from

    click.echo(f"no certificate: {file_name(model)} is compared with its own record")
    for table in custom:
        click.echo(f"rests on {table}, as accepted")
    if is_by_unknown_table(record):
        click.echo(saved_from(record) or f"its source was {UNKNOWN_TABLE}")
    click.echo(found.summary)
    for line in cut([f"  {problem}" for problem in found.problems]):
        click.echo(line)
    again = "Convert the original again; a model that was fine-tuned is saved by save_pretrained."
    click.echo(again if found else f"This shows that {_PROVES}.")
    click.echo(_verdict(found))


def _verdict(found: Changes) -> str:
    """No `pass`: that is the word of a certificate."""
    return "FAIL" if found else "as recorded"
