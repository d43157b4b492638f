"""The command line's only access to families: weights name their model, the model's spec names its family."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint import Checkpoint
from converter.display import quoted
from converter.errors import ModelError
from converter.mapping.documents import installed_families
from converter.mapping.spec import load_spec
from converter.writing.in_memory import open_converted
from converter.writing.records import known_model, read_record

if TYPE_CHECKING:
    from converter.parity.family import Family, Subject


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


def family_at(path: Path, root: str | None = None) -> Family[Any]:
    """The family of the weights in a checkpoint of any known format. Raises as `open_converted`, or ModelError."""
    with _open(path, root) as checkpoint:
        return family_of_weights(path, checkpoint)


def family_of_weights(path: Path, checkpoint: Checkpoint) -> Family[Any]:
    """The family of a conversion, by its record. ModelError if it has none that is known."""
    return family_of(known_model(path, read_record(path, checkpoint, "config")))


def load_subject(
    path: Path,
    device: str,
    dtype: str,
    tf32: bool = False,
    threads: int | None = None,
    root: str | None = None,
) -> Subject:
    """The model in a checkpoint of any known format, where and as it is to run.

    CaptureError if there is no such device, else raises as `open_converted` and `Family.load`.
    """
    from converter.parity.device import DTYPES, prepare
    from converter.parity.family import Subject

    place = prepare(device, tf32, threads)
    with _open(path, root) as checkpoint:
        family = family_of_weights(path, checkpoint)
        model = family.load(path, checkpoint)
        checkpoint.verify_unchanged()
    return Subject(family, model.to(device=place, dtype=DTYPES[dtype]))


def _open(path: Path, root: str | None) -> Checkpoint:
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder; give a checkpoint, or what `convert` wrote")
    return open_converted(path, root)
