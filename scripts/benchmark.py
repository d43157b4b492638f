"""How fast, how much CPU and memory: start-up beside the bare interpreter, and a conversion beside `cp` of its output.

    python scripts/benchmark.py glip-t.pth --repeat 5
    python scripts/benchmark.py --make glip-t   # writes one with optimizer and moving average, 3.7 GB, and removes it

Every contender runs in a process of its own, in turn, with the checkpoint in the page cache and the bytecode of all
modules on the disk, as where a package was installed; a conversion and `cp` end with their output on the disk (fsync).
Printed are medians, and the smallest: other programs only add to it. RssAnon, the memory that is the process's own, is
sampled every 5 ms; printed is its peak above that of the interpreter. `cp` copies the file that the conversion writes;
the usual script is torch.load (mmap), taking the prefix off the keys, and safetensors' save_file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthetic_checkpoint import MODELS, write_checkpoint

IDLE = "import time; time.sleep(0.1)"  # long enough to be sampled
USUAL_SCRIPT = """
import os, sys, torch
from safetensors.torch import save_file
weights = torch.load(sys.argv[1], map_location="cpu", mmap=True, weights_only=True)["model"]
save_file({k.removeprefix("module."): v for k, v in weights.items()}, sys.argv[2])
os.fsync(os.open(sys.argv[2], os.O_RDWR))
"""


@dataclass(frozen=True)
class Run:
    """One run of one contender: seconds and MiB."""

    wall: float
    user: float
    anonymous: float


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run `command`, sampling its own memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    peak = 0
    ended = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]))

    sampler = threading.Thread(target=sample)
    sampler.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    ended.set()
    sampler.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with {process.returncode}")
    return Run(wall, usage.ru_utime, peak / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--make", choices=MODELS, help="write this model's checkpoint first, as the trainer saves it")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default: beside the checkpoint, or here")
    arguments = parser.parse_args()
    if (arguments.checkpoint is None) == (arguments.make is None):
        parser.error("give a checkpoint, or --make")
    beside = arguments.checkpoint.parent if arguments.checkpoint else Path()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder or beside)).resolve()
    try:
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            checkpoint = folder / f"{arguments.make}.pth"
            write_checkpoint(arguments.make, checkpoint, weights_only=False)
        print(
            f"{_machine()}; {checkpoint.name}, {checkpoint.stat().st_size / 1e9:.2f} GB; {arguments.repeat} runs each"
        )
        _report(checkpoint, folder, arguments.repeat)
    finally:
        shutil.rmtree(folder)


def _report(checkpoint: Path, folder: Path, repeat: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    reference, out = folder / "reference.safetensors", folder / "out.safetensors"
    python = [sys.executable]
    convert = [*python, "-m", "converter", "convert", str(checkpoint)]
    subprocess.run([*convert, str(reference)], check=True, stdout=subprocess.DEVNULL, env=environment)
    starting = {
        "python -c pass": [*python, "-c", "pass"],
        "converter --help": [*python, "-m", "converter", "--help"],
        "converter inspect": [*python, "-m", "converter", "inspect", str(checkpoint)],
        "convert --dry-run": [*convert, str(out), "--dry-run"],
    }
    writing = {
        "cp + fsync": ["sh", "-c", f"cp '{reference}' '{out}' && sync '{out}'"],
        "usual script": [*python, "-c", USUAL_SCRIPT, str(checkpoint), str(out)],
        "convert": [*convert, str(out)],
    }
    idle = measure([*python, "-c", IDLE], environment).anonymous
    _print(_in_turn(starting, out, repeat, environment), idle)
    walls = _print(_in_turn(writing, out, repeat, environment), idle)
    for other in ("cp + fsync", "usual script"):
        medians, smallest = (how(walls["convert"]) / how(walls[other]) for how in (statistics.median, min))
        print(f"convert / {other}: {medians:.2f} (smallest: {smallest:.2f})")


def _in_turn(
    contenders: dict[str, list[str]], out: Path, repeat: int, environment: dict[str, str]
) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for number in range(repeat + 1):
        for name, command in contenders.items():
            out.unlink(missing_ok=True)
            os.sync()  # nobody pays for what another left to be written
            run = measure(command, environment)
            if number:  # the first one brings files into the cache
                runs[name].append(run)
    return runs


def _print(runs: dict[str, list[Run]], idle: float) -> dict[str, list[float]]:
    """A row for each contender; the wall seconds of each."""
    print(f"\n{'':20}{'wall s':>9}{'smallest':>10}{'user s':>9}{'MiB above the interpreter':>27}")
    for name, of_one in runs.items():
        wall, user, anonymous = (
            statistics.median(getattr(run, field) for run in of_one) for field in ("wall", "user", "anonymous")
        )
        above = "" if name in ("cp + fsync", "python -c pass") else f"{anonymous - idle:.0f}"
        print(f"{name:20}{wall:9.3f}{min(run.wall for run in of_one):10.3f}{user:9.2f}{above:>27}")
    return {name: [run.wall for run in of_one] for name, of_one in runs.items()}


def _machine() -> str:
    """The processor, how many of it, and how many programs want it now."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")
    return f"{os.cpu_count()} x {model}, load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
