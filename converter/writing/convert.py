"""Carrying out a plan: one pass that reads, checks, hashes and writes."""

from __future__ import annotations

import hashlib
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.display import file_name, quoted
from converter.errors import ConverterWarning, DestinationError, ModelError, PlanError, damaged
from converter.planning.plan import Plan
from converter.writing.buffers import implied_value
from converter.writing.changes import changes_from, find_record_of_tensors
from converter.writing.destination import CONFIG, LEDGER, RESIDUE, writing
from converter.writing.ledger import (
    FOLDER,
    TABLES,
    config_document,
    digest_of_tensors,
    draft_ledger,
    fill_ledger,
    ledger_of,
    tables_of,
    to_json,
)
from converter.writing.names import ARCHIVES, is_file_name
from converter.writing.residue import check_residue, prepare, residue_metadata, residue_path, steps_to_keep
from converter.writing.shards import INDEX_NAME, Shard, lay_out, nbytes, shard_index
from converter.writing.staging import Staging, write_at
from converter.writing.torch_archive import lay_out_archive
from converter.writing.transfer import Transfer, raw_bytes


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written. `ledger` is the content of `conversion.json`."""

    destination: Path
    files: tuple[str, ...]
    size: int
    ledger: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Output:
    """A file to write: where its tensors go, and the bytes around them, known only once the tensors are hashed.

    `frame(ledger, crcs)` makes these bytes; how many they are depends on neither argument.
    """

    name: str
    size: int
    offsets: Mapping[str, int]
    frame: Callable[[dict[str, Any], Mapping[str, int]], Iterable[tuple[int, bytes]]]


@dataclass(frozen=True, slots=True)
class Extras:
    """What a folder holds besides its weights and records: files by name, and entries of config.json."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


_Places = dict[str, tuple[int, int]]  # tensor -> descriptor of its file, position in it


def convert(
    checkpoint: Checkpoint,
    plan: Plan,
    destination: Path,
    *,
    max_shard_size: int | None = None,
    force: bool = False,
    residue: Checkpoint | None = None,
    trusts_ledger: bool = False,
    keep_residue: bool = False,
    origin: Mapping[str, Any] | None = None,
    extras: Extras | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
    on_done: Callable[[], object] = lambda: None,
) -> Conversion:
    """Write what `plan` says to `destination`: one file if it ends in `.safetensors` or `.pth`, else a folder.

    `residue` is where the plan's carried steps read, `trusts_ledger`: because the checkpoint's ledger says so, whose
    hashes are then held against what is read; `keep_residue` writes what is left out beside the result; `origin` says
    where the checkpoint came from, for the ledger; `extras`: what else a folder holds. `on_bytes` is called in several
    threads with the bytes written since the last call, `on_done` once all is there, before anything else can fail.
    Raises DestinationError, CheckpointError, or PlanError for a value that a cast cannot hold. Whatever is raised
    before `on_done` is called, the destination is as it was. What cannot be done afterwards is a ConverterWarning.
    """
    _check_names(plan)
    sources = [checkpoint, *([residue] if residue else [])]
    prepare(destination, force=force, inputs=[path for s in sources for path in s.files], keep=keep_residue)
    # hashes are not known yet, but their length is, and so is the length of every header
    draft = draft_ledger(checkpoint, plan, origin, keeps_residue=keep_residue)
    outputs, shards = _outputs(plan, destination, draft, max_shard_size)
    kept = [_residue_output(plan, destination, draft)] if keep_residue else []
    with _staging(destination, force, keep_residue) as staging:
        staging.require_space(sum(output.size for output in (*outputs, *kept)))
        opened = [(output, staging.create(output.name, output.size)) for output in (*outputs, *kept)]
        places = _places(opened[: len(outputs)])
        hashes, crcs = _move(sources, plan, places, destination, on_bytes)
        beside = Transfer(checkpoint, _places(opened[len(outputs) :]), destination, on_bytes)
        left = beside.run(steps_to_keep(plan)) if kept else None
        _verify(sources, hashes, trusts_ledger)
        ledger = _filled(draft, plan, hashes, left)
        with writing(destination):
            for output, descriptor in opened:
                for position, piece in output.frame(ledger, crcs):
                    write_at(descriptor, piece, position)
        if not is_file_name(destination):
            ledger = _add_documents(staging, plan, shards, ledger, extras or Extras())
        staging.commit(on_done)
    return Conversion(destination, tuple(output.name for output, _ in opened), sum(map(nbytes, plan.targets)), ledger)


def _staging(destination: Path, force: bool, keep_residue: bool) -> Staging:
    if not keep_residue:
        return Staging(destination, force=force)
    return Staging(destination, force=force, replaces={RESIDUE}, check=partial(check_residue, destination))


def _filled(
    draft: Mapping[str, Any], plan: Plan, hashes: Mapping[str, str], left: Mapping[str, str] | None
) -> dict[str, Any]:
    """The ledger. `left`: SHA-256 of each tensor of the residue."""
    kept = [target for step in steps_to_keep(plan) for target in step.targets]
    residue = None if left is None else digest_of_tensors((t.name, t.dtype.name, t.shape, left[t.name]) for t in kept)
    made = {t.name: hashes[t.name] for t in plan.targets}
    sources = {s.name: hashes[f"source {s.name}"] for step in plan.steps for s in step.sources}
    return fill_ledger(draft, plan, made, sources, residue)


def _verify(sources: Sequence[Checkpoint], hashes: Mapping[str, str], trusts_ledger: bool) -> None:
    """Raise CorruptCheckpointError if a source changed meanwhile, or one whose residue is used is not what its ledger
    states; a ConverterWarning if any other is not.

    `hashes`: SHA-256 of each source, as `source NAME`.
    """
    for source in sources:
        source.verify_unchanged()
    checkpoint, *residues = sources
    ledger = (ledger_of(checkpoint) or {}) if residues and trusts_ledger else {}
    for name, stated in ledger.get("tensors", {}).items():
        if hashes.get(f"source {name}", stated) != stated:
            raise damaged(
                file_name(checkpoint.path),
                f"tensor {quoted(name)} is not the one that its conversion recorded, so that the residue beside it may "
                "be of other weights; --residue insists",
            )
    _warn_of_changes(checkpoint, hashes)


def _warn_of_changes(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> None:
    """A ConverterWarning if what was read had been converted before, and is not what that conversion recorded.

    `hashes`: SHA-256 of each source, as `source NAME`.
    """
    try:
        record = find_record_of_tensors(checkpoint)
    except ModelError as error:
        warnings.warn(str(error), ConverterWarning, stacklevel=3)
        return
    read = {name: hashes[f"source {name}"] for name in checkpoint.tensors if f"source {name}" in hashes}
    if record and (found := changes_from(record, checkpoint, read)):
        warnings.warn(found.warning, ConverterWarning, stacklevel=3)


def _check_names(plan: Plan) -> None:
    names = Counter(tensor.name for tensor in plan.targets)
    if twice := [f"{quoted(name)} is written {count} times" for name, count in names.items() if count > 1]:
        raise PlanError(f"{plan.format}: {len(twice)} names are not unique; the table or the residue is wrong", twice)


def _places(opened: Iterable[tuple[_Output, int]]) -> _Places:
    return {name: (descriptor, offset) for output, descriptor in opened for name, offset in output.offsets.items()}


def _move(
    sources: list[Checkpoint], plan: Plan, places: _Places, destination: Path, on_bytes: Callable[[int], None]
) -> tuple[dict[str, str], dict[str, int]]:
    """Write every tensor: SHA-256 of each target and, as `source NAME`, of each source; CRC-32 of each target.

    The second of the `sources`, if there is one, is the residue.
    """
    transfer = Transfer(sources[0], places, destination, on_bytes)
    hashes = transfer.run(plan.steps)
    crcs = transfer.crcs
    for residue in sources[1:]:
        again = Transfer(residue, places, destination, on_bytes)
        carried = again.run(plan.carried)
        hashes |= {t.name: carried[t.name] for step in plan.carried for t in step.targets}
        crcs |= again.crcs
    for rebuilt in plan.rebuilt:
        if rebuilt.make is None:
            transfer.copy(rebuilt.copy_of, nbytes(rebuilt.tensor), rebuilt.tensor.name)
            hashes[rebuilt.tensor.name], crcs[rebuilt.tensor.name] = hashes[rebuilt.copy_of], crcs[rebuilt.copy_of]
            continue
        data = raw_bytes(implied_value(rebuilt.make(), rebuilt.tensor))
        hashes[rebuilt.tensor.name] = hashlib.sha256(data).hexdigest()
        crcs[rebuilt.tensor.name] = zlib.crc32(data)
        transfer.put(rebuilt.tensor.name, data)
    return hashes, crcs


def _outputs(
    plan: Plan, destination: Path, draft: dict[str, Any], max_shard_size: int | None
) -> tuple[list[_Output], list[Shard]]:
    """The files that hold the plan's targets, and their shards where they are safetensors."""
    single = is_file_name(destination)
    if destination.suffix in ARCHIVES:
        if plan.written is None:
            raise DestinationError(
                f"{destination.name}: {plan.target} is read from safetensors alone. End --dst in '.safetensors', or "
                "choose another format with --to"
            )
        archive = lay_out_archive(list(plan.targets), plan.written.root, len(to_json(draft)))
        whole = _Output(
            destination.name, archive.size, archive.offsets, lambda ledger, crcs: archive.frame(crcs, to_json(ledger))
        )
        return [whole], []
    shards = lay_out(plan.targets, destination.name if single else "model.safetensors", max_shard_size)
    return [_safetensors(shard, lambda ledger: _metadata(plan, ledger, single), draft) for shard in shards], shards


def _residue_output(plan: Plan, destination: Path, draft: dict[str, Any]) -> _Output:
    tensors = [target for step in steps_to_keep(plan) for target in step.targets]
    (shard,) = lay_out(tensors, residue_path(destination).name)
    return _safetensors(shard, lambda ledger: residue_metadata(plan, ledger), draft)


def _safetensors(shard: Shard, metadata: Callable[[dict[str, Any]], dict[str, str]], draft: dict[str, Any]) -> _Output:
    start = len(shard.header(metadata(draft)))
    return _Output(
        shard.name,
        start + shard.size,
        {name: start + offset for name, offset in shard.offsets.items()},
        lambda ledger, crcs: [(0, shard.header(metadata(ledger)))],
    )


def _metadata(plan: Plan, ledger: dict[str, Any], single: bool) -> dict[str, str]:
    if not single:  # by itself each file still says which tables made it
        return {"format": "pt", TABLES: to_json(tables_of(ledger), indent=None).decode()}
    config = {} if plan.written else {"config": to_json(config_document(plan), indent=None).decode()}
    return {"format": "pt", **config, "conversion": to_json(ledger, indent=None).decode()}


def _add_documents(
    staging: Staging, plan: Plan, shards: list[Shard], ledger: dict[str, Any], extras: Extras
) -> dict[str, Any]:
    """What a folder holds besides its weights; the ledger as it is there."""
    documents: dict[str, bytes] = {**extras.files}
    config = (
        {**(plan.config_of_library or {}), **config_document(plan)} if plan.written is None else plan.written.config
    )
    if config is not None:
        documents[CONFIG] = to_json({**extras.config, **config})
    if len(shards) > 1:
        documents[INDEX_NAME] = shard_index(shards)
    ledger = {**ledger, FOLDER: sorted((LEDGER, *documents, *staging.names))}
    documents[LEDGER] = to_json(ledger)
    for name, content in documents.items():
        with writing(staging.destination):
            write_at(staging.create(name, len(content)), content, 0)
    return ledger
