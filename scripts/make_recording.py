"""Make a compact recording from a full capture of the official code.

    python scripts/make_recording.py captures/glip-t.safetensors     # -> tests/data/recordings/glip-t.safetensors

A capture is a safetensors file of all activations in float64, with a JSON file of the same name beside it: settings,
and the error of the official code's own float32 run per activation. What a recording keeps of it is described in
converter/parity/recording.py. The same capture gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from converter.parity.probes import probe

RECORDINGS = Path(__file__).resolve().parent.parent / "tests" / "data" / "recordings"
INPUTS = ("input.images", "input.input_ids", "input.attention_mask")


def record(
    capture: Mapping[str, Tensor], settings: Mapping[str, Any], float32_error: Mapping[str, float]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the recording. `float32_error`: the relative Frobenius error of each activation."""
    stages = sorted(name for name in capture if not name.startswith(("input.", "detections.")))
    tensors = {name: capture[name] for name in capture if name in INPUTS or name.startswith("detections.")}
    tensors |= {name: probe(name, capture[name]) for name in stages}
    facts = {
        "name": settings["name"],
        "model": settings["model"],
        "table": "glip-official",
        "official_config": settings["official_config"],
        "run": f"{settings['dtype']}; torch {settings['torch']}, transformers {settings['transformers']}",
        "captions": settings["captions"],
        "image_sizes": settings["image_sizes_hw"],
        "positive_map": settings["positive_map_label_to_token"],
        "stages": {
            name: {
                "shape": list(capture[name].shape),
                "norm": float(capture[name].double().norm()),
                "float32_error": float32_error[name],
            }
            for name in stages
        },
    }
    # one entry: the order of several is not kept by safetensors
    return tensors, {"recording": json.dumps(facts)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a compact recording from a full capture of the official code.")
    parser.add_argument("capture", type=Path)
    parser.add_argument("--output", type=Path, help="default: tests/data/recordings/NAME.safetensors")
    arguments = parser.parse_args()
    document = json.loads(arguments.capture.with_suffix(".json").read_text())
    errors = {name: error["rel_fro"] for name, error in document["float32_error_against_float64"].items()}
    tensors, metadata = record(load_file(arguments.capture), document["capture"], errors)
    output = arguments.output or RECORDINGS / arguments.capture.name
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output, metadata)
    print(f"{output}: {len(tensors)} tensors, {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
