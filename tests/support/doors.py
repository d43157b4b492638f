"""Every door through which a stranger's file comes in, each opened in a process of its own.

`python -m tests.support.doors FOLDER` imports everything, opens every door once with the sound model in FOLDER, and
then reads `[door, path]` from its standard input, a line of JSON each. A fork of it opens that door, so that what is
measured is what the file costs, not what the imports do: the time of the processor, whatever else the machine did
meanwhile, and the kernel's own peak of resident memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

DOORS = (
    "open_checkpoint", "from_pretrained", "get_model", "load_capture", "inspect", "convert", "explain", "detect",
    "parity", "reference", "certify", "verify", "diff", "compare", "package", "publish",
)  # fmt: skip
SECONDS, MEBIBYTES = 1.0, 200.0  # of the processor, and of memory, that a file may cost which is refused
_LONGEST = 60  # seconds of the processor, after which the kernel ends a door


@dataclass(frozen=True)
class Opened:
    """What became of one file at one door: `said` is the refusal, or None where there was none."""

    said: str | None
    error: str
    seconds: float
    growth: float


@contextmanager
def doors_of(folder: Path) -> Iterator[Callable[[str, Path], Opened]]:
    """What opens a file through a door. `folder` holds `model`, as `small_folder` makes it, a capture and a picture."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", __name__, str(folder)]
    with subprocess.Popen(command, text=True, env=environment, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def through(door: str, path: Path) -> Opened:
            print(json.dumps([door, str(path)]), file=asked, flush=True)
            return Opened(*json.loads(answers.readline()))

        yield through
        asked.close()


def _doors(folder: Path) -> dict[str, Callable[[Path], object]]:
    from click.testing import CliRunner

    from converter.checkpoint import open_checkpoint
    from converter.cli import main
    from converter.errors import ConverterError
    from converter.glip import GLIP, get_model
    from converter.parity.capture import load_capture

    model, capture, picture, out = (str(folder / name) for name in ("model", "capture.safetensors", "p.png", "out"))

    def command(*arguments: str) -> Callable[[Path], object]:
        def run(path: Path) -> object:
            result = CliRunner().invoke(main, [str(path) if part == "FILE" else part for part in arguments])
            if result.exception and not isinstance(result.exception, SystemExit):
                raise result.exception
            if result.exit_code > 1:
                raise ConverterError(result.stderr.strip())
            return result

        return run

    def read(path: Path) -> None:
        with open_checkpoint(path) as checkpoint:
            for name in (*checkpoint.tensors, *checkpoint.unsupported, *checkpoint.objects):
                checkpoint.read(name)

    opened = {
        "open_checkpoint": read,
        "from_pretrained": GLIP.from_pretrained,
        "get_model": lambda path: get_model("swin-t_glip-pre_3rdparty", pretrained=path),
        "load_capture": lambda path: load_capture(path).close(),
        "inspect": command("inspect", "FILE"),
        "convert": command("convert", "--src", "FILE", "--dst", f"{out}.safetensors", "--dry-run"),
        "explain": command("explain", "head.bias", "--src", "FILE"),
        "detect": command("detect", "FILE", picture, "--prompt", "person.", "--out", out, "--force"),
        "parity": command("parity", "FILE", "--reference", capture),
        "reference": command("parity", model, "--reference", "FILE"),
        "certify": command("certify", "FILE", "--reference", capture, "--mutate", "1"),
        "verify": command("verify", "FILE"),
        "diff": command("diff", "FILE", model, "--no-table"),
        "compare": command("compare", "FILE", capture),
        "package": command("package", "FILE", f"{out}-package", "--dry-run"),
        "publish": command("publish", "FILE", "somebody/model", "--dry-run"),
    }
    return {door: opened[door] for door in DOORS}


def _memory(field: str) -> float:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024  # MiB


def _open(door: Callable[[Path], object], path: Path) -> Opened:
    import resource

    from converter.errors import ConverterError

    resource.setrlimit(resource.RLIMIT_CPU, (_LONGEST, _LONGEST))
    with open("/proc/self/clear_refs", "w", encoding="ascii") as peak:
        peak.write("5")
    before, start = _memory("VmRSS"), time.process_time()
    said, error = None, ""
    try:
        door(path)
    except ConverterError as refused:
        said = str(refused)
    except BaseException as broken:
        error = repr(broken)[:2000]
    return Opened(said, error, time.process_time() - start, _memory("VmHWM") - before)


def _forked(door: Callable[[Path], object], path: Path) -> Opened:
    reading, writing = os.pipe()
    if not (child := os.fork()):
        opened = _open(door, path)
        with open(writing, "w", encoding="utf-8") as answer:
            json.dump([opened.said, opened.error, opened.seconds, opened.growth], answer)
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as answer:
        text = answer.read()
    status = os.waitpid(child, 0)[1]
    return Opened(*json.loads(text)) if text else Opened(None, f"the process ended with status {status}", 0, 0)


def main(folder: Path) -> None:
    doors = _doors(folder)
    for door in doors.values():  # imports and tables, before anything is measured
        with suppress(Exception):  # some take other files
            door(folder / "model")
    for line in sys.stdin:
        door, path = json.loads(line)
        opened = _forked(doors[door], Path(path))
        print(json.dumps([opened.said, opened.error, opened.seconds, opened.growth]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
