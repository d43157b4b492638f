"""Tensors to suspect where a comparison fails: those of the file that are not what its own record says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from converter.checkpoint import Checkpoint
from converter.errors import CheckpointError, ModelError
from converter.parity.run import Report
from converter.writing.changes import Changes, changes

NO_RECORD = "the weights have no record of a conversion: nothing tells whether a tensor was changed"


def with_suspects(reports: Sequence[Report], checkpoint: Checkpoint, path: Path) -> list[Report]:
    """The reports, those that failed with what the record of the file tells. Only then is every tensor hashed.

    `checkpoint` was opened from `path`.
    """
    if not any(report.passed is False for report in reports):
        return list(reports)
    names, said = _suspects(checkpoint, path)
    return [r if r.passed is not False else replace(r, suspects=names, record=said) for r in reports]


def _suspects(checkpoint: Checkpoint, path: Path) -> tuple[tuple[str, ...], str]:
    try:
        found = changes(checkpoint, path)
    except (CheckpointError, ModelError) as error:  # what was compared stays
        return (), str(error)
    if found is None:
        return (), NO_RECORD
    names = tuple(name for _, name in found.named)
    return names or tuple(found.problems), _said(found)


def _said(found: Changes) -> str:
    if found:
        return f"the file was changed after it was written: {found.summary}"
    return f"the file is as it was written: {found.summary}, so suspect the table, the code or the capture"
