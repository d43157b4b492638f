"""A second family, brought by another package, is converted, compared, certified and verified by the same commands."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import ROOT
from tests.support.packaging import bill_of

PACKAGE = ROOT / "tests" / "support" / "second_family"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, in which the package is installed."""
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "converter", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as the family's authors save it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"net.in.weight": (3, 8), "net.in.bias": (8,), "net.out.weight": (2, 8), "net.out.bias": (2,)}
    torch.save({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, tmp_path / "old.pth")
    return tmp_path


def test_it_goes_the_whole_way(folder: Path) -> None:
    for command in (
        "convert --src old.pth --dst new.safetensors",
        "capture new.safetensors --dst here.safetensors",
        "parity new.safetensors --reference here.safetensors --mutate all --html page.html",
        "certify new.safetensors --reference here.safetensors --mutate 10",
        "verify new.safetensors",
        "package new.safetensors to-publish",
        "convert --src new.safetensors --dst again.pth --to two-layers-original",
    ):
        done = run(folder, *command.split())
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    old, again = torch.load(folder / "old.pth"), torch.load(folder / "again.pth")
    assert all(torch.equal(old[name], again[name]) for name in old)
    assert bill_of(folder / "to-publish")["metadata"]["component"]["name"].startswith("two-layers (")


def test_its_own_checkpoint_is_taken_wherever_weights_are(folder: Path) -> None:
    for command in (
        "capture old.pth --dst here.safetensors",
        "parity old.pth --reference here.safetensors",
        "certify old.pth --reference here.safetensors --mutate 10",
        "verify old.pth",
        "convert --src old.pth --dst new.safetensors",
        "certify new.safetensors --reference here.safetensors --mutate 10",
    ):
        done = run(folder, *command.split())
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (folder / "old.parity.json").read_bytes() == (folder / "new.parity.json").read_bytes()


def test_a_table_of_ones_own_is_said_to_be_custom(folder: Path) -> None:
    content = json.loads((PACKAGE / "two_layers" / "mappings" / "two-layers-original.json").read_text())
    (folder / "mine.json").write_text(json.dumps(content | {"name": "mine"}))
    run(folder, "convert", "--src", "old.pth", "--dst", "new.safetensors", "--table", "mine.json")
    run(folder, "capture", "new.safetensors", "--dst", "here.safetensors")
    certified = run(folder, "certify", "new.safetensors", "--reference", "here.safetensors", "--mutate", "0")
    sha256 = hashlib.sha256((folder / "mine.json").read_bytes()).hexdigest()
    assert f"custom table 'mine', sha256 {sha256}" in certified.stdout
    assert run(folder, "verify", "new.safetensors").returncode == 8
    assert run(folder, "verify", "new.safetensors", "--accept-table", sha256).returncode == 0


def test_a_fault_in_it_is_found(folder: Path) -> None:
    run(folder, "convert", "--src", "old.pth", "--dst", "new.safetensors")
    run(folder, "capture", "new.safetensors", "--dst", "here.safetensors")
    weights = torch.load(folder / "old.pth")
    weights["net.out.bias"][0] += 1
    torch.save(weights, folder / "old.pth")
    run(folder, "convert", "--src", "old.pth", "--dst", "new.safetensors", "--force")
    compared = ("parity", "new.safetensors", "--reference", "here.safetensors", "--json")
    assert json.loads(run(folder, *compared).stdout)["error"]["type"] == "OtherWeightsError"
    done = run(folder, *compared, "--other-weights")
    report = json.loads(done.stdout)
    assert (done.returncode, report["first"], report["culprits"]) == (1, "net.out", ["second"])


def test_without_its_package_it_is_unknown(folder: Path) -> None:
    run(folder, "convert", "--src", "old.pth", "--dst", "new.safetensors")
    command = [sys.executable, "-m", "converter", "capture", "new.safetensors", "--dst", "x.safetensors"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, "expected one that is known here" in done.stderr) == (7, True)
