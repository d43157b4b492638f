"""The command line's only access to families: weights name their model, the model's spec names its family."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint import Checkpoint
from converter.cli.output import note
from converter.cli.sources import taken_from
from converter.display import file_name, quoted
from converter.errors import ModelError, NotACheckpointError
from converter.mapping.folders import installed_families
from converter.mapping.spec import load_spec
from converter.writing.changes import compared_meanwhile
from converter.writing.in_memory import open_converted
from converter.writing.records import known_model, read_record

if TYPE_CHECKING:
    from converter.parity.family import Family
    from converter.parity.subject import Subject


def family_of(model: str) -> Family[Any]:
    """The family of the model that a spec describes: a folder of this package, or an installed package.

    Raises ModelError where there is none, TableError for an unknown spec.
    """
    name = load_spec(model).family
    if name is None:
        raise ModelError(f"{model}: its spec names no family, so nothing here can run such a model.")
    package = f"converter.{name}"
    if find_spec(package) is None:
        package = next((found.package for found in installed_families() if found.name == name), "")
    if not package:
        raise ModelError(f"{model}: is of the family {quoted(name)}, which is not installed.")
    family: Family[Any] = import_module(f"{package}.family").FAMILY
    return family


def open_weights(path: Path, root: str | None = None, joined: str | None = "float32") -> Checkpoint:
    """The checkpoint of any known format at `path`, as `open_converted` gives it. Raises as that.

    To make its plan takes time: a command opens its model once, and hands it on.
    """
    if not path.exists():
        raise NotACheckpointError(f"{path}: no such file or folder; give a checkpoint, or what `convert` wrote")
    checkpoint = open_converted(path, root, joined)
    if checkpoint.layout == "in-memory":
        taken = taken_from(checkpoint)
        said = f"{file_name(path)}: converted on the way" + (f"; taken from it: {taken}" if taken else "")
        note(said)
    return checkpoint


def family_of_weights(path: Path, checkpoint: Checkpoint) -> Family[Any]:
    """The family of a conversion, by its record. ModelError if it has none that is known."""
    return family_of(known_model(path, read_record(path, checkpoint, "config")))


def load_subject(
    path: Path, checkpoint: Checkpoint, device: str, dtype: str, tf32: bool = False, threads: int | None = None
) -> Subject:
    """The model in a checkpoint that `open_weights` opened from `path`, where and as it is to run.

    A converted file that is not what its own record says is a warning.
    CaptureError if there is no such device, CheckpointError if the file was changed meanwhile, else raises as
    `Family.load`.
    """
    from converter.parity.device import DTYPES, prepare
    from converter.parity.subject import Subject

    place = prepare(device, tf32, threads)
    family = family_of_weights(path, checkpoint)
    with compared_meanwhile(checkpoint, path):
        model = family.load(path, checkpoint)
    checkpoint.verify_unchanged()
    return Subject(family, model.to(device=place, dtype=DTYPES[dtype]))
