"""The documents beside converted weights, and whether they belong to them: configuration, ledger, certificate."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.checkpoint.hashes import tensor_hashes
from converter.display import counted, file_name, plain, quoted
from converter.errors import CaptureError, ModelError, TableError
from converter.mapping.documents import names_of
from converter.mapping.spec import load_spec
from converter.parity.evidence import Evidence
from converter.writing.ledger import digest_of_checkpoint

_LIMIT = 64 << 20  # bytes of a document


def read_records(conversion: Path, checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the ledger of a conversion. ModelError if either is missing or invalid."""
    texts: dict[str, bytes | str | None]
    if conversion.is_dir():
        texts = {
            key: content_of(conversion / name) if (conversion / name).is_file() else None
            for key, name in (("config", "config.json"), ("conversion", "conversion.json"))
        }
    else:
        texts = {key: checkpoint.metadata.get(key) for key in ("config", "conversion")}
    found: list[dict[str, Any]] = []
    for key, text in texts.items():
        if text is None:
            raise ModelError(
                f"{file_name(conversion)}: has no record {key!r} of a conversion. Package what `convert` wrote."
            )
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        sound = isinstance(content, dict) and (_is_config(content) if key == "config" else _is_ledger(content))
        if not sound:
            raise ModelError(f"{file_name(conversion)}: its record {key!r} is invalid. Convert again.")
        found.append(content)
    config, ledger = found
    if ledger["target"].get("part") or ledger.get("missing"):
        raise ModelError(f"{file_name(conversion)}: holds only a part of a model. Package a whole one.")
    return config, ledger


def check_architecture(conversion: Path, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """ModelError unless the tensors are those, by name and shape, of the model that the configuration describes."""
    spec = load_spec(config["model"])
    known = spec.variants[0].config
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in config["config"].items()}
    problem = next((f"field {quoted(name)} is missing or unknown" for name in sorted(known.keys() ^ values.keys())), "")
    if not problem:
        problem = next(
            (f"{name} is {plain(repr(v))}" for name, v in values.items() if not _is_like(v, known[name])), ""
        )
    if not problem:
        try:
            expected = spec.tensors(values)
        except TableError as error:
            problem = plain(str(error), 400)
        else:
            found = {tensor.name: tensor.shape for tensor in checkpoint.tensors.values()}
            problem = next(
                (
                    f"tensor {quoted(name)} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"
                    for name in sorted(found.keys() | expected.keys())
                    if found.get(name) != expected.get(name)
                ),
                "",
            )
    if problem:
        raise ModelError(
            f"{file_name(conversion)}: its configuration is not that of its weights: {problem}. Convert again."
        )


def _is_like(value: object, known: object) -> bool:
    """Whether `value` has the type, and for a list the length, that the field needs."""
    if isinstance(known, tuple):
        return isinstance(value, tuple) and len(value) == len(known) and all(type(item) is int for item in value)
    return type(value) is type(known)


def check_weights(
    conversion: Path,
    checkpoint: Checkpoint,
    ledger: Mapping[str, Any],
    evidence: Evidence | None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> None:
    """Hash every tensor. CaptureError unless all are what the ledger, and the certificate if there is one, say."""
    hashes = tensor_hashes(checkpoint, on_bytes)
    digest = digest_of_checkpoint(checkpoint, hashes)
    records = [(conversion, "conversion.json", ledger["tensors"], ledger["sha256"])]
    if evidence is not None:
        records.append((evidence.path, "the certificate", evidence.tensors, evidence.sha256))
    for path, record, tensors, sha256 in records:
        differing = sorted(name for name in hashes.keys() | tensors.keys() if hashes.get(name) != tensors.get(name))
        if differing:
            raise CaptureError(
                f"{file_name(path)}: the weights differ from what {record} says in "
                f"{counted(len(differing), 'tensor')}, {plain(differing[0])} first. Convert or certify again."
            )
        if digest != sha256:
            raise CaptureError(
                f"{file_name(path)}: the hash of all tensors is {digest}, {record} says {plain(sha256)}. "
                "Convert or certify again."
            )


def content_of(path: Path) -> bytes:
    """A document. ModelError if it cannot be read, or is too large for one."""
    try:
        if path.stat().st_size > _LIMIT:
            raise ModelError(f"{file_name(path)}: is larger than {_LIMIT >> 20} MiB. Was another file meant?")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{file_name(path)}: cannot be read: {error.strerror}.") from None


def _is_config(content: dict[str, Any]) -> bool:
    known = content.get("model") in names_of("spec")
    return known and isinstance(content.get("config"), dict) and "variant" in content


def _is_ledger(content: dict[str, Any]) -> bool:
    parts = {"source": dict, "table": dict, "target": dict, "tensors": dict, "left_out": list, "converter": str,
             "sha256": str, "lossless": bool}  # fmt: skip
    return all(isinstance(content.get(key), kind) for key, kind in parts.items())
