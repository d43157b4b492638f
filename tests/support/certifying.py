"""The small model certified, as `converter certify` does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter.glip import GLIP
from converter.glip.family import FAMILY
from converter.parity import certificate
from converter.parity.capture import Capture, load_capture
from converter.parity.certificate import Verification, Weights, certify
from converter.parity.coverage import coverage
from converter.parity.coverage_report import proof_of_rows, to_json
from converter.parity.evidence import certificate_path
from converter.parity.mutate import mutation_score
from converter.parity.run import parity
from converter.parity.subject import Subject
from converter.writing.in_memory import open_converted
from tests.support.saved_glip import saved_glip
from tests.support.small_capture import write
from tests.support.small_glip import subject


def read_weights(path: Path) -> Weights:
    """What is to be certified, in a file or folder that is opened for it."""
    with open_converted(path) as checkpoint:
        return certificate.read_weights(path, checkpoint, FAMILY)


def verify(path: Path, load: Callable[[], Subject], **options: Any) -> Verification:
    """A file or folder that is opened for it, beside its certificate."""
    with open_converted(path) as checkpoint:
        return certificate.verify(path, checkpoint, FAMILY, load, **options)


def certified_small(folder: Path, captures: int = 1) -> Path:
    """The certificate beside `small.safetensors` in the folder, of so many captures."""
    weights = saved_glip(folder)
    (folder / "captures").mkdir()
    with ExitStack() as opened:
        found = [opened.enter_context(named(folder / "captures", name)) for name in ("small", "second")[:captures]]
        certify_beside(weights, found)
    return certificate_path(weights)


def named(folder: Path, name: str) -> Capture:
    """A capture of the small model by a name of its own."""
    path = write(folder / f"{name}.safetensors")
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["capture"])
    save_file(load_file(path), path, {"capture": json.dumps(facts | {"name": name})})
    return load_capture(path)


def certify_beside(weights: Path, captures: list[Capture], mutations: int = 5) -> None:
    """Every capture in float64 and float32."""
    before = read_weights(weights)
    model = GLIP.from_pretrained(weights)
    single = [parity(subject(model), capture) for capture in captures]
    double = [parity(subject(model.double()), capture) for capture in captures]
    reports = [report for pair in zip(double, single, strict=True) for report in pair]
    score = mutation_score(subject(model), captures, mutations) if mutations else None
    covered = to_json(coverage(subject(model), captures), proof_of_rows(before.ledger, before.sha256))
    certify(before, captures, reports, score, subject(model), covered)
