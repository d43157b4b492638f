"""A maintainer of CI: the evidence of a conversion passes, until something changes a tensor, which is then named."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import skimage.data
import torch
from click.testing import CliRunner
from PIL import Image

from converter.cli import main
from tests.support.bert_vocabulary import small_vocabulary
from tests.support.changed_file import flip
from tests.support.program import CONVERTS, Program, Run
from tests.support.small_folder import SETTINGS
from tests.support.small_formats import small_tables
from tests.support.small_glip import CONFIG, small_glip

TENSOR = "text_encoder.layers.1.attention.qkv.weight"
SMALL = """
from pathlib import Path
from converter.mapping import documents, folders
folders.mappings_folder = lambda: Path({folder!r})
documents._listing.cache_clear()
"""


class Job:
    """A folder, and the program in it, whose tables are of the small model."""

    def __init__(self, folder: Path, program: Program) -> None:
        self.folder, self._program = folder, program
        self._before = SMALL.format(folder=str(folder / "mappings"))

    def run(self, *command: str) -> Run:
        """A command in one text, or word by word."""
        words = command if len(command) > 1 else command[0].split()
        return self._program(*words, cwd=self.folder, before=self._before)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """There is a checkpoint, official.pth, and a capture of the model that computes what it should."""
    with small_tables(tmp_path / "mappings", sizes=CONFIG):
        torch.save(small_glip(torch.float32).state_dict(), tmp_path / "bare.pth")
        done = f"convert --src {tmp_path}/bare.pth --dst {tmp_path}/made.pth --to glip-official"
        assert CliRunner().invoke(main, done.split()).exit_code == 0
        torch.save(torch.load(tmp_path / "made.pth"), tmp_path / "official.pth")  # as its authors do, without a record
        done = f"capture {tmp_path}/official.pth --dst {tmp_path}/reference.safetensors"
        assert CliRunner().invoke(main, done.split()).exit_code == 0
    with Program(
        (*CONVERTS, "torch", "converter.cli.parity", "converter.parity.run", "converter.glip.family")
    ) as program:
        yield Job(tmp_path, program)


def failures(page: Path) -> dict[str, str]:
    """Message and text of each failed case."""
    cases = ET.parse(page).getroot().iter("testcase")
    found = ((case.get("name", ""), case.find("failure")) for case in cases)
    return {name: f"{failure.get('message')} {failure.text}" for name, failure in found if failure is not None}


def test_the_evidence_fails_and_names_the_tensor(job: Job) -> None:
    compare = "parity model.safetensors --reference reference.safetensors --junit parity.xml --html parity.html"
    assert job.run("convert --src official.pth --dst model.safetensors").code == 0
    passed = job.run(compare)
    assert (passed.code, passed.err, failures(job.folder / "parity.xml")) == (0, "", {})
    assert TENSOR not in passed.out
    assert TENSOR not in (job.folder / "parity.html").read_text()
    checked = job.run("verify model.safetensors")
    assert (checked.code, "as recorded" in checked.out) == (0, True)

    flip(job.folder / "model.safetensors", TENSOR)  # a bad disk, or somebody's script

    failed = job.run(compare)
    assert failed.code == 1
    assert f"(changed: {TENSOR})" in failed.err
    assert f"(changed: {TENSOR})" in failed.out
    assert "converter convert OFFICIAL.pth model.safetensors --force" in failed.out
    assert TENSOR in (job.folder / "parity.html").read_text()
    assert any(TENSOR in text for text in failures(job.folder / "parity.xml").values())
    checked = job.run("verify model.safetensors")
    assert (checked.code, f"changed: {TENSOR}" in checked.out) == (1, True)
    refused = job.run("certify model.safetensors --reference reference.safetensors")
    assert (refused.code, f"changed: {TENSOR}" in refused.err) == (8, True)
    handed_on = job.run("convert --src model.safetensors --dst again.pth --to glip-official")
    assert handed_on.code == 0
    assert "warning: model.safetensors: was changed after it was written: 1 tensor of" in handed_on.err

    assert job.run("convert --src official.pth --dst model.safetensors --force").code == 0
    assert job.run(compare).code == 0


def test_who_finds_things_in_pictures_with_it_is_warned(job: Job) -> None:
    assert job.run("convert --src official.pth --dst model").code == 0
    config = job.folder / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"preprocessing": SETTINGS.to_dict()}))
    small_vocabulary(job.folder / "model")
    Image.fromarray(skimage.data.astronaut()).resize((120, 90)).save(job.folder / "street.png")
    detect = ["detect", "model", "street.png", "--prompt", "person. dog."]
    assert "warning" not in job.run(*detect).err
    flip(job.folder / "model" / "model.safetensors", TENSOR)
    found = job.run(*detect)
    assert found.code == 0
    assert "warning: model/model.safetensors: was changed after it was written: 1 tensor of" in found.err
