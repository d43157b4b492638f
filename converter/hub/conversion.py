"""`convert` in Python: a checkpoint, here or on the Hub, becomes one of another format."""

from __future__ import annotations

import os
import warnings
from contextlib import ExitStack
from pathlib import Path

from converter.errors import ConverterWarning
from converter.hub.reference import is_on_hub
from converter.hub.resolve import resolve
from converter.planning.formats import open_known
from converter.writing.convert import Conversion
from converter.writing.convert import convert as write
from converter.writing.residue import prepare
from converter.writing.route import make_conversion
from converter.writing.shards import shard_limit


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    source: str | None = None,
    to: str | None = None,
    dtype: str | None = None,
    variant: str | None = None,
    root: str | None = None,
    max_shard_size: int | str | None = None,
    keep_residue: bool = False,
    residue: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Conversion:
    """Convert a checkpoint to another format; what was written, with the ledger of every tensor.

    A folder gets weights, config.json and conversion.json, as from `converter convert`; the files of tokenizer and
    preprocessing that transformers reads beside them are written by the command alone.

        done = convert("official.pth", "model.safetensors")
        print(done.destination, done.size, done.ledger["sha256"])
        convert("model.safetensors", "swin", to="transformers-swin-backbone")

    src      a checkpoint of any known format, or one on the Hub: `hf://org/name/file.pth@revision`
    dst      a file (`.safetensors`, `.pth`) or a folder; it appears as a whole or not at all
    source   the format of `src`, by name or as a table's path; by default it is recognised
    to       the format to write; by default that of `from_pretrained`
    dtype    casts all weights: float64, float32, float16 or bfloat16; by default they are kept as stored
    variant, root, keep_residue, residue, force: as the options of these names; `max_shard_size`: "500MB", or bytes

    Raises a ConverterError: CheckpointError, TableError, PlanError with all its problems, DestinationError or HubError.
    Whatever is raised, `dst` is as it was.
    """
    path, origin, destination, limit = Path(src), None, Path(dst), shard_limit(max_shard_size)
    if isinstance(src, str) and is_on_hub(src):
        found = resolve(src)
        path, origin = found.path, found.origin
    kept = None if residue is None else Path(residue)
    with open_known(path, root, source) as checkpoint, ExitStack() as opened:
        prepare(destination, force=force, inputs=checkpoint.files, keep=keep_residue)
        plan, beside = make_conversion(
            path, checkpoint, opened, source=source, target=to, residue_file=kept, variant=variant, dtype=dtype,
            say=_warn,
        )  # fmt: skip
        return write(
            checkpoint, plan, destination, max_shard_size=limit, force=force, residue=beside,
            trusts_ledger=kept is None, keep_residue=keep_residue, origin=origin,
        )  # fmt: skip


def _warn(text: str) -> None:
    warnings.warn(text, ConverterWarning, stacklevel=4)
