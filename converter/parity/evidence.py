"""A certificate as it is read: whose weights it is of, its fingerprint, and the few numbers that people want of it.

There is this one reader, for whoever verifies, packages or publishes; it needs no torch.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from converter.display import file_name, plain, quoted
from converter.errors import CaptureError

FORMAT = 1
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
        if path.stat().st_size > LIMIT:
            raise CaptureError(
                f"{file_name(path)}: is larger than {LIMIT >> 20} MiB, too large for a certificate. Check the path."
            )
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise CaptureError(
            f"{file_name(path)}: there is no certificate ({error.strerror}). `converter certify` writes one."
        ) from None
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{file_name(path)}: is not JSON ({plain(str(error))}). Get it again.") from None
    problem = next(iter(_validator().iter_errors(content)), None)
    if problem is not None:
        place = "/".join(map(str, problem.absolute_path))
        raise CaptureError(
            f"{file_name(path)}: is not a certificate, at {quoted(place) if place else 'its top'}: "
            f"{plain(problem.message, 300)}. Get it again, or certify again."
        )
    return dict(content)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


@cache
def _validator() -> Any:
    import jsonschema

    sha256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    tap = _object(name=text, relative={"type": "number", "minimum": 0, "maximum": 1e300})  # infinity is beyond it
    size = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}
    facts = _object()
    facts["properties"] = {
        "image_sizes_hw": {"type": "array", "items": size},
        "official_config": {"type": ["string", "null"]},
    }
    run = _object(
        passed={"const": True},
        device={"type": "string", "pattern": "^(cpu|cuda(:[0-9]+)?)$"},
        dtype={"enum": ["float64", "float32", "bfloat16", "float16"]},
        gate=_object(text=text),
        modes={
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"type": "array", "minItems": 1, "items": tap},
        },
        detections={"type": "array"},
    )
    return jsonschema.Draft202012Validator(
        _object(
            format={"const": FORMAT},
            weights=_object(
                sha256=sha256, tensors={"type": "object", "minProperties": 1, "additionalProperties": sha256}
            ),
            table=_object(name=text, sha256=sha256),
            capture=_object(name=text, sha256=sha256, compact={"type": "boolean"}, facts=facts),
            runs={"type": "array", "minItems": 1, "items": run},
            mutations={"anyOf": [{"type": "null"}, _object(made=count, caught=count, equivalent=count)]},
            fingerprint={"type": "string", "minLength": 1},
        )
    )


def _object(**properties: Any) -> dict[str, Any]:
    """The schema of an object that has all of these."""
    return {"type": "object", "required": list(properties), "properties": properties}
