"""docs/ci.md: its job and its commands are run as they stand there, by real programs on small models."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from converter.cli import main
from tests import ROOT
from tests.support.hub.server import HubServer
from tests.support.saved_glip import save, saved_glip
from tests.support.small_capture import write
from tests.support.small_glip import small_glip

TEXT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
JOB: dict[str, Any] = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[0])
STEPS: list[dict[str, Any]] = JOB["jobs"]["weights"]["steps"]
ELSEWHERE, QUERIES = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
REPOSITORY = "org/glip-t"


class Runner:
    """A checkout, in which the shell finds the programs of this source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        (self.folder / "captures").mkdir(parents=True)
        write(self.folder / "captures" / "glip-t.safetensors")
        programs = folder / "bin"
        programs.mkdir()
        for name, code in (
            ("converter", "from converter.cli import converter_main; converter_main()"),
            ("pip", "import sys, json; json.dump(sys.argv[1:], open('pip.json', 'w'))"),
        ):
            (programs / name).write_text(f"#!{sys.executable}\n{code}\n")
            (programs / name).chmod(0o755)
        self.summary = folder / "summary.md"
        home = {"HOME": str(folder), "HF_HOME": str(folder / ".cache" / "huggingface")}
        self.environment = os.environ | home | {
            "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "GITHUB_STEP_SUMMARY": str(self.summary),
        }  # fmt: skip

    def run(self, script: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "--noprofile", "--norc", *options, "-c", script],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def step(self, name: str) -> int:
        """As GitHub runs a step."""
        (step,) = (step for step in STEPS if step.get("name") == name)
        return self.run(step["run"], "-e").returncode


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "runner")


@pytest.fixture
def published(certified: Path, running: HubServer, tmp_path: Path) -> Iterator[HubServer]:
    running.reset(tmp_path / "hub")
    running.storage.create(REPOSITORY, private=False, author="somebody")
    running.push(REPOSITORY, {path.name: path.read_bytes() for path in certified.iterdir()})
    tag(running)
    yield running
    running.reset(tmp_path / "nothing")


def tag(hub: HubServer) -> None:
    repository = hub.repository(REPOSITORY)
    repository.refs["refs/tags/v1"] = repository.head.id


def test_the_job_passes_until_something_differs(runner: Runner, published: HubServer) -> None:
    assert [runner.step(name) for name in ("Install", "Verify", "Compare")] == [0, 0, 0]
    verdicts = re.findall(r"^### converter (\w+) .*: (.*)$", runner.summary.read_text(), re.MULTILINE)
    assert verdicts == [("verify", "pass"), ("parity", "pass")]
    assert (Path(runner.environment["HF_HOME"]) / "hub").is_dir()
    kept = STEPS[-1]["with"]["path"].split()
    assert sorted(kept) == sorted(path.name for path in runner.folder.glob("parity.*"))
    assert not ET.parse(runner.folder / "parity.xml").getroot().findall(".//failure")

    weights = published.content(REPOSITORY, "model.safetensors")
    published.push(REPOSITORY, {"model.safetensors": weights[:-1] + bytes([weights[-1] ^ 1])})
    tag(published)  # which somebody moved
    assert runner.step("Verify") == 1
    assert runner.step("Compare") == 1
    assert ET.parse(runner.folder / "parity.xml").getroot().findall(".//failure")
    (runner.folder / "captures" / "glip-t.safetensors").unlink()
    assert runner.step("Compare") == 3
    assert len(ET.parse(runner.folder / "parity.xml").getroot().findall(".//error")) == 1
    verdicts = re.findall(r"^### converter parity .*: (.*)$", runner.summary.read_text(), re.MULTILINE)
    assert verdicts == ["pass", "FAIL", "no result"]


def test_the_job_is_set_up_as_it_should_be(runner: Runner) -> None:
    uses = [step["uses"] for step in STEPS if "uses" in step]
    assert [name.partition("@")[0] for name in uses] == [
        f"actions/{name}" for name in ("checkout", "setup-python", "cache", "upload-artifact")
    ]
    assert STEPS[-1]["if"] == "${{ !cancelled() }}"
    assert runner.step("Install") == 0
    *_, wanted = json.loads((runner.folder / "pip.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, extras = re.fullmatch(r"\./(\w+)\[(.*)\]", wanted).groups()  # type: ignore[union-attr]
    assert name == project["name"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    python = next(step["with"]["python-version"] for step in STEPS if "python-version" in step.get("with", {}))
    assert tuple(map(int, python.split("."))) >= (3, 11)


def test_elsewhere_and_what_is_asked_of_json(runner: Runner) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    weights = saved_glip(runner.folder).rename(runner.folder / "glip-t.safetensors")
    certify = ["certify", str(weights), "--reference", str(runner.folder / "captures" / "glip-t.safetensors")]
    assert CliRunner().invoke(main, [*certify, "--mutate", "0"]).exit_code == 0
    done = runner.run(ELSEWHERE, "-e")
    assert done.returncode == 0, done.stderr
    assert json.loads((runner.folder / "verify.json").read_text())["verdict"] == "pass"
    assert (runner.folder / "parity.html").exists()

    model = small_glip()
    save(model, runner.folder / "before.safetensors")
    with torch.no_grad():
        model.text_encoder.layers[1].attention.qkv.weight[0, 0] += 1
    save(model, runner.folder / "after.safetensors")
    verdict, first, nearest, different, error = runner.run(QUERIES).stdout.splitlines()
    assert (verdict, first) == ("pass", "null")
    assert re.fullmatch(r"\S+: error [\d.e-]+, limit 1e-10", nearest)
    assert different == "text_encoder.layers.1.attention.qkv.weight"
    assert error.startswith("NotACheckpointError: absent.pth: ")
