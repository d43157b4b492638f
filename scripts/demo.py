"""Convert an official checkpoint, load it, run it, and compare it with a recording of the official code.

Without a path, writes a checkpoint with the synthetic weights of the recordings first. A checkpoint of yours is
converted and run: there is no recording of its weights to compare with.
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

from converter.model import GLIP
from converter.parity.recording import Comparison, Recording, StageError, compare, load_recording

ROOT = Path(__file__).resolve().parent.parent
RECORDINGS = ROOT / "tests" / "data" / "recordings"
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
    recording = load_recording(RECORDINGS / f"{variant_of(converted)}.safetensors")
    return run(converted, recording) if given else prove(converted, recording)


def step(text: str) -> None:
    """Announce what comes next."""
    print(f"\n$ {text}", flush=True)


def variant_of(converted: Path) -> str:
    """The variant that the conversion inferred, from the header."""
    with safe_open(converted, "pt") as file:
        variant = json.loads(file.metadata()["config"])["variant"]
    return str(variant)


def run(converted: Path, recording: Recording) -> int:
    """Run on recorded inputs, and show what comes out."""
    step(f"GLIP.from_pretrained({converted.name!r}) on {len(recording.images)} images")
    model = GLIP.from_pretrained(converted)
    with torch.inference_mode():
        out = model(recording.images, recording.input_ids, recording.attention_mask)
    for image, found in enumerate(model.detect(out, recording.image_sizes, recording.positive_map)):
        best = f", best score {found.scores[0]:.3f}" if len(found.scores) else ""
        print(f"  image {image}: {len(found.scores)} detections{best}")
    print("\nConverted and run. There is no recording of these weights, so the outputs were compared with nothing.")
    return 0


def prove(converted: Path, recording: Recording) -> int:
    """Compare with the recording in both precisions, and print a table."""
    step(f"GLIP.from_pretrained({converted.name!r}), compared with the official code's recording {recording.name!r}")
    model = GLIP.from_pretrained(converted)
    single = compare(model, recording)
    double = compare(model.double(), recording)
    print_table(single, double)
    problems = [*double.problems, *single.problems]
    for problem in problems:
        print(f"  outside its tolerance: {problem}")
    print("\nThe converted model computes what the official code computes." if not problems else "\nIt does not.")
    return 1 if problems else 0


def print_table(single: Comparison, double: Comparison) -> None:
    """The largest relative error of each part of the model, beside that of the official code in float32."""
    print(f"\n  {'largest relative error':<28}{'stages':>7}{'float64':>10}{'float32':>10}{'official float32':>18}")
    seen: set[str] = set()
    for part, prefixes in PARTS:
        rows = [
            [s for s in comparison.stages if s.name.startswith(prefixes) and s.name not in seen]
            for comparison in (double, single)
        ]
        seen |= {stage.name for stage in rows[0]}
        print(f"  {part:<28}{len(rows[0]):>7}{largest(rows[0]):>10.0e}{largest(rows[1]):>10.0e}", end="")
        print(f"{max(stage.float32_error for stage in rows[1]):>18.0e}")
    for image, detections in enumerate(double.detections):
        print(
            f"  image {image}: {detections.found} detections, recorded {detections.expected}; "
            f"boxes within {detections.boxes:.0e} pixels"
        )


def largest(stages: Sequence[StageError]) -> float:
    """The largest relative error among `stages`."""
    return max(stage.error for stage in stages)


if __name__ == "__main__":
    sys.exit(main())
