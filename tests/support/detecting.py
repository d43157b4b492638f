"""Runs of `converter detect` as processes: some pictures, the small model, and a place for results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import skimage.data
from PIL import Image

from tests.support.jobs import Listing, listing
from tests.support.program import Program, Run
from tests.support.small_folder import small_folder

MODULES = (
    "converter.cli", "converter.cli.detect_run", "converter.cli.detect_folder", "converter.glip.detect.detector",
    "converter.grounding.draw", "converter.glip.weights", "converter.hub.resolve", "converter.writing.in_memory",
    "torch._dynamo", "torch.backends.mkldnn", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "tokenizers", "tqdm",
    "multiprocessing.synchronize",
)  # fmt: skip
PROMPT = ("--prompt", "person. dog.", "--threshold", "0.3", "--max-detections", "3")


def write_pictures(folder: Path, count: int) -> list[Path]:
    """So many, every other one a JPEG, one in three smaller."""
    folder.mkdir(exist_ok=True)
    names = ("rocket", "astronaut", "coffee", "chelsea")
    paths = []
    for number in range(count):
        picture = Image.fromarray(getattr(skimage.data, names[number % 4])()).convert("RGB")
        paths.append(folder / f"{number}.{('jpg', 'png')[number % 2]}")
        picture.resize((80, 100) if number % 3 == 2 else (120, 90)).save(paths[-1])
    return paths


@dataclass(frozen=True)
class Stage:
    """A folder with `small`, a model, and `photos`; what is run there writes to `found`."""

    program: Program
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "found"

    def start(self, *options: object, before: str = "") -> Run:
        prompt = PROMPT[2:] if "--prompt" in options else PROMPT
        command = ("detect", "small", "photos", *prompt, *options)
        return self.program.start(*command, cwd=self.folder, before=before)

    def run(self, *options: object, before: str = "") -> Run:
        run = self.start(*options, before=before)
        run.release()
        return run.wait()

    def found(self) -> Listing:
        """What is in the folder of results."""
        return listing(self.out)


@contextmanager
def stage(folder: Path, count: int) -> Iterator[Stage]:
    """A context with such a folder and a program."""
    small_folder(folder / "small")
    write_pictures(folder / "photos", count)
    with Program(MODULES) as program:
        yield Stage(program, folder)


def at_entry(number: int, what: str) -> str:
    """Python that does something as the number-th entry is about to be kept."""
    return f"""
import os, signal, time
from converter.writing.journal import Journal
add, count = Journal.add, [0]
def stop(self, result):
    count[0] += 1
    if count[0] == {number}:
        {what}
    add(self, result)
Journal.add = stop
"""


DETECTED = """
from converter.glip.detect.detector import Detector
detect = Detector.detect
def count(self, images, *rest):
    print("batch of", len(images), "after", os.fstat(1).st_size, "bytes", file=sys.stderr)
    return detect(self, images, *rest)
import os, sys
Detector.detect = count
"""  # each batch is told, and how much was printed before it
