"""Saving: a model in memory becomes a folder as `convert` writes it, with a record of what it was loaded from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from converter.checkpoint import DTYPES, Checkpoint, TensorInfo
from converter.checkpoint.storage import Storage
from converter.checkpoint.strict_json import OBJECT_LIMIT, read_limited
from converter.display import file_name, listed, plain
from converter.errors import ConverterWarning, DestinationError, ModelError
from converter.glip.detect.preprocessing import folder_settings, glip_preprocessing
from converter.glip.model.config import GLIPConfig
from converter.grounding.preprocessing import Preprocessing
from converter.grounding.tokenizer import COMPANIONS
from converter.mapping.load import hub_table
from converter.mapping.ops import Array
from converter.mapping.spec import load_spec
from converter.planning.plan import Plan, Step
from converter.planning.plan import Tensor as Described
from converter.writing.convert import Extras, convert
from converter.writing.fitting import FLOATS
from converter.writing.ledger import (
    SAVED,
    TABLES,
    digest_of_checkpoint,
    digest_of_tensors,
    is_by_unknown_table,
    saved_entry,
    tables_in,
    tables_of,
    to_json,
)
from converter.writing.names import check_folder_name
from converter.writing.records import find_record
from converter.writing.shards import shard_limit
from converter.writing.transfer import sha256_of

_CURE = (
    "Merge adapters (merge_and_unload()), remove parametrizations, and give a state_dict without a wrapper's prefixes"
)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a model was loaded from.

    name      of the file or folder, without its path, or `hf://org/name@COMMIT`
    sha256    of all tensors, as a ledger states it
    tensors   SHA-256 of each
    tables    what its records say of tables, and of changes before
    settings  its preprocessing
    files     its vocabulary, where its folder has one
    """

    name: str
    sha256: str
    tensors: Mapping[str, str] = field(repr=False)
    tables: Mapping[str, Any] = field(repr=False)
    settings: Preprocessing = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)


def stated_hashes(path: Path, checkpoint: Checkpoint) -> Mapping[str, str] | None:
    """SHA-256 of each tensor as the ledger states it; None where there is none of these tensors."""
    ledger = _ledger(path, checkpoint)
    return ledger["tensors"] if ledger is not None and ledger["tensors"].keys() == checkpoint.tensors.keys() else None


def origin_of(name: str, path: Path, checkpoint: Checkpoint, hashes: Mapping[str, str]) -> Origin:
    """What `checkpoint`, opened from `path`, is to be remembered by. `hashes`: SHA-256 of each tensor."""
    try:
        settings = folder_settings(path)
    except ModelError:  # whoever detects with it is told
        settings = glip_preprocessing()
    return Origin(
        name,
        digest_of_checkpoint(checkpoint, hashes),
        hashes,
        tables_of(_ledger(path, checkpoint) or tables_in(checkpoint) or {}),
        settings,
        dict(_vocabulary(path)),
    )


def _ledger(path: Path, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The ledger as it was written; of a checkpoint that is converted on the way there is none yet."""
    if checkpoint.layout == "in-memory":
        return None
    try:
        return find_record(path, checkpoint, "conversion")
    except ModelError:
        return None


def _vocabulary(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in COMPANIONS:
        try:
            if (folder / name).is_file():
                yield name, read_limited(folder / name, OBJECT_LIMIT)
        except (OSError, ValueError):
            continue  # whoever needs it is told


def save(
    state: Mapping[str, Tensor],
    config: GLIPConfig,
    origin: Origin | None,
    destination: str | os.PathLike[str],
    *,
    force: bool = False,
    max_shard_size: int | str | None = None,
) -> Path:
    """Write a folder; its path. `origin`: what the model was loaded from, if that is known.

    ModelError if the tensors are not those of a GLIP of that configuration; all differences are listed.
    DestinationError as `convert`: the folder is written as a whole or not at all.
    """
    folder, limit = Path(destination), shard_limit(max_shard_size)
    check_folder_name(folder, "a model is saved as")
    if not force and os.path.isdir(folder) and os.listdir(folder):
        raise DestinationError(f"{file_name(folder)} exists; force=True replaces what was saved or converted there")
    _check(state, config)
    hashes = {name: sha256_of(_values(value)) for name, value in state.items()}
    made = _checkpoint(state, _record(origin, hashes))
    settings = origin.settings if origin else glip_preprocessing()
    extras = Extras(origin.files if origin else {}, {"preprocessing": settings.to_dict()})
    convert(made, _plan(made, config), folder, max_shard_size=limit, force=force, extras=extras)
    if spoiled := [name for name, value in state.items() if not value.isfinite().all()]:
        warnings.warn(f"{file_name(folder)}: saved, but not finite: {listed(spoiled)}", ConverterWarning, stacklevel=3)
    return folder


def digest_of(model: nn.Module) -> str:
    """One hash of all tensors of a model, as a ledger states it."""
    hashes = ((name, value, sha256_of(_values(value))) for name, value in model.state_dict().items())
    return digest_of_tensors(
        (name, DTYPES[str(value.dtype).removeprefix("torch.")].name, tuple(value.shape), sha256)
        for name, value, sha256 in hashes
    )


def _check(state: Mapping[str, Tensor], config: GLIPConfig) -> None:
    expected = load_spec("glip").tensors(asdict(config))
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in state]
    problems += [f"unexpected: {plain(name)}" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        value = state[name]
        if not isinstance(value, Tensor):
            problems.append(f"values: {name} is {type(value).__name__}, expected a tensor")
            continue
        dtype = str(value.dtype).removeprefix("torch.")
        if tuple(value.shape) != expected[name]:
            problems.append(f"shape: {name} is {tuple(value.shape)}, expected {expected[name]}")
        elif dtype not in FLOATS:
            problems.append(f"dtype: {name} is {dtype}, expected one of {', '.join(FLOATS)}")
        elif value.is_meta or hasattr(value, "full_tensor"):
            place = "on the meta device" if value.is_meta else "a shard"
            problems.append(f"values: {name} is {place}; gather whole tensors, and give them as state_dict")
    if problems:
        raise ModelError(f"these tensors are not those of a GLIP of this configuration. {_CURE}.", sorted(problems))


def _record(origin: Origin | None, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What is known of the tables that made weights with these hashes, as a ledger says it."""
    if origin is None:
        return {"unknown_table": True, SAVED: [saved_entry(None, None, len(hashes), len(hashes))]}
    differing = sum(origin.tensors.get(name) != sha256 for name, sha256 in hashes.items())
    if not differing:
        return {**origin.tables, "unknown_table": is_by_unknown_table(origin.tables)}
    before = origin.tables.get(SAVED, [])
    entry = saved_entry(origin.name, origin.sha256, differing, len(hashes))
    return {**origin.tables, "unknown_table": True, SAVED: [*(before if isinstance(before, list) else []), entry]}


def _checkpoint(state: Mapping[str, Tensor], record: Mapping[str, Any]) -> Checkpoint:
    tensors = {}
    for name, value in state.items():
        shape, dtype = tuple(value.shape), DTYPES[str(value.dtype).removeprefix("torch.")]
        strides = torch.empty(shape, device="meta").stride()
        tensors[name] = TensorInfo(name, dtype, shape, strides, cast(Storage, None))  # all values are computed
    values: dict[str, Callable[[], Array]] = {name: partial(_values, value) for name, value in state.items()}
    return Checkpoint(
        path=Path(os.devnull) / "a model in memory",  # beside which no record can lie
        layout="in-memory",
        tensors=tensors,
        sources=(),
        metadata={TABLES: to_json(record, indent=None).decode()},
        computed=values,
    )


def _values(value: Tensor) -> Array:
    """On the CPU, in C order, as `Checkpoint.read` gives them: the bits of bfloat16 as integers."""
    here = value.detach().cpu().contiguous()
    array: Array = (here.view(torch.int16) if here.dtype == torch.bfloat16 else here).numpy()
    return array.view(DTYPES[str(here.dtype).removeprefix("torch.")].carrier)


def _plan(checkpoint: Checkpoint, config: GLIPConfig) -> Plan:
    """Every tensor as it is, under its own name."""
    table = hub_table(load_spec("glip"))
    tensors = [Described(tensor.name, tensor.shape, tensor.dtype) for tensor in checkpoint.tensors.values()]
    steps = tuple(Step("save_pretrained", (tensor,), (tensor,), ()) for tensor in tensors)
    sizes = asdict(config)
    return Plan(table.name, table.sha256, table.spec.name, table.spec.variant_of(sizes), sizes, steps, (), ())
