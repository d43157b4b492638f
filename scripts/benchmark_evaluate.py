"""How fast `evaluate` is, beside the bare forward of the same pictures, and how much memory it takes.

    python scripts/benchmark_evaluate.py glip-t/                # photographs at the protocol's full size
    python scripts/benchmark_evaluate.py glip-t/ --pictures 40 --batch 4
    python scripts/benchmark_evaluate.py --memory 5000          # the tests' small model, so many generated pictures

Of speed, both run in turn, A B A B, in one process: `evaluate` from files to figures, and a loop that gives the model
one picture after the other, read and resized before, with torch's default threads. The ratio is of one machine at one
time; the pictures per second of a busy one say nothing. Of memory, `converter evaluate` is a process of its own: told
are megabytes that are resident in it and in those that read for it, after every 500 pictures and at most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np
from PIL import Image

PHOTOGRAPHS = ("rocket", "astronaut", "coffee", "chelsea", "retina", "immunohistochemistry")
CLASSES = ("person", "dog", "cat", "traffic light", "umbrella", "boat", "cell phone", "car")
EVERY = 500  # pictures between two lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", nargs="?", type=Path, help="converted weights; for --memory another model if given")
    parser.add_argument("--pictures", type=int, default=16, help="photographs for the speed")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each")
    parser.add_argument("--memory", type=int, metavar="N", help="measure memory instead, on so many pictures")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON, not text")
    a = parser.parse_args(arguments)
    if a.model is None and a.memory is None:
        parser.error("give a model, or --memory")
    with tempfile.TemporaryDirectory() as name:
        found = memory(a, Path(name)) if a.memory else speed(a, Path(name))
    print(json.dumps(found, indent=1) if a.json else described(found))
    return 0


def described(found: dict[str, Any]) -> str:
    """A line for each."""
    rows = found.pop("after", [])
    lines = [
        f"{row['pictures']:>7,} pictures  {row['main']:>7,.0f} MB  readers {row['readers']:>7,.0f} MB" for row in rows
    ]
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in found.items())])


# Speed


def speed(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Pictures per second of both, in turn."""
    import torch

    from converter.evaluation.dataset import read_dataset
    from converter.evaluation.question import question_of
    from converter.glip.detect.detector import Detector
    from converter.glip.task.evaluate import evaluate
    from converter.glip.task.task import GLIPTask
    from converter.parity.family import Asked

    write(folder, a.pictures, photograph)
    detector = Detector.from_pretrained(a.model)
    question = question_of("speed", "own", read_dataset(folder / "annotations.json"), folder / "images")
    task = GLIPTask.of("own", question.classes, Asked("official"), detector.tokenizer, detector.settings)
    prepared = [task.read(folder / "images" / picture.file_name) for picture in question.dataset.pictures]
    run = task.runner(detector.model)
    run(prepared[:1])

    def whole() -> None:
        evaluate(detector, folder / "annotations.json", folder / "images", batch=a.batch, workers=a.workers)

    def bare() -> None:
        for picture in prepared:
            run([picture])

    times: dict[str, list[float]] = {"evaluate": [], "bare": []}
    for _ in range(a.repeat):
        times["evaluate"].append(seconds(whole))
        times["bare"].append(seconds(bare))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "pictures": a.pictures,
        "torch threads": torch.get_num_threads(),
        "processors": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "evaluate, pictures/s": round(a.pictures / medians["evaluate"], 3),
        "bare forward, pictures/s": round(a.pictures / medians["bare"], 3),
        "ratio": round(medians["bare"] / medians["evaluate"], 3),
    }


def seconds(do: Callable[[], None]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


# Memory


def memory(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Megabytes in the process and in those that read for it."""
    from converter.evaluation.answer import JOURNAL
    from tests.support.small_folder import small_folder

    write(folder, a.memory, generated)
    model = a.model or small_folder(folder / "small")
    words = [sys.executable, "-m", "converter", "evaluate", model, "--dataset", folder / "annotations.json", "--images",
             folder / "images", "--out", folder / "out", "--batch", a.batch, "--workers", a.workers]  # fmt: skip
    words += ["--setting", "shorter_side=90", "--setting", "score_threshold=0.01"] if a.model is None else []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    process = subprocess.Popen([*map(str, words)], env=environment, stdout=subprocess.DEVNULL)
    rows: list[dict[str, float]] = []
    most = {"main": 0.0, "readers": 0.0}
    done, read_to = 0, 0
    while process.poll() is None:
        now = {"main": resident(process.pid), "readers": sum(map(resident, children(process.pid)))}
        most = {name: max(most[name], now[name]) for name in most}
        with suppress(FileNotFoundError), open(folder / "out" / JOURNAL, "rb") as journal:
            journal.seek(read_to)
            content = journal.read()
            read_to += len(content)
            done += content.count(b"\n")
        if done - 1 >= EVERY * (len(rows) + 1):
            rows.append({"pictures": done - 1, **now})
        time.sleep(0.1)
    return {
        "after": rows,
        "exit code": process.returncode,
        "most, MB": {name: round(value) for name, value in most.items()},
        "boxes": (folder / "out" / "predictions.json").read_bytes().count(b"\n"),
        "pictures/s": round(a.memory / (time.monotonic() - begun), 1),
    }


def resident(pid: int) -> float:
    """Megabytes; 0 of a process that has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


# Pictures


def write(folder: Path, count: int, make: Callable[[int], Image.Image]) -> None:
    """So many, and three boxes in each."""
    (folder / "images").mkdir()
    chance = np.random.default_rng(0)
    images, rows = [], []
    for number in range(1, count + 1):
        picture = make(number)
        picture.save(folder / "images" / f"{number:06}.jpg")
        images.append({"id": number, "file_name": f"{number:06}.jpg", "width": picture.width, "height": picture.height})
        for _ in range(3):
            x, y, w, h = (
                float(side * part) for part, side in zip(chance.uniform(0.1, 0.5, 4), picture.size * 2, strict=True)
            )
            label = int(chance.integers(len(CLASSES))) + 1
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": label, "bbox": [x, y, w, h],
                         "area": w * h, "iscrowd": 0})  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": rows, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def photograph(number: int) -> Image.Image:
    import skimage.data

    return Image.fromarray(getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])()).convert("RGB")


def generated(number: int) -> Image.Image:
    """Noise of a few pixels, enlarged."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(pixels).resize((120, 90) if number % 3 else (90, 120), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    sys.exit(main())
