"""The command line's only access to families: weights name their model, the model's spec names its family."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint import open_checkpoint
from converter.display import quoted
from converter.errors import CheckpointError, ModelError
from converter.mapping.documents import installed_families
from converter.mapping.spec import load_spec
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


def family_at(path: Path) -> Family[Any]:
    """The family of the weights that `convert` wrote to a file or folder. ModelError if they do not say."""
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder; give what `convert` wrote")
    try:
        with open_checkpoint(path) as checkpoint:
            return family_of(known_model(path, read_record(path, checkpoint, "config")))
    except CheckpointError as error:
        raise ModelError(str(error)) from None


def load_subject(path: Path, device: str, dtype: str, tf32: bool = False, threads: int | None = None) -> Subject:
    """A converted model, where and as it is to run. CaptureError if there is no such device, ModelError as `load`."""
    from converter.parity.device import DTYPES, prepare
    from converter.parity.family import Subject

    place = prepare(device, tf32, threads)
    family = family_at(path)
    return Subject(family, family.load(path).to(device=place, dtype=DTYPES[dtype]))
