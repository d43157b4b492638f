"""The wheel, installed elsewhere and run from another folder, brings everything it needs, and says what it lacks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

from converter.errors import EXTRAS
from converter.grounding.tokenizer import SHIPPED
from tests import ROOT
from tests.support.bare import PIP, bare_environment
from tests.support.tiny import tiny_weights


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [*PIP, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)],
        check=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("bare"), wheel)


def test_the_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # the installed copy, not the checkout that an editable install would offer
    script = """import converter; print(converter.__file__)
from converter.cli import main; main(['lint'], standalone_mode=False); main(['schema', 'lint'])"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, *said = done.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert "glip-official: 60 rules, sound for every variant" in said
    assert '  "$id": "urn:converter:json:lint:1",' in said
    assert {path.name for path in (site / "bin").iterdir()} == {"convert", "converter"}


def test_the_vocabulary_and_whose_it_is_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("converter/grounding/bert-base-uncased-vocab.txt") == SHIPPED.read_bytes()
        (notice,) = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/NOTICE")]
        assert "The Google AI Language Team" in archive.read(notice).decode()


def test_extras_are_those_of_the_package() -> None:
    """What messages say is missing, and what pip would then install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = {
        extra: {re.split("[<>=]", requirement)[0] for requirement in requirements}
        for extra, requirements in project["optional-dependencies"].items()
        if extra != "test"
    }
    assert {extra: set(packages.values()) for extra, packages in EXTRAS.items()} == stated


def run(bare: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([bare, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


WITHOUT = {
    "detect": (
        ["detect", "model.safetensors", "street.jpg", "--prompt", "dog."],
        8,
        "detect needs torch, pillow, tokenizers and huggingface_hub, which are not installed: "
        "pip install 'converter[detect]'",
    ),
    "evaluate": (
        ["evaluate", "model.safetensors", "--dataset", "mine.json", "--images", "."],
        8,
        "evaluate needs torch, pillow, tokenizers, huggingface_hub and faster-coco-eval, which are not installed: "
        "pip install 'converter[evaluate]'",
    ),
    "a model of the Hub": (
        ["inspect", "org/name"],
        9,
        "inspect needs huggingface_hub, which is not installed: pip install 'converter[hub]'",
    ),
    "parity": (
        ["parity", "model.safetensors", "--reference", "capture.safetensors"],
        8,
        "parity needs torch, which is not installed: pip install 'converter[model]'",
    ),
    "draft": (
        ["draft", "--src", "tiny.pth", "--target", "tiny.pth", "--out", "tables"],
        8,
        "draft needs scipy, which is not installed: pip install 'converter[draft]'",
    ),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_what_is_missing_is_told_at_once(what: str, bare: Path, tmp_path: Path) -> None:
    arguments, code, said = WITHOUT[what]
    torch.save(tiny_weights(), tmp_path / "tiny.pth")
    done = run(bare, tmp_path, "-m", "converter", *arguments)
    assert (done.returncode, done.stderr) == (code, f"error: {said}\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Detector", "Detector needs torch, pillow, tokenizers and huggingface_hub, which are not installed: "
         "pip install 'converter[detect]'"),
        ("GLIP", "GLIP needs torch, which is not installed: pip install 'converter[model]'"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_in_python(name: str, said: str, bare: Path, tmp_path: Path) -> None:
    done = run(bare, tmp_path, "-c", f"from converter.glip import {name}")
    assert done.stderr.splitlines()[-1] == f"converter.errors.MissingPackageError: converter.glip.{said}"


def stranger(folder: Path, name: str, version: str) -> None:
    """A wheel that holds nothing."""
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def test_the_command_that_is_told_keeps_the_converter_that_is_there(bare: Path, tmp_path: Path) -> None:
    """Another package of that name is on PyPI, with a higher version."""
    stranger(tmp_path, "converter", "1.0.0")
    stranger(tmp_path, "huggingface_hub", "2.0.0")
    command = [*PIP, "--python", str(bare), "install", "--no-index", "--find-links", str(tmp_path)]
    done = subprocess.run([*command, "--dry-run", "--report", "-", "converter[hub]"], capture_output=True, text=True)
    assert [new["metadata"]["name"] for new in json.loads(done.stdout)["install"]] == ["huggingface_hub"]


def test_a_copy_that_is_not_installed_tells_what_works_for_it(bare: Path, tmp_path: Path) -> None:
    """From a checkout, and from a folder that holds the code alone."""
    (copy := tmp_path / "copy").mkdir()
    (copy / "converter").symlink_to(ROOT / "converter")
    hidden = "import importlib.metadata as m, runpy, sys\ndef version(name): raise m.PackageNotFoundError\n"
    program = f"{hidden}m.version = version\nsys.path.insert(0, sys.argv.pop(1))\nfrom converter.glip import GLIP"
    done = run(bare, tmp_path, "-c", program, str(ROOT))
    assert done.stderr.splitlines()[-1].endswith(f"not installed: pip install '{ROOT}[model]'")
    done = run(bare, tmp_path, "-c", program, str(copy))
    assert done.stderr.splitlines()[-1].endswith("not installed: pip install torch")
