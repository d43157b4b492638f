"""Convert an official checkpoint, load it, run it, and compare it with a capture of the official code.

Without a path, writes a checkpoint with the synthetic weights of the captures first. A checkpoint of yours is
converted and run: there is no capture of its weights to compare with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from synthetic_checkpoint import write_checkpoint

from converter.glip import GLIP
from converter.glip.family import FAMILY
from converter.parity.capture import Capture, load_capture
from converter.parity.compare import TapResult
from converter.parity.run import Report, parity
from converter.parity.subject import Subject

ROOT = Path(__file__).resolve().parent.parent
CAPTURES = ROOT / "tests" / "data" / "captures"
WORK = ROOT / ".work"
# what a reader wants to see apart, by the beginning of the official names
PARTS = (
    ("Swin", ("backbone.body",)),
    ("FPN", ("backbone.",)),
    ("BERT", ("language_backbone.",)),
    ("fusion and dynamic head", ("rpn.head.dyhead_tower.",)),
    ("logits, boxes, centerness", ("rpn.head.",)),
    ("anchors", ("rpn.anchor_generator.",)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", help="official .pth; default: a synthetic GLIP-T")
    given = parser.parse_args().checkpoint
    WORK.mkdir(exist_ok=True)
    source = given or WORK / "glip-t.pth"
    if given is None and not source.exists():
        step(f"write {source.relative_to(ROOT)}: names, shapes and layout of the official trainer, synthetic values")
        write_checkpoint("glip-t", source, weights_only=False)
    converted = WORK / "demo.safetensors"
    command = ["convert", "--src", str(source), "--dst", str(converted), "--force"]
    step(" ".join(command))
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "converter", *command], check=True)
    print(f"  {time.perf_counter() - start:.1f} s for {source.stat().st_size / 1e9:.2f} GB")
    with load_capture(CAPTURES / f"{variant_of(converted)}.safetensors") as capture:
        return run(converted, capture) if given else prove(converted, capture)


def step(text: str) -> None:
    """Announce what comes next."""
    print(f"\n$ {text}", flush=True)


def variant_of(converted: Path) -> str:
    """The variant that the conversion inferred, from the header."""
    with safe_open(converted, "pt") as file:
        variant = json.loads(file.metadata()["config"])["variant"]
    return str(variant)


def run(converted: Path, capture: Capture) -> int:
    """Run on captured inputs, and show what comes out."""
    step(f"GLIP.from_pretrained({converted.name!r}) on {len(capture.detections)} images")
    model = GLIP.from_pretrained(converted)
    with torch.inference_mode():
        out = model(**capture.inputs)
    for image, found in enumerate(FAMILY.detect(model, out, capture.facts)):
        best = f", best score {found.scores[0]:.3f}" if len(found.scores) else ""
        print(f"  image {image}: {len(found.scores)} detections{best}")
    print("\nConverted and run. There is no capture of these weights, so the outputs were compared with nothing.")
    return 0


def prove(converted: Path, capture: Capture) -> int:
    """Compare with the capture in both precisions, and print a table."""
    step(f"GLIP.from_pretrained({converted.name!r}), compared with the official code's capture {capture.name!r}")
    model = GLIP.from_pretrained(converted)
    single = parity(Subject(FAMILY, model), capture)
    double = parity(Subject(FAMILY, model.double()), capture)
    print_table(single, double)
    problems = [*double.problems, *single.problems]
    for problem in problems:
        print(f"  outside its tolerance: {problem}")
    print("\nThe converted model computes what the official code computes." if not problems else "\nIt does not.")
    return 1 if problems else 0


def print_table(single: Report, double: Report) -> None:
    """The largest relative error of each part of the model, beside that of the official code in float32."""
    print(f"\n  {'largest relative error':<28}{'taps':>7}{'float64':>10}{'float32':>10}{'official float32':>18}")
    seen: set[str] = set()
    for part, prefixes in PARTS:
        rows = [
            [s for s in report.modes["propagated"] if s.name.startswith(prefixes) and s.name not in seen]
            for report in (double, single)
        ]
        seen |= {tap.name for tap in rows[0]}
        print(f"  {part:<28}{len(rows[0]):>7}{largest(rows[0]):>10.0e}{largest(rows[1]):>10.0e}", end="")
        print(f"{max(tap.own or 0 for tap in rows[1]):>18.0e}")
    for image, detections in enumerate(double.detections):
        print(
            f"  image {image}: {detections.found} detections, captured {detections.expected}; "
            f"boxes within {detections.pixels:.0e} pixels"
        )


def largest(taps: Sequence[TapResult]) -> float:
    """The largest relative error among `taps`."""
    return max(tap.relative for tap in taps)


if __name__ == "__main__":
    sys.exit(main())
