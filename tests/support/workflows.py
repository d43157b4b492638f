"""Workflows and actions of GitHub, whose steps are run here as GitHub runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests import ROOT

WORKFLOWS, ACTIONS = ROOT / ".github" / "workflows", ROOT / ".github" / "actions"
_PROGRAMS = {
    "converter": "from converter.cli import converter_main; converter_main()",
    "pip": "import sys, json; json.dump(sys.argv[1:], open('pip.json', 'w'))",
}


class Loader(yaml.SafeLoader):
    """YAML 1.2, as GitHub reads it, in which `on` is a word."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in those if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, those in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parsed(text: str | Path) -> Any:
    """A document, given by its text or its path."""
    return yaml.load(text.read_text(encoding="utf-8") if isinstance(text, Path) else text, Loader)


def inputs_of(file: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Those that a workflow which can be called, or an action, takes."""
    inputs: dict[str, dict[str, Any]] = file["inputs"] if "runs" in file else file["on"]["workflow_call"]["inputs"]
    return inputs


def given(file: Mapping[str, Any], values: Mapping[str, str], **more: str) -> dict[str, str]:
    """What its expressions stand for: `inputs.NAME`, by default what is stated there, and `more`: matrix_dtype, say.
    A secret that is not passed is empty."""
    inputs = inputs_of(file)
    assert values.keys() <= inputs.keys()
    missing = [name for name, each in inputs.items() if each.get("required") and name not in values]
    assert missing == []
    context = {f"inputs.{name}": values.get(name, str(each.get("default", ""))) for name, each in inputs.items()}
    if "on" in file:
        context |= {f"secrets.{name}": "" for name in file["on"]["workflow_call"]["secrets"]}
    return context | {name.replace("_", ".", 1).replace("_", "-"): value for name, value in more.items()}


def expanded(value: Any, context: Mapping[str, str]) -> str:
    return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda match: context[match[1]], str(value))


def scripts_in(file: Mapping[str, Any]) -> Iterator[str]:
    """Every script of a workflow or an action."""
    jobs = [file["runs"]] if "runs" in file else file["jobs"].values()
    yield from (step["run"] for job in jobs for step in job.get("steps", ()) if "run" in step)


class Runner:
    """A checkout, in which the shell finds the programs of this source; `pip` writes its arguments to pip.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.folder.mkdir(parents=True)
        programs = folder / "bin"
        programs.mkdir()
        for name, code in _PROGRAMS.items():
            (programs / name).write_text(f"#!{sys.executable}\n{code}\n")
            (programs / name).chmod(0o755)
        self.summary = folder / "summary.md"
        home = {"HOME": str(folder), "HF_HOME": str(folder / ".cache" / "huggingface")}
        self.environment = os.environ | home | {
            "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "GITHUB_STEP_SUMMARY": str(self.summary),
        }  # fmt: skip

    def run(self, script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "--noprofile", "--norc", *options, "-c", script],
            cwd=self.folder, env=self.environment | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def step(self, file: Mapping[str, Any], name: str, context: Mapping[str, str], job: str = "") -> int:
        """A step of a job of a workflow, or of an action; its exit code."""
        within = file["runs"] if "runs" in file else file["jobs"][job]
        (step,) = (step for step in within["steps"] if step.get("name") == name)
        default = file.get("defaults", {}).get("run", {}).get("shell")
        # jobs.<job_id>.steps[*].shell of GitHub's workflow syntax: pipefail only where bash is named
        options = ["-e", "-o", "pipefail"] if step.get("shell", default) == "bash" else ["-e"]
        environment = {**file.get("env", {}), **within.get("env", {}), **step.get("env", {})}
        done = self.run(step["run"], *options, **{key: expanded(v, context) for key, v in environment.items()})
        self.said = done.stdout + done.stderr
        return done.returncode

    @property
    def asked_of_pip(self) -> list[str]:
        arguments: list[str] = json.loads((self.folder / "pip.json").read_text())
        return arguments
