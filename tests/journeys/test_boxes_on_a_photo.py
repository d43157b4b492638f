"""A researcher has a `.pth` and a photo, and no network: three commands later the boxes are drawn into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import skimage.data
from click.testing import CliRunner
from PIL import Image

import converter
from converter.cli import main
from tests.support.drawings import is_drawn
from tests.support.saved_glip import save
from tests.support.small_formats import small_tables
from tests.support.small_glip import CONFIG, small_glip

WORDS = 30522  # as many as BERT has, and every released GLIP
# any use of a network ends the program, whatever it would have made of the failure
NO_NETWORK = """
import os, sys

def ends(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(99)

sys.addaudithook(ends)
"""
Run = Callable[..., str]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """converter as it is installed, but with tables in which a small model is the one that is known."""
    site = tmp_path_factory.mktemp("site")
    copytree(Path(converter.__file__).parent, site / "converter", ignore=ignore_patterns("mappings"))
    with small_tables(site / "converter" / "mappings", "small", {**CONFIG, "vocab_size": WORDS}):
        save(small_glip(vocab_size=WORDS), site / "small.safetensors")
        arguments = ["convert", "--src", site / "small.safetensors", "--dst", site / "official.pth"]
        made = CliRunner().invoke(main, [*map(str, arguments), "--to", "glip-official"])
        assert made.exit_code == 0, made.output
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    return site


@pytest.fixture
def run(program: Path, tmp_path: Path) -> Run:
    """A command typed in the researcher's folder; what it prints."""
    (tmp_path / "official.pth").symlink_to(program / "official.pth")
    # long and low, so that the model has little to look at
    Image.fromarray(skimage.data.rocket()[200:280]).save(tmp_path / "street.jpg")

    def typed(*arguments: str) -> str:
        settings = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "converter", *arguments],
            cwd=tmp_path,
            env={**settings, "PYTHONPATH": str(program)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return typed


def test_three_commands_without_a_network(run: Run, tmp_path: Path) -> None:
    assert "convert --src official.pth" in run("inspect", "official.pth")

    run("convert", "--src", "official.pth", "--dst", "glip.safetensors")

    prompt = ("--prompt", "person. traffic light.", "--threshold", "0.3", "--out", "found")
    said = run("detect", "glip.safetensors", "street.jpg", *prompt)
    assert "traffic light" in said
    (image,) = json.loads((tmp_path / "found" / "detections.json").read_text())["images"]
    assert len(image["boxes"]) > 0
    assert is_drawn(tmp_path / "found" / "street.jpg", tmp_path / "street.jpg")


def test_the_guard_notices_a_network(program: Path) -> None:
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(program)}, text=True)
    assert done.returncode == 99
