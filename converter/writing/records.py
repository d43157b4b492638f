"""The records that a conversion leaves with its weights, read back: `config`, of what model they are, and `conversion`.

A folder has them as `config.json` and `conversion.json` (the ledger), a single file in its metadata.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.checkpoint.strict_json import parse_json, read_json
from converter.display import file_name, quoted
from converter.errors import ModelError
from converter.mapping.documents import names_of

_LEDGER = {"source": dict, "table": dict, "target": dict, "tensors": dict, "left_out": list, "converter": str,
           "sha256": str, "lossless": bool}  # fmt: skip


def read_config(conversion: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """The record `config`: the `model` that the weights are for (a known spec), its `variant` and its sizes, `config`.

    `checkpoint` was opened from `conversion`. ModelError if the record is missing or invalid.
    """
    content = _read(conversion, checkpoint, "config")
    known = names_of("spec")
    if content.get("model") not in known or not isinstance(content.get("config"), dict) or "variant" not in content:
        raise ModelError(
            f"{file_name(conversion)}: its record 'config' is invalid: expected {{'model': ..., 'variant': ..., "
            f"'config': {{...}}}} of a model that is known here ({', '.join(known)}), found the keys "
            f"{quoted(str(sorted(content)))}. Convert again."
        )
    return content


def read_ledger(conversion: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """The ledger, as `converter.writing.ledger` makes it. ModelError if the record is missing or invalid."""
    content = _read(conversion, checkpoint, "conversion")
    if wrong := [key for key, kind in _LEDGER.items() if not isinstance(content.get(key), kind)]:
        raise ModelError(
            f"{file_name(conversion)}: its record 'conversion' is invalid: {wrong[0]!r} is missing or of another "
            "kind. Convert again."
        )
    return content


def _read(conversion: Path, checkpoint: Checkpoint, key: str) -> dict[str, Any]:
    where = f"{file_name(conversion)}: its record {key!r}"
    try:
        content = read_json(conversion / f"{key}.json") if conversion.is_dir() else parse_json(checkpoint.metadata[key])
    except (KeyError, FileNotFoundError):
        raise ModelError(
            f"{file_name(conversion)}: has no record {key!r} of a conversion. Give what `convert` wrote: a file, or a "
            "folder as a whole."
        ) from None
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ModelError(f"{where} is invalid: {error}. Convert again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{where} is invalid: it is not a JSON object. Convert again.")
    return content
