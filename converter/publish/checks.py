"""Whether the documents beside converted weights belong to them: configuration, ledger, certificate, evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.checkpoint.hashes import tensor_hashes
from converter.checkpoint.strict_json import read_limited
from converter.display import counted, file_name, plain, quoted
from converter.errors import CaptureError, ModelError, TableError
from converter.evaluation.record import Evaluation, evaluation_path
from converter.evaluation.record import check_weights as check_evaluated
from converter.mapping.spec import as_config, load_spec
from converter.parity.evidence import Evidence, check_same_table, evaluation_differences
from converter.parity.setup import Setup
from converter.writing.ledger import digest_of_checkpoint
from converter.writing.records import known_model, read_record


def read_records(conversion: Path, checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the ledger of a whole model. ModelError if either is missing or invalid."""
    config, ledger = (read_record(conversion, checkpoint, key) for key in ("config", "conversion"))
    known_model(conversion, config)
    if "variant" not in config:
        raise ModelError(f"{file_name(conversion)}: its record 'config' is invalid: no 'variant'. Convert again.")
    if ledger["target"].get("part") or ledger.get("missing"):
        raise ModelError(f"{file_name(conversion)}: holds only a part of a model. Package a whole one.")
    return config, ledger


def check_architecture(conversion: Path, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """ModelError unless the tensors are those, by name and shape, of the model that the configuration describes."""
    if problem := next(_mismatches(checkpoint, config), None):
        raise ModelError(
            f"{file_name(conversion)}: its configuration is not that of its weights: {problem}. Convert again."
        )


def _mismatches(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Iterator[str]:
    spec = load_spec(config["model"])
    known = spec.variants[0].config
    values = as_config(config["config"])
    yield from (f"field {quoted(name)} is missing or unknown" for name in sorted(known.keys() ^ values.keys()))
    yield from (f"{name} is {plain(repr(value))}" for name, value in values.items() if not _is_like(value, known[name]))
    try:
        expected = spec.tensors(values)
    except TableError as error:
        yield plain(str(error), 400)
        return
    found = {tensor.name: tensor.shape for tensor in checkpoint.tensors.values()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            yield f"tensor {quoted(name)} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"


def _is_like(value: object, known: object) -> bool:
    """Whether `value` has the type, and for a list the length, that the field needs."""
    if isinstance(known, tuple):
        return isinstance(value, tuple) and len(value) == len(known) and all(type(item) is int for item in value)
    return type(value) is type(known)


def check_setup(conversion: Path, here: Setup, certified: Setup) -> None:
    """CaptureError, naming each, for settings and files that are not what was certified."""
    if differing := here.differences(certified):
        raise CaptureError(
            f"{file_name(conversion)}: is not what was certified: {differing[0]}. Restore it, or certify again.",
            differing[1:],
        )


def check_evaluations(
    conversion: Path, evaluations: Sequence[Evaluation], ledger: Mapping[str, Any], evidence: Evidence | None
) -> None:
    """CaptureError unless all are of the weights of that ledger, and those that were certified are as they were."""
    check_evaluated(evaluations, ledger["sha256"], evaluation_path(conversion))
    entries = [evaluation.entry for evaluation in evaluations]
    if evidence is not None and (differing := list(evaluation_differences(entries, evidence))):
        raise CaptureError(
            f"{file_name(conversion)}: is not what was certified: {differing[0]}. Restore it, or certify again.",
            differing[1:],
        )


def check_weights(
    conversion: Path,
    checkpoint: Checkpoint,
    ledger: Mapping[str, Any],
    evidence: Evidence | None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> None:
    """Hash every tensor. CaptureError unless all are what the ledger, and the certificate if there is one, say, and
    both name the same table."""
    if evidence is not None:
        check_same_table(conversion, ledger, evidence)
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
        return read_limited(path)
    except OSError as error:
        raise ModelError(f"{file_name(path)}: cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ModelError(f"{file_name(path)}: is {error}. Was another file meant?") from None
