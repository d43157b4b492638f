"""The documents of a conversion: `conversion.json`, the ledger of every tensor, and `config.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from converter import __version__
from converter.checkpoint import Checkpoint
from converter.planning.plan import Plan

NO_HASH = "0" * 64  # placeholder of the same length for a hash that is not known yet


def to_json(content: Any, indent: int | None = 2) -> bytes:
    """The one way this project writes JSON: sorted keys, ASCII, no NaN, compact unless indented."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(content, sort_keys=True, indent=indent, separators=separators, allow_nan=False).encode()


def config_document(plan: Plan) -> dict[str, Any]:
    """What `config.json` holds, and the `config` entry of a single file's metadata."""
    part = {"part": plan.part} if plan.part else {}
    return {"model": plan.target, **part, "variant": plan.variant.name, "config": dict(plan.config)}


def make_ledger(
    checkpoint: Checkpoint,
    plan: Plan,
    hashes: dict[str, str],
    source_sha256: str,
    origin: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The content of `conversion.json`. `hashes`: SHA-256 of every target, or NO_HASH for each; `origin`: where the
    checkpoint came from."""
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
        "sha256": NO_HASH
        if NO_HASH in hashes.values()
        else digest_of_tensors((t.name, t.dtype.name, t.shape, hashes[t.name]) for t in plan.targets),
    }


def digest_of_tensors(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """One hash of many tensors: sha256 over a line `name dtype shape sha256` for each, sorted."""
    lines = (f"{name} {dtype} {list(shape)} {sha256}" for name, dtype, shape, sha256 in tensors)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def digest_of_checkpoint(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> str:
    """`digest_of_tensors` of a whole file or folder. `hashes`: SHA-256 of each of its tensors."""
    return digest_of_tensors((t.name, t.dtype.name, t.shape, hashes[t.name]) for t in checkpoint.tensors.values())


def digest_of_sources(plan: Plan, hashes: Mapping[str, str]) -> str:
    """`digest_of_tensors` of what a plan reads. `hashes`: SHA-256 of each source, as `source NAME`."""
    sources = {source.name: source for step in plan.steps for source in step.sources}
    return digest_of_tensors((n, s.dtype.name, s.shape, hashes[f"source {n}"]) for n, s in sources.items())
