"""The certificate beside converted weights: what was compared with what, and a fingerprint to check copies by.

`parity.json` in a folder, `NAME.parity.json` beside a single file. It holds hashes of all tensors, of the table and of
the capture; per run the device, dtype, gate and the numbers of every tap; the mutation score; and the fingerprint: a
compact capture of the verified model itself, on a small built-in input. With it a copy of the weights can be checked
anywhere, without the reference. It is evidence, not a signature: whoever can change the weights can change it, too.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter import __version__
from converter.checkpoint import open_checkpoint
from converter.checkpoint.hashes import Stamps, file_sha256, stamps, tensor_hashes
from converter.display import file_name
from converter.errors import CaptureError, ConverterError
from converter.mapping.load import load_table
from converter.parity.capture import Capture, load_capture, write_capture
from converter.parity.evidence import FORMAT, Evidence, read_evidence
from converter.parity.family import Subject
from converter.parity.mutate import Score
from converter.parity.record import record
from converter.parity.report import to_json
from converter.parity.run import Report, parity
from converter.writing.ledger import digest_of_checkpoint
from converter.writing.ledger import to_json as json_bytes
from converter.writing.staging import write_whole

FINGERPRINT_ERRORS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Verification:
    """A copy of the weights beside its certificate.

    `changed`, `missing`, `added`: tensors whose bytes or presence differ; `report`: the fingerprint, computed again
    (None where the tensors differ already).
    """

    certificate: Path
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    report: Report | None

    @property
    def passed(self) -> bool | None:
        """Same tensors, and the same activations here; None if this dtype cannot be judged."""
        if self.changed or self.missing or self.added or self.report is None:
            return False
        return self.report.passed

    @property
    def problems(self) -> list[str]:
        """Everything by which this copy is not what was certified."""
        names = {"changed": self.changed, "missing": self.missing, "added": self.added}
        different = [f"{word}: {name}" for word, those in names.items() for name in those]
        return different + (self.report.problems if self.report else [])


def certificate_path(weights: Path) -> Path:
    """Where the certificate of a file or folder is."""
    return weights / "parity.json" if weights.is_dir() else weights.with_suffix(".parity.json")


def certify(
    weights: Path,
    capture: Capture,
    reports: Sequence[Report],
    score: Score | None,
    subject: Subject,
    on_bytes: Callable[[int], object] = lambda count: None,
    before: Stamps | None = None,
) -> Path:
    """Write the certificate of `weights`, which `subject`, in float64, holds.

    `before` are the stamps of its files from before the model was loaded. CaptureError if a report did not pass, or if
    the files changed since.
    """
    if not reports or not all(report.passed for report in reports):
        raise CaptureError(f"{file_name(weights)}: not certified, since not every comparison passed.")
    with open_checkpoint(weights) as checkpoint:
        hashes = tensor_hashes(checkpoint, on_bytes)
        digest = digest_of_checkpoint(checkpoint, hashes)
        if before is not None and stamps(checkpoint.files) != before:
            raise CaptureError(
                f"{file_name(weights)}: changed since it was loaded: what was compared is no longer in the file. "
                "Certify it again once nothing writes to it."
            )
    table = load_table(capture.table or subject.family.table)
    content = {
        "format": FORMAT,
        "converter": __version__,
        "weights": {"sha256": digest, "tensors": hashes},
        "table": {"name": table.name, "sha256": table.sha256},
        "capture": {
            "name": capture.name,
            "sha256": file_sha256(capture.path),
            "compact": capture.compact,
            "facts": {key: value for key, value in capture.facts.items() if key not in ("errors", "compact")},
        },
        "runs": [to_json(report) for report in reports],
        "mutations": None if score is None else score_json(score),
        "fingerprint": _fingerprint(subject),
    }
    path = certificate_path(weights)
    write_whole(path, lambda partial: partial.write_bytes(json_bytes(content)))
    return path


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
    load: Callable[[], Subject],
    *,
    certificate: Path | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Verification:
    """Check a copy of certified weights: every tensor's hash, then the fingerprint on this machine.

    `load` gives the model where and in the dtype in which it is to be checked. `certificate`: by default beside it.
    Raises CaptureError if there is no sound certificate, CheckpointError or ModelError if the weights cannot be read.
    """
    path = certificate or certificate_path(weights)
    evidence, changed, missing, added = compare_tensors(weights, path, on_bytes)
    report = None
    if not (changed or missing or added):
        with open_fingerprint(evidence) as capture:
            report = parity(load(), capture, modes=["propagated"])
    return Verification(path, changed, missing, added, report)


def compare_tensors(
    weights: Path, certificate: Path, on_bytes: Callable[[int], object] = lambda count: None
) -> tuple[Evidence, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Hash every tensor again: the certificate, and the names of tensors changed, missing and added.

    Raises CaptureError if there is no sound certificate, CheckpointError if the weights cannot be read.
    """
    evidence = read_evidence(certificate)
    expected = evidence.tensors
    with open_checkpoint(weights) as checkpoint:
        found = tensor_hashes(checkpoint, on_bytes)
        changed = tuple(name for name in expected if name in found and found[name] != expected[name])
        missing, added = tuple(sorted(set(expected) - set(found))), tuple(sorted(set(found) - set(expected)))
        if not (changed or missing or added) and digest_of_checkpoint(checkpoint, found) != evidence.sha256:
            raise CaptureError(
                f"{file_name(certificate)}: its hash of all tensors is not that of its list. Get it again."
            )
    return evidence, changed, missing, added


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
