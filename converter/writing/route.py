"""The plan of a conversion as a user states it: formats by name, and the residue that lies beside the source."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.display import plain
from converter.errors import RootError
from converter.planning.formats import choose_formats, hub_holding, make_route
from converter.planning.plan import Plan
from converter.writing.buffers import verify_left_out
from converter.writing.residue import read_residue, residue_beside


def make_conversion(
    checkpoint: Checkpoint,
    opened: ExitStack,
    *,
    source: str | None,
    target: str | None,
    residue_file: Path | None,
    variant: str | None,
    dtype: str | None,
    say: Callable[[str], object],
) -> tuple[Plan, Checkpoint | None]:
    """The plan, with what it leaves out verified, and the residue that it reads, which `opened` closes.

    `source`, `target`: formats by name or path; without one, the source is recognised, the target is the in-house one.
    `residue_file`: by default the one beside the checkpoint; `say` is told why it is not used. Raises RootError for a
    residue of another format, and as `choose_formats`, `make_route` and `verify_left_out`.
    """
    known, wanted = choose_formats(checkpoint, source, target)
    residue = kept = None
    if (path := residue_file or residue_beside(checkpoint)) is not None:
        residue = opened.enter_context(open_checkpoint(path))
        kept = read_residue(residue)
        if kept.format != wanted.name:
            found = f"is for the way back to {plain(kept.format)}, not to {wanted.label}"
            if residue_file is not None:
                raise RootError(f"{path}: {found}. Leave out --residue.")
            say(f"{path.name} {found}, and is not used")
            residue = kept = None
        elif residue_file is None and not kept.belongs(checkpoint):
            say(f"{path.name} belongs to another conversion and is not used; --residue insists")
            residue = kept = None
        elif wanted.is_hub:
            wanted = hub_holding(known, wanted, kept.checkpoint.tensors)
    held = kept.residue(wanted) if kept else None
    plan = make_route(known, wanted, checkpoint, variant=variant, dtype=dtype, residue=held)
    verify_left_out(checkpoint, plan)
    return plan, residue
