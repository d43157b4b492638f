"""Make a compact capture of a full one: a hundredth of the size, and the same verdict.

    python scripts/compact_capture.py captures/glip-t.safetensors     # -> tests/data/captures/glip-t.safetensors

The captures of the official code in the repository were made so. The format is described in
converter/parity/capture.py. The same capture gives the same bytes on the same machine
(the probes are sums, and their last bit depends on the processor).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from converter.parity.capture import INPUT, load_capture, write_capture

CAPTURES = Path(__file__).resolve().parent.parent / "tests" / "data" / "captures"
KEPT = ("name", "model", "official_config", "dtype", "torch", "transformers", "captions", "image_sizes_hw",
        "positive_map_label_to_token")  # fmt: skip


def compact(source: Path, output: Path) -> None:
    """Write the compact form of the capture at `source`."""
    with load_capture(source) as capture:
        tensors = {f"{INPUT}{name}": value for name, value in capture.inputs.items()}
        for image, detections in enumerate(capture.detections):
            tensors |= {f"detections.{image}.{field}": value for field, value in detections._asdict().items()}
        tensors |= {name: capture.read(name) for name in capture.activations}
        errors: dict[str, dict[str, float]] = {}
        for name, activation in capture.activations.items():
            for dtype, error in activation.errors.items():
                errors.setdefault(dtype, {})[name] = error
        facts = {key: capture.facts[key] for key in KEPT if key in capture.facts}
        write_capture(
            output, tensors, {**facts, "table": capture.table or "glip-official", "errors": errors}, compact=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("capture", type=Path)
    parser.add_argument("--output", type=Path, help="default: tests/data/captures/NAME.safetensors")
    arguments = parser.parse_args()
    output = arguments.output or CAPTURES / arguments.capture.name
    compact(arguments.capture, output)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
