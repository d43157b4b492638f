"""Carrying out a plan: one pass that reads, checks, hashes and writes, and the ledger of what was written."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter import __version__
from converter.checkpoint import DTYPES, Checkpoint
from converter.display import quoted
from converter.errors import DestinationError, PlanError, TableError
from converter.mapping.cast import can_hold, cast
from converter.mapping.ops import Array
from converter.planning.plan import Plan, Tensor
from converter.residue import check_residue_destination, residue_metadata, residue_path, steps_to_keep
from converter.staging import ARCHIVES, Staging, check_destination, is_file_name, writing
from converter.torch_archive import lay_out_archive
from converter.transfer import Transfer, flushing, raw_bytes, write_at
from converter.writer import INDEX_NAME, Shard, lay_out, nbytes, shard_index, to_json

_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written. `ledger` is the content of `conversion.json`."""

    destination: Path
    files: tuple[str, ...]
    size: int
    ledger: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Output:
    """A file to write: its tensors, and what stands around them, which is known once they are hashed.

    `frame` makes the latter of the ledger and the CRC-32 of each tensor; its size does not depend on either.
    """

    name: str
    size: int
    offsets: Mapping[str, int]
    frame: Callable[[dict[str, Any], Mapping[str, int]], Iterable[tuple[int, bytes]]]


def convert(
    checkpoint: Checkpoint,
    plan: Plan,
    destination: Path,
    *,
    max_shard_size: int | None = None,
    force: bool = False,
    residue: Checkpoint | None = None,
    keep_residue: bool = False,
    origin: Mapping[str, Any] | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Conversion:
    """Write what `plan` says to `destination`: one file if it ends in `.safetensors` or `.pth`, else a folder.

    `residue` is where the plan's carried steps read; `keep_residue` writes what is left out beside the result; `origin`
    says where the checkpoint was had from, for the ledger. `on_bytes` is called from several threads with the number of
    bytes written since the last call.
    Raises DestinationError, CheckpointError, or PlanError for a value that a cast cannot hold. Whatever is raised, the
    destination is as it was.
    """
    names = Counter(tensor.name for tensor in plan.targets)
    if twice := [f"{quoted(name)} is written {count} times" for name, count in names.items() if count > 1]:
        raise PlanError(f"{plan.format}: {len(twice)} names are not unique; the table or the residue is wrong", twice)
    inputs = [*checkpoint.files, *(residue.files if residue else [])]
    check_destination(destination, force=force, inputs=inputs)
    kept = steps_to_keep(plan) if keep_residue else []
    beside = residue_path(destination)
    if keep_residue and is_file_name(destination):
        check_residue_destination(destination, force=force, inputs=inputs)
    # hashes are not known yet, but their length is, and so is the length of every header
    draft = _ledger(checkpoint, plan, {t.name: _NO_HASH for t in plan.targets}, _NO_HASH, origin)
    outputs, shards = _outputs(plan, destination, draft, max_shard_size)
    if keep_residue:
        (shard,) = lay_out([target for step in kept for target in step.targets], beside.name)
        outputs.append(_safetensors(shard, lambda ledger: residue_metadata(plan, ledger["sha256"]), draft))
    with Staging(destination, force=force) as staging:
        staging.require_space(sum(output.size for output in outputs))
        descriptors = [staging.create(output.name, output.size) for output in outputs]
        places = [
            {name: (descriptor, offset) for name, offset in output.offsets.items()}
            for descriptor, output in zip(descriptors, outputs, strict=True)
        ]
        written = {
            name: place
            for places_of_one in places[: len(places) - keep_residue]
            for name, place in places_of_one.items()
        }
        with flushing(descriptors):
            transfer = Transfer(checkpoint, written, destination, on_bytes)
            hashes = transfer.run(plan.steps)
            crcs = transfer.crcs
            if residue is not None:
                again = Transfer(residue, written, destination, on_bytes)
                carried = again.run(plan.carried)
                hashes |= {t.name: carried[t.name] for step in plan.carried for t in step.targets}
                crcs |= again.crcs
            for rebuilt in plan.rebuilt:
                data = raw_bytes(_implied(rebuilt.make(), rebuilt.tensor))
                hashes[rebuilt.tensor.name] = hashlib.sha256(data).hexdigest()
                crcs[rebuilt.tensor.name] = zlib.crc32(data)
                transfer.put(rebuilt.tensor.name, data)
            if keep_residue:
                Transfer(checkpoint, places[-1], destination, on_bytes).run(kept)
        checkpoint.verify_unchanged()
        if residue is not None:
            residue.verify_unchanged()
        made = {t.name: hashes[t.name] for t in plan.targets}
        ledger = _ledger(checkpoint, plan, made, _digest(plan, hashes), origin)
        with writing(destination):
            for output, descriptor in zip(outputs, descriptors, strict=True):
                for position, piece in output.frame(ledger, crcs):
                    write_at(descriptor, piece, position)
        if not is_file_name(destination):
            _add_documents(staging, plan, shards, ledger)
        staging.commit()
    size = sum(nbytes(tensor) for tensor in plan.targets)
    return Conversion(destination, tuple(output.name for output in outputs), size, ledger)


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


def _safetensors(shard: Shard, metadata: Callable[[dict[str, Any]], dict[str, str]], draft: dict[str, Any]) -> _Output:
    start = len(shard.header(metadata(draft)))
    return _Output(
        shard.name,
        start + shard.size,
        {name: start + offset for name, offset in shard.offsets.items()},
        lambda ledger, crcs: [(0, shard.header(metadata(ledger)))],
    )


def verify_left_out(checkpoint: Checkpoint, plan: Plan) -> None:
    """Check that buffers which are left out hold what the config implies, so that leaving them out loses nothing.

    Raises PlanError naming all that do not.
    """
    problems = []
    for out in plan.left_out:
        if out.rebuild is None:
            continue
        if not _holds(checkpoint, out.tensor, out.rebuild):
            problems.append(
                f"{out.tensor.name!r} {out.tensor.shape} does not hold what {plan.variant.name} computes; the "
                "checkpoint belongs to a model with other settings"
            )
    if problems:
        raise PlanError(f"{plan.table}: {len(problems)} buffers contradict {plan.variant.name}", problems)


def _holds(checkpoint: Checkpoint, tensor: Tensor, rebuild: Callable[[], Array]) -> bool:
    try:
        implied = rebuild()
    except TableError:  # a level or size that the config does not have
        return False
    if tensor.shape != implied.shape or not can_hold(implied, tensor.dtype):
        return False
    return np.array_equal(checkpoint.read(tensor.name), _implied(implied, tensor))


def _implied(value: Array, tensor: Tensor) -> Array:
    """A rebuilt value in the dtype of the tensor, which a cast of the whole model may have changed."""
    if tensor.dtype.name == "bfloat16":
        value = cast(value.astype(np.float32), DTYPES["float32"], tensor.dtype, tensor.name)
    return value.astype(tensor.dtype.carrier)


def config_document(plan: Plan) -> dict[str, Any]:
    """What `config.json` holds, and the `config` entry of a single file's metadata."""
    part = {"part": plan.part} if plan.part else {}
    return {"model": plan.target, **part, "variant": plan.variant.name, "config": dict(plan.config)}


def _metadata(plan: Plan, ledger: dict[str, Any], single: bool) -> dict[str, str]:
    metadata = {"format": "pt"}
    if single:
        if plan.written is None:
            metadata["config"] = to_json(config_document(plan), indent=None).decode()
        metadata["conversion"] = to_json(ledger, indent=None).decode()
    return metadata


def _add_documents(staging: Staging, plan: Plan, shards: list[Shard], ledger: dict[str, Any]) -> None:
    documents = {"conversion.json": to_json(ledger)}
    config = config_document(plan) if plan.written is None else plan.written.config
    if config is not None:
        documents["config.json"] = to_json(config)
    if len(shards) > 1:
        documents[INDEX_NAME] = shard_index(shards)
    for name, content in documents.items():
        with writing(staging.destination):
            write_at(staging.create(name, len(content)), content, 0)


def _digest(plan: Plan, hashes: dict[str, str]) -> str:
    """Of what was read."""
    sources = {source.name: source for step in plan.steps for source in step.sources}
    return digest_of_tensors((n, s.dtype.name, s.shape, hashes[f"source {n}"]) for n, s in sources.items())


def digest_of_tensors(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """One hash of many tensors: sha256 over a line `name dtype shape sha256` for each, sorted."""
    lines = (f"{name} {dtype} {list(shape)} {sha256}" for name, dtype, shape, sha256 in tensors)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def digest_of_checkpoint(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> str:
    """`digest_of_tensors` of a whole file or folder, of whose tensors the hashes are known."""
    return digest_of_tensors((t.name, t.dtype.name, t.shape, hashes[t.name]) for t in checkpoint.tensors.values())


def _ledger(
    checkpoint: Checkpoint,
    plan: Plan,
    hashes: dict[str, str],
    source_sha256: str,
    origin: Mapping[str, Any] | None,
) -> dict[str, Any]:
    target = {"name": plan.target, "variant": plan.variant.name, "also": list(plan.variant.also)}
    through = {"through": {"name": plan.written.name, "sha256": plan.written.sha256}} if plan.written else {}
    return {
        "converter": __version__,
        "table": {"name": plan.table, "sha256": plan.table_sha256},
        **through,
        "target": {**target, "part": plan.part} if plan.part else target,
        "lossless": all(step.is_lossless for step in (*plan.steps, *plan.carried)),
        "missing": [{"names": entry.names, "reason": entry.reason} for entry in plan.missing],
        "rebuilt": [rebuilt.tensor.name for rebuilt in plan.rebuilt],
        "carried": [tensor.name for step in plan.carried for tensor in step.targets],
        "source": {
            "layout": checkpoint.layout,
            "root": checkpoint.root,
            "sha256": source_sha256,
            **({"origin": dict(origin)} if origin else {}),
        },
        "left_out": [
            {"name": out.tensor.name, "shape": list(out.tensor.shape), "reason": out.reason} for out in plan.left_out
        ],
        "left_aside": [*checkpoint.skipped, *checkpoint.unsupported.values(), *checkpoint.objects.values()],
        "tensors": hashes,
        # covers names, shapes, dtypes and content of everything written, without another pass over it
        "sha256": _NO_HASH
        if _NO_HASH in hashes.values()
        else digest_of_tensors((t.name, t.dtype.name, t.shape, hashes[t.name]) for t in plan.targets),
    }
