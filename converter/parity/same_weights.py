"""Whether a capture was made of the weights that are compared with it, or of what they were converted from.

A capture names its weights by `state_dict`: the hash of what its mapping table reads, by the names of the table. It is
the same from a .pth, its shards, a file of another format that was converted from it, and a conversion of any of these:
there it stands in the ledger, or is computed by the table read backwards. So no model has to run to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.checkpoint.hashes import tensor_hashes
from converter.display import file_name, plain, quoted
from converter.errors import OtherWeightsError
from converter.mapping.load import load_table
from converter.mapping.table import Table
from converter.parity.capture import Capture
from converter.parity.family import Family
from converter.writing.ledger import STATE_DICT, digest_of_checkpoint
from converter.writing.records import find_record
from converter.writing.state_dict import state_dict_of


def same_weights(capture: Capture, path: Path, checkpoint: Checkpoint, family: Family[Any]) -> bool | None:
    """Whether `capture` was made of these weights; None where nothing tells.

    `checkpoint` was opened from `path`, in the naming of its spec. A conversion counts as what it was made of: one that
    was changed afterwards still says so, and a comparison shows what was changed. CheckpointError if it cannot be read.
    """
    captured = capture.facts.get(STATE_DICT)
    if captured is None:
        return None
    table = load_table(capture.table or family.table)
    ledger = find_record(path, checkpoint, "conversion")
    claimed = _claimed(ledger, table)
    if claimed == captured:
        return True
    found = state_dict_of(checkpoint, table)
    if found == captured:
        return True
    if claimed is None and (ledger is None or _is_exact(ledger, checkpoint)):
        claimed = found
    return None if claimed is None or claimed["dtype"] != captured["dtype"] else False


def state_dicts(path: Path, checkpoint: Checkpoint, family: Family[Any]) -> tuple[Mapping[str, str], ...]:
    """All that weights are known by to captures of the family's table: what they were made of, and what they are."""
    table = load_table(family.table)
    ledger = find_record(path, checkpoint, "conversion")
    claimed, found = _claimed(ledger, table), state_dict_of(checkpoint, table)
    return tuple(entry for entry in ({} if claimed is None else claimed, found or {}) if entry)


def _claimed(ledger: Mapping[str, Any] | None, table: Table) -> Mapping[str, Any] | None:
    """What a ledger says of the state dict, if this very table read it: another release may read other tensors."""
    if ledger is None or ledger["table"].get("sha256") != table.sha256:
        return None
    entry = ledger["source"].get(STATE_DICT)
    return entry if isinstance(entry, dict) and entry.keys() == {"dtype", "sha256"} else None


def _is_exact(ledger: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether a conversion is as it was written, and has every bit of its source."""
    is_unchanged: bool = ledger["sha256"] == digest_of_checkpoint(checkpoint, tensor_hashes(checkpoint))
    return is_unchanged and ledger["lossless"] is True


def refuse_other_weights(path: Path, captures: Sequence[tuple[Capture, bool | None]], hint: str = "") -> None:
    """OtherWeightsError if one of the `captures`, each with what `same_weights` said, was made of other weights.

    `hint`: how to compare all the same.
    """
    for capture, is_same in captures:
        if is_same is False:
            words = capture.facts.get("weights") if is_official(capture.facts) else None
            raise OtherWeightsError(
                f"{file_name(path)}: holds other weights than those that capture {quoted(capture.name)} was made of"
                f"{f' ({plain(words)})' if words else ''}, so nothing was compared; {how_to_capture(capture.facts)}"
                f"{hint}."
            )


def is_official(facts: Mapping[str, Any]) -> bool:
    """Whether a capture is of the official code, by what it says of its making."""
    return "official_config" in facts


def how_to_capture(facts: Mapping[str, Any]) -> str:
    """What to do to get such a capture of one's own weights. `facts`: what this one says of its making."""
    if not is_official(facts):
        return "make a capture of your weights: `converter capture REFERENCE --dst mine.safetensors`"
    taps = f"converter tables --taps {facts.get('table', 'TABLE')} --variant {plain(facts['model'])} > taps.json"
    script = "python capture_official.py --config FILE --weights OFFICIAL.pth --taps taps.json --dst mine.safetensors"
    return f"make a capture of your weights: `{taps}`, then, where the official code runs, `{script}`"
