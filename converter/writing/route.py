"""The plan of a conversion as a user states it: formats by name, and the residue that lies beside the source."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.display import file_name, plain
from converter.errors import ModelError, PlanError, RootError
from converter.mapping.documents import names_of
from converter.mapping.spec import as_config, load_spec
from converter.planning.formats import choose_formats, hub_holding, make_route
from converter.planning.plan import Plan
from converter.writing.buffers import verify_left_out
from converter.writing.records import check_library, find_record
from converter.writing.residue import read_residue, residue_beside


def make_conversion(
    path: Path,
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

    `path`: the file or folder that `checkpoint` was opened from.
    `source`, `target`: formats by name or path; without one, the source is recognised, the target is what the model's
    own code loads.
    `residue_file`: by default the one beside the checkpoint; `say` is told why it is not used. Raises RootError for a
    residue of another format, and as `choose_formats`, `make_route` and `verify_left_out`.
    """
    check_sizes(path, checkpoint)
    known, wanted = choose_formats(checkpoint, source, target)
    residue = kept = None
    if (place := residue_file or residue_beside(checkpoint)) is not None:
        residue = opened.enter_context(open_checkpoint(place))
        kept = read_residue(residue)
        if kept.format != wanted.name:
            found = f"is for the way back to {plain(kept.format)}, not to {wanted.label}"
            if residue_file is not None:
                raise RootError(f"{place}: {found}. Leave out --residue.")
            say(f"{place.name} {found}, and is not used")
            residue = kept = None
        elif residue_file is None and not kept.belongs(checkpoint):
            say(f"{place.name} belongs to another conversion and is not used; --residue insists")
            residue = kept = None
        elif wanted.is_hub:
            wanted = hub_holding(known, wanted, kept.checkpoint.tensors)
    held = kept.residue(wanted) if kept else None
    plan = make_route(known, wanted, checkpoint, variant=variant, dtype=dtype, residue=held)
    check_library(path, known, plan)
    verify_left_out(checkpoint, plan)
    return plan, residue


def check_sizes(path: Path, checkpoint: Checkpoint) -> None:
    """PlanError if the source's record states sizes of no variant. Not all show in shapes: they would be lost."""
    try:
        record = find_record(path, checkpoint, "config")
    except ModelError:  # who runs the model is told
        return
    if record is None or record.get("part") or record["model"] not in names_of("spec"):
        return
    spec = load_spec(record["model"])
    sizes = as_config(record["config"])
    if spec.variant_of(sizes) in spec.variants:
        return
    nearest = max(spec.variants, key=lambda variant: sum(sizes.get(n) == v for n, v in variant.config.items()))
    field = next(name for name, value in nearest.config.items() if sizes.get(name) != value)
    raise PlanError(
        f"{file_name(path)}: its record states {field} {plain(repr(sizes.get(field)))}, and {nearest.name} has "
        f"{nearest.config[field]}: only sizes of variants can be converted. It runs as it is (detect, parity, "
        "from_pretrained)"
    )
