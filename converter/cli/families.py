"""The one door to families of models: weights say which model they are of, its spec says of which family that is."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint import open_checkpoint
from converter.display import file_name, quoted
from converter.errors import CheckpointError, ModelError
from converter.mapping.documents import installed_families, names_of
from converter.mapping.spec import load_spec

if TYPE_CHECKING:
    from converter.parity.family import Family, Subject

_LIMIT = 64 << 20  # bytes of a config.json


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
    document = _config(path)
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, str) or model not in names_of("spec"):
        found = f"the keys {sorted(document)}" if isinstance(document, dict) else "no JSON object"
        raise ModelError(
            f"{file_name(path)}: expected the configuration of a model that is known here "
            f"({', '.join(names_of('spec'))}), {{'model': ..., 'variant': ..., 'config': {{...}}}}; found {found}."
        )
    return family_of(model)


def _config(path: Path) -> Any:
    try:
        if path.is_dir():
            with (path / "config.json").open("rb") as file:
                text: str | bytes = file.read(_LIMIT)
        else:
            with open_checkpoint(path) as checkpoint:
                if "config" not in checkpoint.metadata:
                    raise ModelError(
                        f"{file_name(path)}: the header's metadata has no 'config', so the model's sizes are not "
                        "known. Write the file with convert, or put a config.json beside it and load the folder."
                    )
                text = checkpoint.metadata["config"]
        return json.loads(text)
    except CheckpointError as error:
        raise ModelError(str(error)) from None
    except OSError as error:
        raise ModelError(f"{file_name(path)}: has no config.json that can be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file_name(path)}: its configuration is not valid JSON: {error}.") from None


def load_subject(path: Path, device: str, dtype: str, tf32: bool = False, threads: int | None = None) -> Subject:
    """A converted model, where and as it is to run. CaptureError if there is no such device, ModelError as `load`."""
    from converter.parity.device import DTYPES, prepare
    from converter.parity.family import Subject

    place = prepare(device, tf32, threads)
    family = family_at(path)
    return Subject(family, family.load(path).to(device=place, dtype=DTYPES[dtype]))
