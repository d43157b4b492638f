"""Carrying out a plan: one pass that reads, checks, hashes and writes, and the ledger of what was written.

Steps run in a few threads, since reading, CRC, SHA-256 and writing all release the interpreter lock: while one tensor
is hashed another is read and a third is written. A step that only renames, casts or joins along the first axis flows
through in chunks; only one that moves elements about holds its tensors in memory, and only one such at a time.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter import __version__
from converter.checkpoint import DTYPES, Checkpoint
from converter.errors import PlanError, TableError
from converter.mapping.cast import cast
from converter.mapping.ops import Array, Concat, apply_ops
from converter.plan import Plan, Step, Tensor
from converter.staging import Staging, check_destination, writing
from converter.writer import INDEX_NAME, Shard, lay_out, nbytes, shard_index, to_json

_THREADS = 3  # two cores: one thread waits for the disk while two compute
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written. `ledger` is the content of `conversion.json`."""

    destination: Path
    files: tuple[str, ...]
    size: int
    ledger: dict[str, Any]


def convert(
    checkpoint: Checkpoint,
    plan: Plan,
    destination: Path,
    *,
    max_shard_size: int | None = None,
    force: bool = False,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Conversion:
    """Write what `plan` says to `destination`: one file if it ends in `.safetensors`, else a folder.

    `on_bytes` is called from several threads with the number of bytes written since the last call.
    Raises DestinationError, CheckpointError, or PlanError for a value that a cast cannot hold. Whatever is raised, the
    destination is as it was.
    """
    check_destination(destination, force=force, inputs=checkpoint.files)
    single = destination.suffix == ".safetensors"
    shards = lay_out(plan.targets, destination.name if single else "model.safetensors", max_shard_size)
    # hashes are not known yet, but their length is, and so is the length of every header
    draft = _ledger(checkpoint, plan, {t.name: _NO_HASH for t in plan.targets}, _NO_HASH)
    headers = [shard.header(_metadata(plan, draft, single)) for shard in shards]
    with Staging(destination, force=force) as staging:
        staging.require_space(sum(shard.size + len(header) for shard, header in zip(shards, headers, strict=True)))
        places: dict[str, tuple[int, int]] = {}
        descriptors = []
        for shard, header in zip(shards, headers, strict=True):
            descriptor = staging.create(shard.name, len(header) + shard.size)
            descriptors.append(descriptor)
            places |= {name: (descriptor, len(header) + offset) for name, offset in shard.offsets.items()}
        with _flushing(descriptors):
            hashes = _Transfer(checkpoint, places, destination, on_bytes).run(plan.steps)
        checkpoint.verify_unchanged()
        ledger = _ledger(checkpoint, plan, {t.name: hashes[t.name] for t in plan.targets}, _digest(plan, hashes))
        with writing(destination):
            for shard, descriptor in zip(shards, descriptors, strict=True):
                _write(descriptor, shard.header(_metadata(plan, ledger, single)), 0)
        if not single:
            _add_documents(staging, plan, shards, ledger)
        staging.commit()
    return Conversion(destination, tuple(s.name for s in shards), sum(s.size for s in shards), ledger)


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
    if tensor.shape != implied.shape:
        return False
    if tensor.dtype.name == "bfloat16":
        implied = cast(implied.astype(np.float32), DTYPES["float32"], tensor.dtype, tensor.name)
    return np.array_equal(checkpoint.read(tensor.name), implied.astype(tensor.dtype.carrier))


def config_document(plan: Plan) -> dict[str, Any]:
    """What `config.json` holds, and the `config` entry of a single file's metadata."""
    return {"model": plan.target, "variant": plan.variant.name, "config": dict(plan.config)}


def _metadata(plan: Plan, ledger: dict[str, Any], single: bool) -> dict[str, str]:
    metadata = {"format": "pt"}
    if single:
        metadata["config"] = to_json(config_document(plan), indent=None).decode()
        metadata["conversion"] = to_json(ledger, indent=None).decode()
    return metadata


def _add_documents(staging: Staging, plan: Plan, shards: list[Shard], ledger: dict[str, Any]) -> None:
    documents = {"config.json": to_json(config_document(plan)), "conversion.json": to_json(ledger)}
    if len(shards) > 1:
        documents[INDEX_NAME] = shard_index(shards)
    for name, content in documents.items():
        with writing(staging.destination):
            _write(staging.create(name, len(content)), content, 0)


def _digest(plan: Plan, hashes: dict[str, str]) -> str:
    """Of what was read."""
    sources = {source.name: source for step in plan.steps for source in step.sources}
    return digest_of_tensors((n, s.dtype.name, s.shape, hashes[f"source {n}"]) for n, s in sources.items())


def digest_of_tensors(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """One hash of many tensors: sha256 over a line `name dtype shape sha256` for each, sorted."""
    lines = (f"{name} {dtype} {list(shape)} {sha256}" for name, dtype, shape, sha256 in tensors)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _ledger(checkpoint: Checkpoint, plan: Plan, hashes: dict[str, str], source_sha256: str) -> dict[str, Any]:
    return {
        "converter": __version__,
        "table": {"name": plan.table, "sha256": plan.table_sha256},
        "target": {"name": plan.target, "variant": plan.variant.name, "also": list(plan.variant.also)},
        "lossless": all(step.is_lossless for step in plan.steps),
        "source": {"layout": checkpoint.layout, "root": checkpoint.root, "sha256": source_sha256},
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


@contextmanager
def _flushing(descriptors: Iterable[int]) -> Iterator[None]:
    """Keep the disk busy meanwhile, so that little is left for the last fsync to wait for."""
    done = threading.Event()

    def flush() -> None:
        while not done.wait(0.05):
            with suppress(OSError):  # the last fsync reports it
                for descriptor in descriptors:
                    os.fdatasync(descriptor)

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Cancelled(Exception):
    """Another thread failed; its error is the one to show."""


class _Transfer:
    """Executes steps, in threads; `run` gives the sha256 of every target, and of every source as `source NAME`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        places: dict[str, tuple[int, int]],
        destination: Path,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._checkpoint = checkpoint
        self._places = places
        self._destination = destination
        self._on_bytes = on_bytes
        self._hashes: dict[str, str] = {}
        self._cancelled = threading.Event()
        self._materialising = threading.Lock()

    def run(self, steps: Iterable[Step]) -> dict[str, str]:
        # large ones first, so that no thread is left alone with one at the end
        ordered = sorted(steps, key=lambda step: -sum(map(nbytes, step.targets)))
        pool = ThreadPoolExecutor(_THREADS)
        try:
            done, _ = wait([pool.submit(self._run, step) for step in ordered], return_when=FIRST_EXCEPTION)
            for future in done:
                if not isinstance(future.exception(), _Cancelled):
                    future.result()
        finally:  # on Ctrl-C too: the others stop at their next chunk
            self._cancelled.set()
            pool.shutdown(cancel_futures=True)
        return self._hashes

    def _run(self, step: Step) -> None:
        if not step.ops or (len(step.ops) == 1 and isinstance(step.ops[0], Concat) and step.ops[0].axis == 0):
            self._stream(step)
        else:
            with self._materialising:
                self._materialise(step)

    def _stream(self, step: Step) -> None:
        """Source after source, chunk by chunk: their bytes in C order are the target's."""
        (target,) = step.targets
        descriptor, position = self._places[target.name]
        whole = hashlib.sha256()
        same_bytes = len(step.sources) == 1 and not step.casts
        for source in step.sources:
            part = hashlib.sha256()
            for chunk in self._chunks(source.name):
                part.update(chunk)
                if step.casts:
                    array = np.frombuffer(chunk, dtype=source.dtype.carrier)
                    chunk = _bytes(cast(array, source.dtype, target.dtype, source.name))
                if not same_bytes:
                    whole.update(chunk)
                self._put(descriptor, chunk, position)
                position += len(chunk)
            self._hashes[f"source {source.name}"] = part.hexdigest()
        self._hashes[target.name] = part.hexdigest() if same_bytes else whole.hexdigest()

    def _materialise(self, step: Step) -> None:
        arrays = []
        for source in step.sources:
            array = self._checkpoint.read(source.name)
            self._hashes[f"source {source.name}"] = hashlib.sha256(_bytes(array)).hexdigest()
            arrays.append(array)
        for target, array in zip(step.targets, apply_ops(step.ops, arrays), strict=True):
            data = _bytes(cast(array, step.sources[0].dtype, target.dtype, target.name))
            self._hashes[target.name] = hashlib.sha256(data).hexdigest()
            descriptor, position = self._places[target.name]
            self._put(descriptor, data, position)

    def _chunks(self, name: str) -> Iterator[memoryview]:
        for chunk in self._checkpoint.chunks(name):
            if self._cancelled.is_set():
                raise _Cancelled
            yield chunk

    def _put(self, descriptor: int, data: memoryview, position: int) -> None:
        with writing(self._destination):
            _write(descriptor, data, position)
        self._on_bytes(len(data))


def _bytes(array: Array) -> memoryview:
    """The array's bytes in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write(descriptor: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while len(view):
        written = os.pwrite(descriptor, view, position)
        view = view[written:]
        position += written
