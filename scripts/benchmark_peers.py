"""OpenMMLab's two converters beside ours on the same official checkpoint, and what each makes of faulty ones.

    scripts/peers.sh --collect-only -q   # makes .peers, where it runs
    .peers/bin/python scripts/benchmark_peers.py glip-t.pth --repeat 5

Two tables in Markdown. The first: medians of wall seconds, user CPU seconds (also of what a converter starts), and the
peak of the memory that is the process's own, each contender in a process of its own, in turn, its output on the disk.
The second: for a GLIP-T checkpoint with one fault at a time, the exit code, and how the file that was written differs
from the state dict of the model that it is for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from benchmark import Run, measure

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = ROOT / "tests" / "data" / "peers"
FORMATS = {"mmpretrain-glip": "mmpretrain_t", "mmdet-glip": "mmdet_t"}
QKV = "module.backbone.body.layers.0.blocks.0.attn.qkv.weight"
UNKNOWN = "module.backbone.body.extra.weight"

# Runs a converter as it is and puts what it wrote on the disk. torchvision is imported first as the tests do it.
AS_A_SCRIPT = """
import os, runpy, sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
from tests.peers.packages import package
package("torchvision")
folder, sys.argv = Path(sys.argv[-1]).parent, sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
try:
    while True:
        os.wait()  # one of them renames its file in a process that it does not wait for
except ChildProcessError:
    pass
for path in folder.iterdir():
    os.fsync(os.open(path, os.O_RDWR))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a GLIP-T in the official format, with the prefix module.")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default: beside the checkpoint")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder or arguments.checkpoint.parent))
    try:
        print_times(arguments.checkpoint, folder / "out", arguments.repeat)
        print_faults(arguments.checkpoint, folder)
    finally:
        shutil.rmtree(folder)


def contenders(source: Path, folder: Path) -> dict[str, tuple[str, list[str]]]:
    """By name: the format it writes, and its command. A converter writes into `folder`, under a name of its choice."""
    script = [sys.executable, "-W", "ignore", "-c", AS_A_SCRIPT, str(ROOT)]
    convert = [sys.executable, "-m", "converter", "convert", "--src", str(source), "--dst", str(folder / "out.pth")]
    mmpretrain, mmdet = tool("mmpretrain", "glip_to_mmpretrain.py"), tool("mmdet", "glip_to_mmdet.py")
    return {
        "glip_to_mmpretrain.py": ("mmpretrain-glip", [*script, mmpretrain, str(source), str(folder / "out.pth")]),
        "convert --to mmpretrain-glip": ("mmpretrain-glip", [*convert, "--to", "mmpretrain-glip"]),
        "glip_to_mmdet.py": ("mmdet-glip", [*script, mmdet, str(source), "--dst", str(folder / "out.pth")]),
        "convert --to mmdet-glip": ("mmdet-glip", [*convert, "--to", "mmdet-glip"]),
    }


def tool(package: str, name: str) -> str:
    """A converter as it comes in the wheel of a package."""
    return str(distribution(package).locate_file(f"{package}/.mim/tools/model_converters/{name}"))


def print_times(source: Path, folder: Path, repeat: int) -> None:
    runs: dict[str, list[Run]] = {}
    for _ in range(repeat):
        for name, (_, command) in contenders(source, folder).items():
            fresh(folder)
            os.sync()  # nobody pays for what another left to be written
            runs.setdefault(name, []).append(measure(command))
    print(f"{source.stat().st_size / 2**30:.2f} GiB, medians of {repeat}:\n")
    print("| converter | wall s | user s | own MiB |\n|---|---|---|---|")
    for name, of_one in runs.items():
        wall, user, own = (statistics.median(getattr(r, field) for r in of_one) for field in Run.__annotations__)
        print(f"| {name} | {wall:.1f} | {user:.1f} | {own:.0f} |", flush=True)


def print_faults(source: Path, folder: Path) -> None:
    print("\n| checkpoint | converter | exit code | written | said last |\n|---|---|---|---|---|")
    faulty = folder / "faulty.pth"
    for fault in faults(source, faulty):
        for name, (target, command) in contenders(faulty, folder / "out").items():
            fresh(folder / "out")
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            said = last_line(ended.stderr if ended.returncode else ended.stdout).replace(str(folder), "...")
            print(f"| {fault} | {name} | {ended.returncode} | {written(folder / 'out', target)} | {said} |", flush=True)


def faults(source: Path, path: Path) -> Iterator[str]:
    """Write one faulty checkpoint after another to `path`, and say what is wrong with it."""
    weights: dict[str, torch.Tensor] = torch.load(source, map_location="cpu", weights_only=True, mmap=True)["model"]

    def save(changed: dict[str, Any]) -> None:
        torch.save({"model": changed}, path)

    save(weights)
    yield "sound"
    save({key.removeprefix("module."): tensor for key, tensor in weights.items()})
    yield "no prefix `module.`"
    save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(1000, 512)})
    yield "of another model"
    save({**weights, UNKNOWN: torch.zeros(3)})
    yield f"one key more, `{UNKNOWN}`"
    save({key: tensor for key, tensor in weights.items() if key != QKV})
    yield f"without `{QKV}`"
    save({**weights, QKV: weights[QKV][:-1].clone()})
    yield f"a row less in `{QKV}`"


def written(folder: Path, target: str) -> str:
    """How what is in `folder` differs from the state dict that it is for."""
    if not (files := list(folder.iterdir())):
        return "nothing"
    (file,) = files
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    found = {key: list(tensor.shape) for key, tensor in content.get("state_dict", content).items()}
    # PyTorch loads (1,) where a model has (), so they are the same here.
    found = {key: shape or [1] for key, shape in found.items()}
    expected = {k: shape or [1] for k, shape, _ in json.loads((EXPECTED / f"{FORMATS[target]}.json").read_text())}
    differences = {
        "missing": len(expected.keys() - found.keys()),
        "unknown to the model": len(found.keys() - expected.keys()),
        "of another shape": sum(found[key] != expected[key] for key in expected.keys() & found.keys()),
    }
    wrong = ", ".join(f"{count} {what}" for what, count in differences.items() if count)
    return f"{len(found)} tensors: {wrong or 'the model, whole'}"


def last_line(text: str) -> str:
    """What a user sees last, in a cell of a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160].replace("|", "\\|") if lines else ""


def fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


if __name__ == "__main__":
    main()
