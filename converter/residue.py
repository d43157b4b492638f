"""The residue: what a conversion leaves out and nothing can rebuild, kept in a file beside the result.

With it the way back gives every tensor of the original state dict: `cls_logits`, a masked-language head, whatever a
format holds that the written one does not. It is a safetensors file of those tensors under their own names, whose
metadata says which conversion it belongs to, and which buffers the original had.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import DTYPES, Checkpoint
from converter.display import file_name
from converter.errors import CorruptCheckpointError
from converter.mapping.table import Table
from converter.plan import Plan, Residue, Step, Tensor
from converter.staging import is_file_name
from converter.writer import to_json

METADATA_KEY = "residue"
_LEDGER_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """A residue as it was read. `format` is the one that it was left out of; `belongs_to` the ledger's sha256."""

    format: str
    belongs_to: str
    residue: Residue


def residue_path(destination: Path) -> Path:
    """Where the residue of a conversion to `destination` lies: beside a file, inside a folder."""
    if is_file_name(destination):
        return destination.with_name(f"{destination.stem}.residue.safetensors")
    return destination / "residue.safetensors"


def steps_to_keep(plan: Plan) -> list[Step]:
    """Steps that copy, under their own names, what `plan` leaves out and nothing can rebuild."""
    kept = [out.tensor for out in plan.left_out if out.rebuild is None]
    return [Step("residue", (tensor,), (tensor,), ()) for tensor in kept]


def residue_metadata(plan: Plan, ledger_sha256: str) -> dict[str, str]:
    """The metadata of the file, of the same length whatever the hash."""
    about = {
        "format": plan.table,
        "belongs_to": ledger_sha256,
        "prefix": plan.prefix,
        "buffers": {out.tensor.name: out.tensor.dtype.name for out in plan.left_out if out.rebuild is not None},
    }
    return {"format": "pt", METADATA_KEY: to_json(about, indent=None).decode()}


def read_residue(checkpoint: Checkpoint, table: Table) -> Kept:
    """What the opened residue holds, by the short names of `table`, the format that it was left out of.

    Raises CorruptCheckpointError for a file that is none or contradicts itself.
    """
    about = _about(checkpoint)
    tensors = {table.short(n): Tensor(n, t.shape, t.dtype) for n, t in checkpoint.tensors.items()}
    buffers = {table.short(name): DTYPES[dtype] for name, dtype in about["buffers"].items()}
    return Kept(about["format"], about["belongs_to"], Residue(tensors, buffers, about["prefix"]))


def ledger_sha256(checkpoint: Checkpoint) -> str | None:
    """The sha256 in the ledger of the conversion that wrote a checkpoint, if one of ours did."""
    text = checkpoint.metadata.get("conversion")
    beside = checkpoint.path.parent / "conversion.json"
    try:
        if text is None and beside.stat().st_size <= _LEDGER_LIMIT:
            text = beside.read_text()
        found = json.loads(text or "null")["sha256"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _about(checkpoint: Checkpoint) -> dict[str, Any]:
    label = file_name(checkpoint.path)
    try:
        about = json.loads(checkpoint.metadata[METADATA_KEY])
        texts = [about[key] for key in ("format", "belongs_to", "prefix")]
        buffers = about["buffers"]
        sound = all(isinstance(text, str) for text in texts) and all(dtype in DTYPES for dtype in buffers.values())
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise CorruptCheckpointError(f"{label}: is no residue of a conversion. Leave it out, or give the right file.")
    return dict(about)
