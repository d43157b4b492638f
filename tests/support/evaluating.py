"""A data set for the small model: pictures, boxes in them that mean nothing, and the command that evaluates on them."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import skimage.data
from click.testing import CliRunner, Result
from PIL import Image

from converter.cli import main
from tests.support.program import Program, Run
from tests.support.saved_glip import save
from tests.support.small_folder import small_folder
from tests.support.small_glip import small_glip

PICTURES = 6
CLASSES = ((3, "person"), (7, "dog"))
# pictures of 90 pixels, as the official 800 take seconds; nothing of what so small a model finds is lost
QUICK = ("--setting", "shorter_side=90", "--setting", "score_threshold=0.01")


def evaluation(*arguments: object) -> Result:
    """`converter evaluate` in this process."""
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def as_json(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = evaluation(*arguments, "--json")
    assert result.exit_code == code, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def write_pictures(folder: Path, count: int = PICTURES, names: str = "{:03}.jpg") -> list[dict[str, Any]]:
    """So many JPEGs of photographs; their rows in annotations. One in three is upright."""
    folder.mkdir(parents=True, exist_ok=True)
    photographs = ("rocket", "astronaut", "coffee", "chelsea")
    rows = []
    for number in range(count):
        width, height = (80, 100) if number % 3 == 2 else (120, 90)
        name = names.format(number + 1)
        photograph = Image.fromarray(getattr(skimage.data, photographs[number % 4])()).convert("RGB")
        photograph.resize((width, height)).save(folder / name)
        rows.append({"id": number + 1, "file_name": name, "width": width, "height": height})
    return rows


def annotated(images: Sequence[Mapping[str, Any]], classes: Sequence[tuple[int, str]] = CLASSES) -> dict[str, Any]:
    """Annotations of pictures: three boxes in each."""
    chance = random.Random(0)
    rows = []
    for image in images:
        for _ in range(3):
            w, h = (round(chance.uniform(10, 50), 1) for _ in range(2))
            x, y = round(chance.uniform(0, 80 - w), 1), round(chance.uniform(0, 80 - h), 1)
            label = classes[int(chance.random() * len(classes))][0]
            rows.append({"id": len(rows) + 1, "image_id": image["id"], "category_id": label, "bbox": [x, y, w, h],
                         "area": w * h, "iscrowd": 0})  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in classes]
    return {"images": list(images), "annotations": rows, "categories": categories}


def write_data(folder: Path, count: int = PICTURES) -> Path:
    """`small`, a model; `images`; and `mine.json`, the annotations of these. The folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save(small_glip().float(), small_folder(folder / "small") / "model.safetensors")
    (folder / "mine.json").write_text(json.dumps(annotated(write_pictures(folder / "images", count))))
    return folder


def options(folder: Path, dataset: object = None) -> list[object]:
    """What evaluates on it, without processes that read."""
    return ["--dataset", dataset or folder / "mine.json", "--images", folder / "images", *QUICK, "--workers", 0]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder of results, at any depth."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


MODULES = (
    "converter.cli", "converter.cli.evaluate_run", "converter.glip.task.task", "converter.glip.detect.detector",
    "converter.glip.weights", "faster_coco_eval", "torch._dynamo", "torch.backends.mkldnn", "torch.distributed",
    "torch.utils.data", "PIL.JpegImagePlugin", "tokenizers", "tqdm", "multiprocessing.synchronize",
)  # fmt: skip
ARGUMENTS = ("evaluate", "small", "--dataset", "mine.json", "--images", "images", *QUICK)

# Python that calls `act()` as a process is about to compute its next picture; `count`: how many it has computed
AT_PICTURE = """
import os, signal, time
from converter.glip.task.task import _Runner
real, count = _Runner.__call__, 0
def call(self, pictures):
    global count
    act()
    count += 1
    return real(self, pictures)
_Runner.__call__ = call
"""


def at_picture(number: int, what: str) -> str:
    """Python that does something as a process is about to compute its number-th picture."""
    return f"def act():\n    if count == {number - 1}:\n        {what}\n{AT_PICTURE}"


class Group:
    """A context with servers of programs, so that several processes can be run at once in a folder."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._programs = [self._stack.enter_context(Program(MODULES)) for _ in range(count)]

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self, *options: object, before: str = "", at: int = 0) -> Run:
        """A process that has begun, by one of the servers."""
        run = self._programs[at].start(*ARGUMENTS, *options, cwd=self.folder, before=before)
        run.release()
        return run

    def run(self, *options: object, before: str = "") -> Run:
        """A process that has ended."""
        return self.start(*options, before=before).wait()

    def ranks(self, count: int, *options: object, before: Mapping[int, str] | None = None) -> list[Run]:
        """Processes as torchrun starts them, once all have ended. `before`: by rank."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        runs = []
        for rank in range(count):
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            found = {name: str(value) for name, value in names.items()}
            begin = f"import os; os.environ.update({found!r})\n{(before or {}).get(rank, '')}"
            runs.append(self.start(*options, before=begin, at=rank))
        return [run.wait() for run in runs]

    def left(self) -> list[int]:
        """Processes that work in the folder, once they have had time to end."""
        for _ in range(60):
            if not (found := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_of(pid)]):
                break
            time.sleep(0.1)
        return found

    def _is_of(self, pid: int) -> bool:
        with suppress(OSError):
            return os.readlink(f"/proc/{pid}/cwd") == str(self.folder)
        return False
