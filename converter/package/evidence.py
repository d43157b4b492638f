"""What a certificate says, in the few numbers that a reader of a model card wants."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.display import file_name
from converter.errors import CaptureError

LIMIT = 64 << 20  # bytes of a certificate


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
    official          the configuration of the official code that was captured, None if the capture does not say so
    compact           whether the capture holds only some numbers of each activation
    sizes             (height, width) of its images
    made, caught      of the mutations, and `equivalent`: those that no input can show
    """

    tensors: dict[str, str]
    sha256: str
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
    try:
        if path.stat().st_size > LIMIT:
            raise CaptureError(f"{file_name(path)}: is larger than {LIMIT >> 20} MiB, so no certificate.")
        content = json.loads(path.read_bytes())
        runs = tuple(_run(run) for run in content["runs"])
        mutations = content["mutations"] or {"made": 0, "caught": 0, "equivalent": 0}
        facts = content["capture"]["facts"]
        official = facts.get("official_config")
        evidence = Evidence(
            {str(name): str(sha256) for name, sha256 in content["weights"]["tensors"].items()},
            str(content["weights"]["sha256"]),
            str(content["capture"]["name"]),
            str(content["capture"]["sha256"]),
            None if official is None else str(official),
            bool(content["capture"]["compact"]),
            tuple((int(height), int(width)) for height, width in facts["image_sizes_hw"]),
            runs,
            *(int(mutations[key]) for key in ("made", "caught", "equivalent")),
        )
    except OSError as error:
        raise CaptureError(f"{file_name(path)}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise CaptureError(f"{file_name(path)}: is no certificate. `converter certify` writes one.") from None
    if not runs or not all(run["passed"] is True for run in content["runs"]):
        raise CaptureError(f"{file_name(path)}: not every comparison in it passed. Certify again.")
    return evidence


def _run(run: dict[str, Any]) -> Run:
    taps = [tap for results in run["modes"].values() for tap in results]
    worst = max(taps, key=lambda tap: float(tap["relative"]))
    if not math.isfinite(float(worst["relative"])):
        raise ValueError
    return Run(
        str(run["device"]),
        str(run["dtype"]),
        len(taps),
        float(worst["relative"]),
        str(worst["name"]),
        str(run["gate"]["text"]),
        len(run["detections"]),
    )
