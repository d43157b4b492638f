"""A researcher fine-tunes a step, saves, loads again, detects with it and converts it back: each a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image

from tests import ROOT
from tests.support.small_folder import small_folder
from tests.support.small_formats import small_tables
from tests.support.small_glip import CONFIG

# the size of the model alone is not a user's: tables in which a small one is a variant
TABLES = "import sys; from pathlib import Path; from converter.mapping import folders; "
TABLES += "folders.mappings_folder = lambda: Path(sys.argv[1]); "
RUNS = TABLES + "from converter.cli import main; main(sys.argv[2:])"
LOADS = """
import torch
from converter import GLIP
from tests.support.small_glip import random_inputs

def outputs(model):
    with torch.no_grad():
        return [level for part in model(*random_inputs()) for level in part]
"""
STEP = """
model = GLIP.from_pretrained("small").train()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
torch.cat([level.flatten() for level in model(*random_inputs()).token_logits]).sigmoid().mean().backward()
optimizer.step()
torch.save(outputs(model), "outputs.pt")
print(model.save_pretrained("tuned"))
"""
AGAIN = """
expected = torch.load("outputs.pt")
for path in sys.argv[2:]:
    found = outputs(GLIP.from_pretrained(path))
    print(path, all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)))
"""
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A process in the folder of the journey; what it prints."""
    with small_tables(tmp_path / "mappings", "small", CONFIG):
        small_folder(tmp_path / "small")
    Image.fromarray(skimage.data.astronaut()).resize((120, 90)).save(tmp_path / "street.png")

    def process(code: str, *arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, str(tmp_path / "mappings"), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return process


def test_a_step_is_kept_and_what_was_trained_can_be_used_and_converted(run: Run, tmp_path: Path) -> None:
    assert run(TABLES + LOADS + STEP) == "tuned\n"

    said = run(RUNS, "convert", "--src", "tuned", "--dst", "official.pth", "--to", "glip-official")
    assert "tensors differ from 'small'" in said
    assert run(TABLES + LOADS + AGAIN, "tuned", "official.pth") == "tuned True\nofficial.pth True\n"

    prompt = ("street.png", "--prompt", "person. dog.", "--threshold", 0.3, "--json")
    before, after = (json.loads(run(RUNS, "detect", model, *prompt)) for model in ("small", "tuned"))
    assert after["images"][0]["scores"] != before["images"][0]["scores"] != []
    assert torch.load(tmp_path / "official.pth")["model"]
