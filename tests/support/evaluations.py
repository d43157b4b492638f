"""Evaluations as `converter evaluate` would write them, of pictures that nobody looked at."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from converter.checkpoint import open_checkpoint
from converter.checkpoint.hashes import tensor_hashes
from converter.evaluation.record import Evaluation, evaluation_of, evaluation_path, to_json
from converter.writing.ledger import digest_of_checkpoint

WEIGHTS = "a" * 64
COCO = {
    "AP": 0.4658, "AP50": 0.62, "AP75": 0.51, "APs": 0.3, "APm": None, "APl": 0.6, "AR1": 0.35, "AR10": 0.55,
    "AR100": 0.6, "ARs": 0.4, "ARm": 0.65, "ARl": 0.75,
}  # fmt: skip
LVIS = {"AP": 0.25, "AP50": 0.4, "AP75": 0.2, "APr": 0.1804, "APc": 0.2696, "APf": 0.3, "AR": 0.4}


def digest(weights: Path) -> str:
    """The hash of all tensors of a file or folder."""
    with open_checkpoint(weights) as checkpoint:
        return digest_of_checkpoint(checkpoint, tensor_hashes(checkpoint))


def evaluated(weights: str = WEIGHTS, dataset: str = "coco", **more: Any) -> dict[str, Any]:
    """The content of one, whole and sound. `more`: of its parts, or of the parts within them, what is other."""
    is_lvis = dataset == "lvis"
    content: dict[str, Any] = {
        "converter": "0.1.0",
        "weights": {"sha256": weights},
        "model": {"name": "glip", "variant": "glip-t"},
        "dataset": {
            "name": dataset,
            "style": "lvis" if is_lvis else "coco",
            "annotations_sha256": hashlib.sha256(json.dumps(dataset).encode()).hexdigest(),
            "pictures": 4809 if is_lvis else 5000,
            "pictures_sha256": "b" * 64,
            "limited": False,
            "skipped": [],
        },
        "protocol": {"name": "official", "threshold": 0.05, "chunks": [[1, 2], [3]]},
        "run": {"device": "cpu", "dtype": "float32", "tf32": False, "batch": 1, "torch": "2.13.0"},
        "metric": {"library": "faster-coco-eval 1.8.0", "style": "lvis-fixed" if is_lvis else "coco"},
        "figures": dict(LVIS if is_lvis else COCO),
        "classes": _lvis() if is_lvis else [_of(1, 0.4658, 0.62), _of(2, None, None, annotated=0)],
        "predictions_sha256": "c" * 64,
    }
    for name, value in more.items():
        part = next((p for p in content.values() if isinstance(p, dict) and name in p), content)
        part[name] = value
    return content


def _of(number: int, ap: float | None, ap50: float | None, frequency: str | None = None, annotated: int = 9) -> Any:
    figures = {"ap": ap, "ap50": ap50, "recall": None if ap is None else 0.7}
    return {"id": number, "name": f"class {number}", "frequency": frequency, "annotated": annotated, "predicted": 20,
            **figures}  # fmt: skip


def _lvis() -> list[Any]:
    return [_of(1, 0.1804, 0.4, "r"), _of(2, 0.2696, 0.4, "c"), _of(3, 0.3, 0.4, "f")]


def evaluate(weights: Path, *contents: dict[str, Any]) -> tuple[Evaluation, ...]:
    """Write these beside weights; of the weights that are there, unless a content says otherwise."""
    sha256 = digest(weights)
    for content in contents:
        if content["weights"]["sha256"] == WEIGHTS:
            content["weights"]["sha256"] = sha256
    made = tuple(map(evaluation_of, contents))
    evaluation_path(weights).write_bytes(to_json(made))
    return made
