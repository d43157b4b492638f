"""What each choice of an evaluation's protocol costs: AP of a model beside itself, asked in another way.

The objects to be found are what the model itself finds by the official protocol: its strongest boxes, so that it has
AP 1 beside them. Any other protocol has less, by what it changes. With weights that were trained the changes are
smaller than with synthetic ones, whose scores lie close together; which of them are large is told all the same.

    python scripts/protocol_costs.py glip-t.safetensors instances_val2017.json val2017 --limit 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from converter import Detector, evaluate
from converter.evaluation.outcome import Outcome
from converter.evaluation.predictions import Predictions

PER_PICTURE = 20  # objects to be found, on average
VARIANTS: list[tuple[str, dict[str, str]]] = [
    ("classes in the order of their names", {"order": "name"}),
    ("classes from the last to the first", {"order": "reversed"}),
    ("names joined by ' . ', as the demo does", {"separator": " . "}),
    ("captions of 40 names", {"per_caption": "40"}),
    ("captions of 20 names", {"per_caption": "20"}),
    ("shorter side 640", {"shorter_side": "640"}),
    ("shorter side 799: one pixel", {"shorter_side": "799"}),
    ("sides rounded down, as MMDetection does", {"size_rounding": "down"}),
    ("resized as a tensor, without averaging", {"filter": "bilinear-tensor"}),
    ("resized bicubically", {"filter": "bicubic"}),
    ("NMS at IoU 0.5", {"nms_threshold": "0.5"}),
    ("NMS without the last pixel", {"last_pixel_included": "false"}),
    ("candidates ranked before centerness", {"ranked_by_centerness": "false"}),
    ("sides at least 16/1000 of an anchor's", {"shrinking_limited": "true"}),
    ("boxes without the last pixel", {"box_extent": "0"}),
    ("all that MMDetection does", {}),
]


def objects(found: Predictions, annotations: Path, to: Path) -> None:
    """A data set like the other, whose objects are the strongest of what was found."""
    content = json.loads(annotations.read_text())
    images = [image for image in content["images"] if image["id"] in set(found.pictures.tolist())]
    order = (-found.scores).argsort(kind="stable")[: PER_PICTURE * len(images)]
    best = found.taken(order)
    rows = zip(best.pictures.tolist(), best.categories.tolist(), best.boxes.tolist(), strict=True)
    content["annotations"] = [
        {"id": number, "image_id": picture, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for number, (picture, category, box) in enumerate(rows, start=1)
    ]
    to.write_text(json.dumps(content | {"images": images}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("annotations", type=Path)
    parser.add_argument("images")
    parser.add_argument("--data", default="coco", help="coco, lvis or own")
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    detector = Detector.from_pretrained(given.model)

    def measured(annotations: Path, protocol: str = "official", **settings: str) -> Outcome:
        outcome = evaluate(
            detector, annotations, given.images, data=given.data, protocol=protocol,
            settings={"metric": "coco", **settings}, limit=given.limit,
        )  # fmt: skip
        assert outcome is not None
        return outcome

    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "own.json"
        objects(measured(given.annotations).predictions, given.annotations, own)
        base = measured(own).scores.figures
        print("| changed | AP | AP50 |\n|---|---|---|")
        print(f"| nothing | {100 * (base['AP'] or 0):.1f} | {100 * (base['AP50'] or 0):.1f} |", flush=True)
        for name, settings in VARIANTS:
            figures = measured(own, "official" if settings else "mmdet", **settings).scores.figures
            print(f"| {name} | {100 * (figures['AP'] or 0):.1f} | {100 * (figures['AP50'] or 0):.1f} |", flush=True)
        for dtype in ("bfloat16", "float64"):
            detector.to(dtype=dtype)
            figures = measured(own).scores.figures
            print(f"| {dtype} | {100 * (figures['AP'] or 0):.1f} | {100 * (figures['AP50'] or 0):.1f} |", flush=True)


if __name__ == "__main__":
    main()
