"""The certificate beside converted weights: what was compared with what, and a fingerprint to check copies by.

`parity.json` in a folder, `NAME.parity.json` beside a single file. It holds hashes of all tensors, of the table and of
the captures; the configuration and all else that decides what a model makes of its inputs; per run the device, dtype,
gate and the numbers of every tap; the mutation score; and the fingerprint: a compact capture of the verified model
itself, on a small built-in input. With it a copy of the weights can be checked anywhere, without the reference. It is
evidence, not a signature: whoever can change the weights can change it, too.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from converter import __version__
from converter.checkpoint import Checkpoint, TensorInfo
from converter.checkpoint.dtypes import all_finite
from converter.checkpoint.hashes import Stamps, file_sha256, stamps, tensor_hashes
from converter.checkpoint.strict_json import TooMuch, parse_json
from converter.display import counted, file_name, listed, plain
from converter.errors import CaptureError, ConverterError
from converter.mapping.load import load_table
from converter.parity.capture import Capture, load_capture, write_capture
from converter.parity.evidence import (
    FORMAT,
    MARKS,
    Evidence,
    certificate_path,
    check_same_table,
    check_tables,
    evaluation_differences,
    evidence_of,
    made_by_unknown_table,
    read_evidence,
)
from converter.parity.exports import held
from converter.parity.family import Family
from converter.parity.mutate import Score
from converter.parity.record import record
from converter.parity.report import json_safe, to_json
from converter.parity.run import Report, parity
from converter.parity.setup import Setup, read_setup
from converter.parity.subject import Subject
from converter.planning.formats import open_known
from converter.writing.changes import changes_from
from converter.writing.ledger import CustomTable, digest_of_checkpoint, is_by_unknown_table, table_entry, tables_in
from converter.writing.ledger import to_json as json_bytes
from converter.writing.records import find_record
from converter.writing.staging import write_whole

FINGERPRINT_ERRORS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Weights:
    """A model as it lay on the disk before it was loaded.

    `root`: the state dict that was taken, of several; `before`: stamps of its files then; `sha256`, `tensors`: hashes
    of all tensors and of each; `setup`: what else decides results; `ledger`: of the conversion, None where there is
    none; `tables`: what it, or else the weights themselves, say of tables.
    """

    path: Path
    root: str
    before: Stamps
    sha256: str
    tensors: Mapping[str, str]
    setup: Setup
    ledger: Mapping[str, Any] | None
    tables: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Verification:
    """A copy of the weights beside its certificate.

    `changed`, `missing`, `added`: tensors whose bytes or presence differ; `setup`: a line for each setting or file that
    differs, and for a ledger or an evaluation of other weights; `evaluations`: those that the certificate names;
    `exports`: files of graphs that are here as certified; `custom`: tables that were never released, and were accepted;
    `by_unknown_table`: nothing says which table made them; `report`: the fingerprint, computed again (None where
    anything differs already).
    """

    certificate: Path
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    setup: tuple[str, ...]
    evaluations: tuple[Mapping[str, Any], ...]
    exports: tuple[str, ...]
    custom: tuple[CustomTable, ...]
    by_unknown_table: bool
    report: Report | None

    @property
    def passed(self) -> bool | None:
        """Same tensors, settings and files, and the same activations here; None if this dtype cannot be judged."""
        return False if self.report is None else self.report.passed

    @property
    def problems(self) -> list[str]:
        """Everything by which this copy is not what was certified."""
        names = {"changed": self.changed, "missing": self.missing, "added": self.added}
        different = [f"{word}: {plain(name)}" for word, those in names.items() for name in those]
        return [*self.setup, *different, *(self.report.problems if self.report else [])]


def read_weights(
    path: Path,
    checkpoint: Checkpoint,
    family: Family[Any],
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Weights:
    """What is to be certified, as `open_converted` opened it from `path`; to be called before the model is loaded.

    Raises CaptureError, naming the tensors, where any number is NaN or infinite: no capture notices those that it does
    not use. CheckpointError or ModelError if it cannot be read.
    """
    spoiled: dict[str, None] = {}

    def look(tensor: TensorInfo, chunk: memoryview) -> None:
        if tensor.name not in spoiled and not all_finite(chunk, tensor.dtype):
            spoiled[tensor.name] = None

    before = _stamps(path, checkpoint.files, family)
    setup, ledger = read_setup(path, checkpoint, family), find_record(path, checkpoint, "conversion")
    tables = ledger or tables_in(checkpoint)
    hashes = tensor_hashes(checkpoint, on_bytes, look)
    digest = digest_of_checkpoint(checkpoint, hashes)
    if setup.unread:
        raise CaptureError(f"{file_name(path)}: {setup.unread[0]}. Take it out.", setup.unread[1:])
    if ledger is not None and ledger["sha256"] != digest:
        found = changes_from(ledger, checkpoint, hashes)
        raise CaptureError(f"{found.warning}.", found.problems)
    if spoiled:
        named = listed(map(plain, spoiled), 10)
        raise CaptureError(
            f"{file_name(path)}: holds numbers that are NaN or infinite in {counted(len(spoiled), 'tensor')}: {named}. "
            "Convert a sound checkpoint."
        )
    return Weights(path, checkpoint.root, before, digest, hashes, setup, ledger, tables)


def _stamps(path: Path, files: Iterable[Path], family: Family[Any]) -> Stamps:
    """Of all files that decide what is loaded from a file or folder; `files` are those that hold its weights."""
    names = ("config.json", "conversion.json", *family.files)
    return stamps([*files, *(file for name in names if (file := path / name).is_file())])


def _stamps_now(path: Path, root: str, family: Family[Any]) -> Stamps:
    """As `_stamps`; which files hold the weights is looked up again."""
    with open_known(path, root or None) as checkpoint:
        return _stamps(path, checkpoint.files, family)


def certify(
    weights: Weights,
    captures: Sequence[Capture],
    reports: Sequence[Report],
    score: Score | None,
    subject: Subject,
    coverage: Mapping[str, Any] | None = None,
    *,
    evaluations: Sequence[Mapping[str, Any]] = (),
    exports: Sequence[Mapping[str, Any]] = (),
    force: bool = True,
    on_done: Callable[[], object] = lambda: None,
) -> Path:
    """Write the certificate of `weights`, from which `subject`, in float64, was loaded afterwards.

    `reports`: of each capture in float64, and in other dtypes as there are. `coverage`: which weights the captures
    depend on, JSON. `evaluations`: on whole data sets, as their records name themselves. `exports`: graphs
    that were made of the weights, as the schema has them. `force`: replace the certificate that is there. `on_done` is
    called once it is there, before anything else can fail. CaptureError if a report did not pass, if the files changed
    since `read_weights`, or if the certificate would not be one.
    """
    where, family = file_name(weights.path), subject.family
    if not reports or not all(report.passed for report in reports):
        raise CaptureError(f"{where}: not certified, since not every comparison passed.")
    loaded = json_safe(family.config(subject.model))
    is_same = _stamps_now(weights.path, weights.root, family) == weights.before
    if not is_same or loaded != weights.setup.settings["config"]:
        raise CaptureError(
            f"{where}: changed since it was loaded: what was compared is no longer in the file. "
            "Certify it again once nothing writes to it."
        )
    tables = weights.tables or {}
    content = {
        "format": FORMAT,
        "converter": __version__,
        "weights": {"sha256": weights.sha256, "tensors": weights.tensors},
        "table": tables.get("table"),
        **({"earlier": tables["earlier"]} if "earlier" in tables else {}),
        **({"unknown_table": True} if is_by_unknown_table(tables) else {}),
        "package": {"settings": weights.setup.settings, "files": weights.setup.files},
        "captures": [_described(capture, family) for capture in captures],
        "runs": [to_json(report) for report in reports],
        "mutations": None if score is None else score_json(score),
        **({} if coverage is None else {"coverage": coverage}),
        **{name: list(those) for name, those in (("evaluations", evaluations), ("exports", exports)) if those},
        "fingerprint": _fingerprint(subject),
    }
    path = certificate_path(weights.path)
    write_whole(path, _checked(content, path), force=force, on_done=on_done)
    return path


def _checked(content: Mapping[str, Any], path: Path) -> bytes:
    """The certificate, once it was read as whoever gets it reads it."""
    data = json_bytes(content)
    try:
        evidence_of(parse_json(data, MARKS), path)
    except TooMuch as error:
        raise CaptureError(f"{file_name(path)}: would have {error}. Certify with fewer captures.") from None
    return data


def _described(capture: Capture, family: Family[Any]) -> dict[str, Any]:
    table = load_table(capture.table or family.table)
    return {
        "name": capture.name,
        "sha256": file_sha256(capture.path),
        "compact": capture.compact,
        "table": table_entry(table.name, table.sha256),
        "facts": {key: value for key, value in capture.facts.items() if key not in ("errors", "compact")},
    }


def score_json(score: Score) -> dict[str, Any]:
    """A mutation score as JSON."""
    return {
        "made": len(score.outcomes),
        "possible": score.possible,
        "caught": score.caught,
        "equivalent": score.equivalent,
        "score": score.value,
        "kinds": {kind: asdict(numbers) for kind, numbers in score.kinds.items()},
        "survivors": [
            {"kind": o.mutation.kind, "name": o.mutation.name, "reason": o.reason, "explained": o.explained}
            for o in score.survivors
        ],
        "same_shape_not_exchanged": list(score.uncovered),
    }


def verify(
    weights: Path,
    checkpoint: Checkpoint,
    family: Family[Any],
    load: Callable[[], Subject],
    *,
    certificate: Path | None = None,
    evaluations: Sequence[Mapping[str, Any]] = (),
    stated: Mapping[str, str] = MappingProxyType({}),
    accepted_tables: Collection[str] = (),
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Verification:
    """Check a copy of certified weights: settings, files and every tensor's hash, then the fingerprint on this machine.

    `checkpoint` is the copy, as `open_converted` opened it from `weights`.
    `load` gives the model where and in the dtype in which it is to be checked. `certificate`: by default beside it.
    `evaluations`: on data sets, those that lie beside it, as their records name themselves.
    `stated`: by the names of other documents beside it, the hash of all tensors of the weights that each is of.
    `accepted_tables`: hashes of tables that were never released, and may have made it.
    Raises CaptureError if there is no sound certificate or such a table is not accepted, CheckpointError or ModelError
    if the weights cannot be read.
    """
    path = certificate or certificate_path(weights)
    evidence = read_evidence(path)
    before = _stamps(weights, checkpoint.files, family)
    if (ledger := find_record(weights, checkpoint, "conversion")) is not None:
        check_same_table(weights, ledger, evidence)
    tables = ledger or tables_in(checkpoint)
    custom = tuple(check_tables(weights, tables, evidence, accepted_tables))
    is_unknown = made_by_unknown_table(tables, evidence)
    other_graphs, graphs = held(evidence.exports, weights)
    named = stated if ledger is None else {"the ledger of the conversion": ledger["sha256"], **stated}
    setup = (
        *_of_other_weights(named, evidence),
        *evaluation_differences(evaluations, evidence),
        *other_graphs,
        *read_setup(weights, checkpoint, family).differences(evidence.setup),
    )
    tensors = compare_tensors(checkpoint, evidence, on_bytes)
    report = None
    if not (setup or any(tensors)):
        with open_fingerprint(evidence) as capture:
            report = parity(load(), capture, modes=["propagated"])
    if _stamps_now(weights, checkpoint.root, family) != before:
        raise CaptureError(f"{file_name(weights)}: changed meanwhile. Verify it again once nothing writes to it.")
    return Verification(path, *tensors, setup, evidence.evaluations, tuple(graphs), custom, is_unknown, report)


def _of_other_weights(stated: Mapping[str, str], evidence: Evidence) -> Iterator[str]:
    """A line for each document that is of other weights than the certificate."""
    for name, sha256 in stated.items():
        if sha256 != evidence.sha256:
            yield f"{name}: of weights with sha256 {plain(sha256)} here, {evidence.sha256} certified"


def compare_tensors(
    checkpoint: Checkpoint, evidence: Evidence, on_bytes: Callable[[int], object] = lambda count: None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Hash every tensor again: the names of those changed, missing and added.

    Raises CaptureError if the certificate contradicts itself, CheckpointError if the weights cannot be read.
    """
    expected = evidence.tensors
    found = tensor_hashes(checkpoint, on_bytes)
    changed = tuple(name for name in expected if name in found and found[name] != expected[name])
    missing, added = tuple(sorted(set(expected) - set(found))), tuple(sorted(set(found) - set(expected)))
    if not (changed or missing or added) and digest_of_checkpoint(checkpoint, found) != evidence.sha256:
        raise CaptureError(
            f"{file_name(evidence.path)}: its hash of all tensors is not that of its list. Get it again."
        )
    return changed, missing, added


@contextmanager
def open_fingerprint(evidence: Evidence) -> Iterator[Capture]:
    """The certificate's capture of the certified model. Raises CaptureError if it is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fingerprint.safetensors"
        file.write_bytes(evidence.fingerprint)
        try:
            capture = load_capture(file)
        except ConverterError:
            raise CaptureError(
                f"{file_name(evidence.path)}: its fingerprint is damaged. Get the certificate again."
            ) from None
        with capture:
            yield capture


def _fingerprint(subject: Subject) -> str:
    inputs = subject.family.sample_inputs(subject.config)
    tensors, facts = record(subject, inputs, "fingerprint", FINGERPRINT_ERRORS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fingerprint.safetensors"
        write_capture(file, tensors, facts, compact=True)
        return base64.b64encode(file.read_bytes()).decode()
