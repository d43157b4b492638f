"""How fast, how much CPU and memory: a conversion beside `cp` of the same bytes and beside the usual script.

    python scripts/benchmark.py glip-t.pth --repeat 5

Every contender runs in a process of its own, in turn, with the checkpoint in the page cache, and ends with its
output on the disk (fsync). Printed are medians: wall seconds, user CPU seconds, and the peak of RssAnon, the memory
that is the process's own, sampled every 5 ms. `cp` copies the file that the conversion writes; the script is torch.load
(mmap), taking the prefix off the keys, and safetensors' save_file.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


def measure(command: Sequence[str]) -> Run:
    """Run `command`, sampling its own memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
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
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default: beside the checkpoint")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder or arguments.checkpoint.parent))
    try:
        runs = _runs(arguments.checkpoint, folder, arguments.repeat)
    finally:
        shutil.rmtree(folder)
    print(f"{'':24}{'wall s':>9}{'user s':>9}{'own MiB':>9}   medians of {arguments.repeat}")
    medians = {}
    for name, of_one in runs.items():
        row = [statistics.median(getattr(run, field) for run in of_one) for field in ("wall", "user", "anonymous")]
        medians[name] = row[0]
        print(f"{name:24}{row[0]:9.2f}{row[1]:9.2f}{row[2]:9.0f}")
    for other in ("cp", "torch.load + save_file"):
        print(f"convert / {other}: {medians['convert'] / medians[other]:.2f}")


def _runs(checkpoint: Path, folder: Path, repeat: int) -> dict[str, list[Run]]:
    reference, out = folder / "reference.safetensors", folder / "out.safetensors"
    convert = [sys.executable, "-m", "converter", "convert", "--src", str(checkpoint), "--dst"]
    subprocess.run([*convert, str(reference)], check=True, stdout=subprocess.DEVNULL)
    contenders = {
        "cp": ["sh", "-c", f"cp '{reference}' '{out}' && sync '{out}'"],
        "torch.load + save_file": [sys.executable, "-c", USUAL_SCRIPT, str(checkpoint), str(out)],
        "convert": [*convert, str(out)],
    }
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for _ in range(repeat):
        for name, command in contenders.items():
            out.unlink(missing_ok=True)
            os.sync()  # nobody pays for what another left to be written
            runs[name].append(measure(command))
    return runs


if __name__ == "__main__":
    main()
