"""The records that a conversion leaves with its weights, read back: `config`, of what model they are, and `conversion`.

A folder has them as `config.json` and `conversion.json` (the ledger), a single file in its metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from converter.checkpoint import Checkpoint
from converter.checkpoint.strict_json import parse_json, read_json
from converter.display import file_name, plain, quoted
from converter.errors import ModelError, PlanError
from converter.mapping.documents import names_of
from converter.mapping.spec import as_config, load_spec
from converter.mapping.table import Table
from converter.planning.plan import Plan

_ENTRIES: Mapping[str, Mapping[str, type]] = {
    "config": {"model": str, "config": dict},
    "conversion": {"source": dict, "table": dict, "target": dict, "tensors": dict, "left_out": list, "converter": str,
                   "sha256": str, "lossless": bool},
}  # fmt: skip


def read_record(conversion: Path, checkpoint: Checkpoint, key: Literal["config", "conversion"]) -> dict[str, Any]:
    """A record of the `conversion` that `checkpoint` was opened from, as `converter.writing.ledger` makes it.

    ModelError if it is missing, or if an entry is missing or of another kind.
    """
    content = find_record(conversion, checkpoint, key)
    if content is None:
        raise ModelError(
            f"{file_name(conversion)}: has no record {key!r} of a conversion. Run `convert` first, and give the "
            ".safetensors file or the folder that it wrote."
        )
    return content


def find_record(
    conversion: Path, checkpoint: Checkpoint, key: Literal["config", "conversion"]
) -> dict[str, Any] | None:
    """As `read_record`, but None if there is none.

    The config.json of another tool is none. Bare sizes are one, if they are just those that a spec has: that is what
    `dataclasses.asdict` makes of a model's configuration.
    """
    where = f"{file_name(conversion)}: its record {key!r}"
    is_beside = conversion.is_dir() and checkpoint.layout.startswith("safetensors")  # as `convert` writes folders
    try:
        content = read_json(conversion / f"{key}.json") if is_beside else parse_json(checkpoint.metadata[key])
    except (KeyError, FileNotFoundError):
        return None
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ModelError(f"{where} is invalid: {error}. Convert again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{where} is invalid: it is not a JSON object. Convert again.")
    if key == "config" and content and not _ENTRIES[key].keys() & content.keys():
        sizes = _of_sizes(content)
        if sizes is not None or is_beside:
            return sizes
    if wrong := [name for name, kind in _ENTRIES[key].items() if not isinstance(content.get(name), kind)]:
        raise ModelError(f"{where} is invalid: {wrong[0]!r} is missing or of another kind. Convert again.")
    return content


def check_library(path: Path, source: Table, plan: Plan) -> None:
    """PlanError where the config.json of a library's own folder states what a conversion would lose: it differs from
    what the plan's sizes imply, and no tensor shows it. A file that cannot be read is for the library to tell."""
    if not source.is_hub or plan.config_of_library is None or not path.is_dir():
        return
    try:
        stated = read_json(path / "config.json")
    except (OSError, ValueError):
        return
    problems = [
        f"{'.'.join(steps)} is {plain(repr(found))}, and {plan.variant.name} has {expected!r}"
        for steps, expected, found in _differing(plan.config_of_library, stated)
        if steps[-1] not in source.saved_as.unread
    ]
    if problems:
        raise PlanError(
            f"{file_name(path)}: its config.json states a model that computes something else. Only variants can be "
            "converted",
            problems,
        )


def _differing(expected: Mapping[str, Any], found: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any, Any]]:
    """Where a JSON object states another value for a key than expected: the key, both values."""
    for key, value in expected.items():
        if not isinstance(found, dict) or key not in found:
            continue
        if isinstance(value, dict):
            yield from _differing(value, found[key], (*at, key))
        elif found[key] != value:
            yield (*at, key), value, found[key]


def _of_sizes(sizes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a model of these sizes; None if no known spec has just these."""
    for name in names_of("spec"):
        spec = load_spec(name)
        if spec.variants[0].config.keys() == sizes.keys():
            return {"model": name, "variant": spec.variant_of(as_config(sizes)).name, "config": dict(sizes)}
    return None


def known_model(conversion: Path, config: Mapping[str, Any]) -> str:
    """The name of the spec that a record `config` is of. ModelError if no such spec is known."""
    model, known = str(config["model"]), names_of("spec")
    if model not in known:
        raise ModelError(
            f"{file_name(conversion)}: its record 'config' is of the model {quoted(model)}, expected one that is known "
            f"here: {', '.join(known)}. Install the family that brings it."
        )
    return model
