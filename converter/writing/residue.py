"""The residue: what a conversion leaves out and nothing can rebuild, kept in a file beside the result.

With it the way back gives every tensor of the original state dict: `cls_logits`, a masked-language head, whatever a
format holds that the written one does not. It is a safetensors file of those tensors under their own names, whose
metadata says which conversion it belongs to, which buffers the original had and what it called its tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import DTYPES, Checkpoint, DType, open_checkpoint
from converter.checkpoint.strict_json import parse_json
from converter.display import file_name, quoted
from converter.errors import CheckpointError, CorruptCheckpointError, DestinationError
from converter.mapping.ops import Shape
from converter.mapping.table import Table
from converter.planning.plan import Naming, Plan, Residue, Step, Tensor
from converter.writing.commit import Parent, abandoned, remove_leftovers, signals_held
from converter.writing.destination import RESIDUE, check_destination
from converter.writing.ledger import digest_of_ledger, ledger_of, to_json
from converter.writing.names import is_file_name
from converter.writing.shards import INDEX_NAME
from converter.writing.staging import waiting_name

METADATA_KEY = "residue"


@dataclass(frozen=True, slots=True)
class Kept:
    """A residue as it was read. `format`: the format it was left out of; `belongs_to`: `digest_of_ledger`.

    `buffers`: full names and dtypes of the original's buffers that can be rebuilt. `names`: full names in the original
    that are not just `prefix` plus the table's short name. `shapes`: those that the table takes as well, by full name.
    """

    checkpoint: Checkpoint
    format: str
    belongs_to: str
    prefix: str
    buffers: Mapping[str, DType]
    names: tuple[str, ...]
    shapes: Mapping[str, Shape]

    def belongs(self, weights: Checkpoint) -> bool:
        """Whether the conversion that wrote `weights` left this out."""
        ledger = ledger_of(weights)
        # older ones state the hash of the tensors
        return ledger is not None and self.belongs_to in (digest_of_ledger(ledger), ledger.get("sha256"))

    def residue(self, table: Table) -> Residue:
        """By the short names of `table`, the format that it was left out of.

        Raises CorruptCheckpointError where these contradict each other or the table does not know the prefix.
        """
        label = file_name(self.checkpoint.path)
        if not table.names.is_prefix(self.prefix):
            raise CorruptCheckpointError(
                f"{label}: says that names began with {quoted(self.prefix)}, which is no wrapper and no prefix of "
                f"{table.label}. Leave it out, or get it again."
            )
        full: dict[str, str] = {}
        for name in (*self.checkpoint.tensors, *self.buffers, *self.names):
            if (short := table.short(name)) in full:
                raise CorruptCheckpointError(
                    f"{label}: {quoted(full[short])} and {quoted(name)} are the same key of {table.label}, of which a "
                    "checkpoint has one. Leave it out, or get it again."
                )
            full[short] = name
        return Residue(
            {table.short(n): Tensor(n, t.shape, t.dtype) for n, t in self.checkpoint.tensors.items()},
            {table.short(name): dtype for name, dtype in self.buffers.items()},
            Naming(
                self.prefix,
                {short: name for short, name in full.items() if name != self.prefix + short},
                {table.short(name): shape for name, shape in self.shapes.items()},
            ),
        )


def residue_path(destination: Path) -> Path:
    """Where the residue of a conversion to `destination` lies: beside a file, inside a folder."""
    if is_file_name(destination):
        return destination.with_name(f"{destination.name}.residue.safetensors")
    return destination / RESIDUE


def residue_beside(checkpoint: Checkpoint) -> Path | None:
    """The residue beside the file of a checkpoint, or in its folder, if there is one.

    That of a conversion which was killed at the end still waits for its name.
    """
    places = [residue_path(checkpoint.path)]
    if checkpoint.path.name in ("model.safetensors", INDEX_NAME):
        places.append(checkpoint.path.parent / RESIDUE)
    there = [path for path in (*places, *map(waiting_name, places[:1])) if path.is_file()]
    return next((path for path in there if _belongs(path, checkpoint)), next(iter(there), None))


def _belongs(residue: Path, weights: Checkpoint) -> bool:
    with _no_is_no() as answer, open_checkpoint(residue) as opened:
        answer.append(read_residue(opened).belongs(weights))
    return any(answer)


def _are_pair(residue: Path, weights: Path) -> bool:
    with _no_is_no() as answer, open_checkpoint(weights) as opened:
        answer.append(_belongs(residue, opened))
    return any(answer)


@contextmanager
def _no_is_no() -> Iterator[list[bool]]:
    """Pass over what is not there or damaged, and raise what leaves open what is there: too many open files, say."""
    try:
        yield []
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise


def _settle(destination: Path) -> None:
    """Remove what dead conversions to `destination` left, and finish one that had done all but name its residue."""
    remove_leftovers(destination)
    final = residue_path(destination)
    waiting = waiting_name(final)
    if not is_file_name(destination) or not os.path.lexists(waiting):
        return
    with Parent(destination.parent), signals_held(), abandoned(waiting) as is_abandoned, suppress(OSError):
        if _are_pair(waiting, destination) and not _are_pair(final, destination):
            os.replace(waiting, final)  # whoever wrote it would do nothing else now
        elif is_abandoned:
            waiting.unlink()


def prepare(destination: Path, *, force: bool, inputs: list[Path], keep: bool, dry_run: bool = False) -> None:
    """Tidy the destination of a conversion and check it, and that of its residue where it is to `keep` one.

    A residue is lost in no case, since nothing else holds what is in it: it is replaced only by a new one, and only
    where it belongs to the weights that are replaced with it. Raises DestinationError, and CheckpointError where that
    cannot be told.
    """
    if not dry_run:
        _settle(destination)
    check_destination(destination, force=force, inputs=inputs, replaces={RESIDUE} if keep else ())
    if keep and is_file_name(destination):
        check_destination(residue_path(destination), force=force or not destination.exists(), inputs=inputs)
    if keep:
        check_residue(destination)


def check_residue(destination: Path) -> None:
    """DestinationError if a residue is there that does not belong to the weights with which it would be replaced.

    One whose successor, which is the weights' own, only waits for its name is no loss.
    CheckpointError where that cannot be told.
    """
    beside = residue_path(destination)
    if os.path.lexists(beside) and not any(_are_pair(path, destination) for path in (beside, waiting_name(beside))):
        raise DestinationError(
            f"{beside} does not belong to {destination.name}; --force would lose what only it holds. Move it, or "
            "choose another destination"
        )


def steps_to_keep(plan: Plan) -> list[Step]:
    """Steps that copy, under their own names, what `plan` leaves out and nothing can rebuild."""
    kept = [out.tensor for out in plan.left_out if not out.is_rebuildable]
    return [Step("residue", (tensor,), (tensor,), ()) for tensor in kept]


def residue_metadata(plan: Plan, ledger: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of the file, of the same length whatever the hash."""
    left_out = {out.tensor.name for out in plan.left_out}
    shapes = {plan.naming.full(short): shape for short, shape in plan.naming.shapes.items()}
    about = {
        "format": plan.table,
        "belongs_to": digest_of_ledger(ledger),
        "prefix": plan.naming.prefix,
        "names": [name for name in plan.naming.others.values() if name not in left_out],
        "shapes": {name: list(shape) for name, shape in shapes.items() if name not in left_out},
        "buffers": {out.tensor.name: out.tensor.dtype.name for out in plan.left_out if out.is_rebuildable},
    }
    return {"format": "pt", METADATA_KEY: to_json(about, indent=None).decode()}


def read_residue(checkpoint: Checkpoint) -> Kept:
    """What the opened residue says of itself. Raises CorruptCheckpointError if the file is not a residue."""
    try:
        about = parse_json(checkpoint.metadata[METADATA_KEY])
        format, belongs_to, prefix = (about[key] for key in ("format", "belongs_to", "prefix"))
        names, buffers = tuple(about["names"]), {name: DTYPES[dtype] for name, dtype in about["buffers"].items()}
        shapes = {name: tuple(sizes) for name, sizes in about.get("shapes", {}).items()}  # older ones have none
        sound = all(type(size) is int for sizes in shapes.values() for size in sizes)
        sound = sound and all(isinstance(text, str) for text in (format, belongs_to, prefix, *names))
    except (KeyError, ValueError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise CorruptCheckpointError(
            f"{file_name(checkpoint.path)}: is not a residue of a conversion. Give the right one with --residue, or "
            "move this one away."
        )
    return Kept(checkpoint, format, belongs_to, prefix, buffers, names, shapes)
