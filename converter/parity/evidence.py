"""A certificate read from its file: which weights it certifies, its fingerprint, and the numbers that a card shows.

The only reader of certificates, for verifying, packaging and publishing; it needs no torch.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.checkpoint.strict_json import read_json
from converter.display import file_name
from converter.errors import CaptureError
from converter.parity.schemas import problem_of

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Run:
    """One comparison: where, in which numbers, how many activations, the worst of them, and what was allowed."""

    device: str
    dtype: str
    activations: int
    worst: float
    worst_name: str
    gate: str
    images: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """A certificate.

    tensors           SHA-256 of each tensor that it is of
    fingerprint       a capture of the certified model, as the bytes of its file
    official          the configuration of the official code that was captured, None if the capture does not say so
    compact           whether the capture holds only some numbers of each activation
    sizes             (height, width) of its images, if it says so
    made, caught      of the mutations, and `equivalent`: those that no input can show
    """

    path: Path
    tensors: dict[str, str]
    sha256: str
    fingerprint: bytes = field(repr=False)
    capture: str
    capture_sha256: str
    official: str | None
    compact: bool
    sizes: tuple[tuple[int, int], ...]
    runs: tuple[Run, ...]
    made: int
    caught: int
    equivalent: int


def read_evidence(path: Path) -> Evidence:
    """The certificate at `path`. CaptureError unless it is one, of comparisons that all passed."""
    content = _content(path)
    try:
        fingerprint = base64.b64decode(content["fingerprint"], validate=True)
    except ValueError:
        raise CaptureError(f"{file_name(path)}: its fingerprint is damaged. Get the certificate again.") from None
    capture = content["capture"]
    mutations = content["mutations"] or {"made": 0, "caught": 0, "equivalent": 0}
    return Evidence(
        path=path,
        tensors=content["weights"]["tensors"],
        sha256=content["weights"]["sha256"],
        fingerprint=fingerprint,
        capture=capture["name"],
        capture_sha256=capture["sha256"],
        official=capture["facts"].get("official_config"),
        compact=capture["compact"],
        sizes=tuple((int(height), int(width)) for height, width in capture["facts"].get("image_sizes_hw", ())),
        runs=tuple(map(_run, content["runs"])),
        **{key: int(mutations[key]) for key in ("made", "caught", "equivalent")},
    )


def _run(run: dict[str, Any]) -> Run:
    taps = [tap for results in run["modes"].values() for tap in results]
    worst = max(taps, key=lambda tap: float(tap["relative"]))
    return Run(
        run["device"],
        run["dtype"],
        len(taps),
        float(worst["relative"]),
        worst["name"],
        run["gate"]["text"],
        len(run["detections"]),
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except OSError as error:
        raise CaptureError(
            f"{file_name(path)}: there is no certificate ({error.strerror}). `converter certify` writes one."
        ) from None
    except ValueError as error:
        raise CaptureError(f"{file_name(path)}: is not the JSON of a certificate: {error}. Get it again.") from None
    if problem := problem_of(content, "certificate"):
        raise CaptureError(f"{file_name(path)}: is not a certificate, {problem}. Get it again, or certify again.")
    return dict(content)
