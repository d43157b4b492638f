"""Parity on a GPU, whole: every architecture and number format, both modes, with the CPU in float64 as the oracle.

    python scripts/gpu_suite.py                                   # all models on cuda
    python scripts/gpu_suite.py --models glip-t --device cpu      # the same without a GPU, to try it out
    python scripts/gpu_suite.py --output docs/parity/h100.json

Runs on a machine with nothing but torch, numpy, click and jsonschema, without a network. It writes checkpoints with the
synthetic weights of the official captures, converts them, proves on the CPU in float64 that the model is the captured
one, captures it there whole, and compares the GPU with that. TF32 is measured, not judged.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch  # after the variable, which CUDA reads once
from synthetic_checkpoint import write_checkpoint

from converter.checkpoint import open_checkpoint
from converter.glip import GLIP
from converter.glip.family import FAMILY
from converter.mapping.load import load_table
from converter.parity.capture import load_capture, write_capture
from converter.parity.device import DTYPES, set_precision
from converter.parity.record import inputs_of, record
from converter.parity.run import Report, parity
from converter.parity.subject import Subject
from converter.planning.fit import make_plan
from converter.writing.convert import convert

CAPTURES = {
    "glip-t": ("glip-t", "glip-t-odd"),
    "glip-t-a": ("glip-t-a",),
    "glip-l": ("glip-l",),
}
# name, dtype, whether TF32 is allowed, whether there is a tolerance for it
FORMATS = (
    ("float64", "float64", False, True),
    ("float32 IEEE", "float32", False, True),
    ("float32 TF32", "float32", True, False),
    ("bfloat16", "bfloat16", False, True),
    ("float16", "float16", False, True),
)
OWN_ERRORS = ("float32", "bfloat16", "float16")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="+", choices=CAPTURES, default=list(CAPTURES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu tries the suite out", file=sys.stderr)
        return 8
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for model in arguments.models:
        rows += run_model(model, arguments.device)
    failed = [row for row in rows if row["verdict"] == "FAIL"]
    seconds = time.perf_counter() - start
    print(f"\n{len(rows)} comparisons, {len(failed)} failed, {seconds:.0f} s on {rows[-1]['settings']['machine']}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"seconds": seconds, "runs": rows}, indent=1) + "\n")
    return 1 if failed else 0


def run_model(name: str, device: str) -> Iterator[dict[str, Any]]:
    """One row for each capture, format and mode."""
    with tempfile.TemporaryDirectory() as folder:
        converted = make_weights(name, Path(folder))
        for official in CAPTURES[name]:
            whole = Path(folder) / f"{official}.safetensors"
            oracle = Subject(FAMILY, GLIP.from_pretrained(converted).double())
            with load_capture(ROOT / "tests" / "data" / "captures" / f"{official}.safetensors") as capture:
                report = parity(oracle, capture)
                yield from describe(official, "float64, beside the official code", report)
                tensors, facts = record(oracle, inputs_of(capture), f"{official} on cpu", OWN_ERRORS)
            write_capture(whole, tensors, facts, compact=False)
            del oracle, tensors
            for title, dtype, tf32, judged in FORMATS:
                set_precision(tf32)
                model = GLIP.from_pretrained(converted).to(device=device, dtype=DTYPES[dtype])
                with load_capture(whole) as capture:
                    report = parity(Subject(FAMILY, model), capture, twice=True)
                yield from describe(official, title, report, judged=judged)
            set_precision(False)


def make_weights(name: str, folder: Path) -> Path:
    """An official-format checkpoint with synthetic weights, converted."""
    source, converted = folder / "official.pth", folder / "converted.safetensors"
    write_checkpoint(name, source, weights_only=True)
    with open_checkpoint(source) as checkpoint:
        convert(checkpoint, make_plan(load_table("glip-official"), checkpoint), converted)
    source.unlink()
    return converted


def describe(capture: str, title: str, report: Report, *, judged: bool = True) -> Iterator[dict[str, Any]]:
    """Print and return one row for each mode."""
    for mode, results in report.modes.items():
        worst = max(results, key=lambda result: result.relative)
        ratios = [result.ratio for result in results if result.ratio is not None]
        verdicts = [result.passed for result in results]
        unjudged = verdicts.count(None)
        verdict = "FAIL" if False in verdicts else f"{unjudged} open" if unjudged else "pass"
        matched = [f"{d.matched}/{d.expected}" for d in report.detections] if mode == "propagated" else []
        row = {
            "capture": capture,
            "device": report.device,
            "format": title,
            "mode": mode,
            "taps": len(results),
            "largest_relative_error": worst.relative,
            "at": worst.name,
            "largest_ratio_to_own_error": max(ratios, default=None),
            "gate": str(report.gate) if judged else "none: measured only",
            "verdict": verdict if judged else "measured",
            "not_judged": unjudged,
            "noise": report.noise,
            "detections_matched": matched,
            "settings": dict(report.settings),
        }
        ratio = f"{max(ratios):8.2f}x" if ratios else " " * 9
        print(
            f"{capture:<11}{report.device:<6}{title:<36}{mode:<11}{worst.relative:9.1e}{ratio}  "
            f"{row['verdict']:<9}{' '.join(matched)}",
            flush=True,
        )
        yield row


if __name__ == "__main__":
    sys.exit(main())
