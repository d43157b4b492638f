"""docs/ci.md, its workflows, action and hook: parsed, and run as they stand there, by real programs on small models."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from converter.cli import main
from tests import ROOT
from tests.support.evaluating import annotated, write_pictures
from tests.support.hub.server import HubServer
from tests.support.saved_glip import save, saved_glip
from tests.support.signing import pair, signed
from tests.support.small_capture import write
from tests.support.small_folder import small_folder
from tests.support.small_glip import small_glip
from tests.support.tiny import write_table
from tests.support.workflows import ACTIONS, WORKFLOWS, Runner, expanded, given, inputs_of, parsed, scripts_in

TEXT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
CALLS_PARITY, CALLS_EVALUATE, USES_ACTION, PRE_COMMIT = map(parsed, re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
ELSEWHERE, QUERIES = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
PARITY, EVALUATE = parsed(WORKFLOWS / "parity.yml"), parsed(WORKFLOWS / "evaluate.yml")
ACTION = parsed(ACTIONS / "verify" / "action.yml")
REPOSITORY = "org/glip-t"
needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    made = Runner(tmp_path / "runner")
    (made.folder / "captures").mkdir()
    write(made.folder / "captures" / "glip-t.safetensors")
    return made


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


def change_weights(hub: HubServer) -> None:
    """Somebody pushes other weights, and moves the tag."""
    weights = hub.content(REPOSITORY, "model.safetensors")
    hub.push(REPOSITORY, {"model.safetensors": weights[:-1] + bytes([weights[-1] ^ 1])})
    tag(hub)


# ---- what is called, and by what


def test_there_are_no_others() -> None:
    """What is not named here would not be tested."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.yml"))
    assert files == [f".github/{name}.yml" for name in (
        "actions/verify/action", "workflows/ci", "workflows/evaluate", "workflows/parity"
    )]  # fmt: skip
    (job,) = parsed(WORKFLOWS / "ci.yml")["jobs"].values()  # this project's own
    assert all((ROOT / step["run"]).is_file() for step in job["steps"] if "run" in step)


@pytest.mark.parametrize(("caller", "called"), [(CALLS_PARITY, PARITY), (CALLS_EVALUATE, EVALUATE)])
def test_a_workflow_is_called_with_what_it_takes(caller: Any, called: Any) -> None:
    (job,) = caller["jobs"].values()
    assert parsed(ROOT / job["uses"].removeprefix("./")) == called
    given(called, job["with"])
    assert called["permissions"] == caller["permissions"] == {"contents": "read"}
    assert set(called["on"]) == {"workflow_call"}  # in this repository nothing starts it
    assert caller["on"] == "pull_request"


def test_the_action_is_used_with_what_it_takes() -> None:
    (job,) = USES_ACTION["jobs"].values()
    (step,) = job["steps"]
    path = step["uses"].removeprefix("OWNER/converter/").partition("@")[0]
    assert parsed(ROOT / path / "action.yml") == ACTION
    given(ACTION, step["with"])


def test_nothing_that_is_passed_becomes_code() -> None:
    """An expression within a script is pasted into it before the shell reads it."""
    scripts = [script for file in (PARITY, EVALUATE, ACTION) for script in scripts_in(file)]
    assert len(scripts) > 8
    assert not [script for script in scripts if "${{" in script]


@pytest.mark.parametrize("file", [PARITY, EVALUATE, ACTION], ids=["parity", "evaluate", "verify"])
def test_the_steps_of_others_are_pinned_and_known(file: Any) -> None:
    steps = [step for job in (file.get("jobs") or {"": file["runs"]}).values() for step in job["steps"]]
    used = {step["uses"] for step in steps if "uses" in step}
    linked = re.findall(r"\[[\w-]+\]\(https://github\.com/(actions/[\w-]+)\)", TEXT)
    assert {name.partition("@")[0] for name in used} <= set(linked)
    assert all(re.search(r"@v\d+$", name) for name in used)
    for step in steps:
        if step.get("uses", "").startswith("actions/upload-artifact") and "path" in step["with"] and "if" in step:
            assert step["if"] == "${{ !cancelled() }}"  # a failure is what they are for


@pytest.mark.parametrize("file", [PARITY, EVALUATE, ACTION], ids=["parity", "evaluate", "verify"])
def test_weights_are_cached_by_what_names_them(file: Any) -> None:
    steps = [step for job in (file.get("jobs") or {"": file["runs"]}).values() for step in job["steps"]]
    (cache,) = (step["with"] for step in steps if step.get("uses", "").startswith("actions/cache@"))
    assert cache["path"] == "~/.cache/huggingface/hub"
    assert "${{ inputs.model }}" in cache["key"]
    assert ("revision" in inputs_of(file)) == ("inputs.revision" in cache["key"])


@pytest.mark.parametrize(
    ("file", "job", "values"),
    [
        (PARITY, "parity", CALLS_PARITY["jobs"]["parity"]["with"]),
        (EVALUATE, "part", CALLS_EVALUATE["jobs"]["evaluate"]["with"]),
        (ACTION, "", {"model": REPOSITORY}),
    ],
    ids=["parity", "evaluate", "verify"],
)
def test_it_installs_what_it_needs(file: Any, job: str, values: Any, runner: Runner) -> None:
    context = given(file, values, matrix_dtype="float32", matrix_part="0", strategy_job_total="2")
    path = ACTIONS / "verify"
    assert runner.step(file, "Install", context | {"github.action_path": str(path)}, job) == 0
    *_, wanted = runner.asked_of_pip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    where, extras = re.fullmatch(r"(.*)\[(.*)\]", wanted).groups()  # type: ignore[union-attr]
    assert where == "./converter" if job else Path(where).resolve() == ROOT
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    python = context["inputs.python-version"]
    assert tuple(map(int, python.split("."))) >= (3, 11)


# ---- what it does


def test_a_pull_request_passes_until_something_differs(runner: Runner, published: HubServer) -> None:
    values = CALLS_PARITY["jobs"]["parity"]["with"]
    dtype = json.loads(inputs_of(PARITY)["dtypes"]["default"])[0]
    context = given(PARITY, values, matrix_dtype=dtype)

    def step(name: str) -> int:
        return runner.step(PARITY, name, context, "parity")

    assert [step(name) for name in ("Verify", "Compare")] == [0, 0]
    verdicts = re.findall(r"^### converter (\w+) .*: (.*)$", runner.summary.read_text(), re.MULTILINE)
    assert verdicts == [("verify", "pass"), ("parity", "pass")]
    assert (Path(runner.environment["HF_HOME"]) / "hub").is_dir()
    kept = PARITY["jobs"]["parity"]["steps"][-1]["with"]["path"].split()
    assert sorted(kept) == sorted(path.name for path in runner.folder.glob("parity.*"))
    assert not ET.parse(runner.folder / "parity.xml").getroot().findall(".//failure")

    change_weights(published)
    assert [step(name) for name in ("Verify", "Compare")] == [1, 1]
    assert ET.parse(runner.folder / "parity.xml").getroot().findall(".//failure")
    (runner.folder / "captures" / "glip-t.safetensors").unlink()
    assert step("Compare") == 3
    assert len(ET.parse(runner.folder / "parity.xml").getroot().findall(".//error")) == 1
    verdicts = re.findall(r"^### converter parity .*: (.*)$", runner.summary.read_text(), re.MULTILINE)
    assert verdicts == ["pass", "FAIL", "no result"]


def test_the_action_verifies_what_is_on_the_hub(runner: Runner, published: HubServer) -> None:
    def verify(**values: str) -> int:
        return runner.step(ACTION, "Verify", given(ACTION, values))

    assert verify(**USES_ACTION["jobs"]["verify"]["steps"][0]["with"]) == 0
    assert verify(model=REPOSITORY, revision="v1", dtype="float64") == 0
    verdicts = re.findall(r"^### converter verify .*: (.*)$", runner.summary.read_text(), re.MULTILINE)
    assert verdicts == ["pass", "pass"]
    assert verify(model=REPOSITORY, **{"accept-table": "a" * 64}) == 0
    assert verify(model=REPOSITORY, **{"accept-table": "a"}) == 2
    change_weights(published)
    assert verify(model=f"{REPOSITORY}@v1") == 1
    for hostile in ("$(touch pwned)", "; touch pwned", '"; touch pwned; "', "--help", "`touch pwned`"):
        assert verify(model=hostile) not in (0, 1)
        assert verify(model="absent", revision=hostile) not in (0, 1)
    assert not (runner.folder / "pwned").exists()


def test_the_action_asks_for_a_signature(runner: Runner, published: HubServer, certified: Path, tmp_path: Path) -> None:
    keys = pair(runner.folder)
    folder = signed(Path(shutil.copytree(certified, tmp_path / "signed")), keys.signer)

    def verify(**values: str) -> int:
        return runner.step(ACTION, "Verify", given(ACTION, {"model": REPOSITORY, **values}))

    assert verify(**{"signature-key": "signer.pub"}) == 8  # it is not signed
    published.push(REPOSITORY, {"model.sig": (folder / "model.sig").read_bytes()})
    assert verify(**{"signature-key": "signer.pub"}) == 0, runner.said
    pair(runner.folder, "another")
    assert verify(**{"signature-key": "another.pub"}) == 1, runner.said
    assert verify(**{"require-signature": "me@example.org", "signature-issuer": "https://issuer.example"}) == 1


@needs_jq
def test_parts_of_a_data_set_give_the_figures_of_the_whole(runner: Runner) -> None:
    content = annotated(write_pictures(runner.folder / "pictures", 2))
    (runner.folder / "annotations.json").write_text(json.dumps(content))
    small_folder(runner.folder / "glip-t")
    values = CALLS_EVALUATE["jobs"]["evaluate"]["with"] | {"model": "glip-t", "parts": "[1, 0]", "name": "mine-"}
    for part in ("0", "1"):
        context = given(EVALUATE, values, matrix_part=part, strategy_job_total="2")
        for name in ("Check the parts", "Take a part", "Evaluate"):
            assert runner.step(EVALUATE, name, context, "part") == 0, runner.said
        (upload,) = (s["with"] for s in EVALUATE["jobs"]["part"]["steps"] if "upload-artifact" in s.get("uses", ""))
        folder = runner.folder / "parts" / expanded(upload["name"], context)
        folder.mkdir(parents=True)
        shutil.copy(runner.folder / expanded(upload["path"], context), folder)
    assert runner.step(EVALUATE, "Measure", given(EVALUATE, values), "whole") == 0, runner.said
    assert (runner.folder / "evaluation" / "report.html").is_file()
    assert runner.summary.read_text().startswith("    ")

    at_once = "converter evaluate glip-t --dataset annotations.json --images pictures --out single"
    figures = runner.run(at_once).stdout.splitlines()
    assert (runner.folder / "figures.txt").read_text().splitlines()[1:-1] == figures[1:-1]  # between model and folder
    assert len(figures) > 10
    found = [
        sorted(json.loads((runner.folder / path).read_text()), key=lambda box: (box["image_id"], *box["bbox"]))
        for path in ("predictions.json", "single/predictions.json")
    ]
    assert len(found[0]) > 100
    assert found[0] == found[1]


@needs_jq
@pytest.mark.parametrize("parts", ["[1, 2]", "[0]", "[0, 0]", "[0, 1, 1]", '["0", "1"]', "2", "0, 1", ""])
def test_parts_that_leave_pictures_out_are_refused(parts: str, runner: Runner) -> None:
    """For GitHub there are two jobs, whatever their numbers are."""
    values = CALLS_EVALUATE["jobs"]["evaluate"]["with"] | {"parts": parts}
    context = given(EVALUATE, values, strategy_job_total="2", matrix_part="0")
    assert runner.step(EVALUATE, "Check the parts", context, "part") == 1
    assert "::error::parts: must be the numbers from 0 on" in runner.said
    first = EVALUATE["jobs"]["part"]["steps"][0]
    assert first["name"] == "Check the parts"


@pytest.mark.parametrize("file", [PARITY, EVALUATE], ids=["parity", "evaluate"])
def test_two_calls_in_one_run_keep_their_artefacts_apart(file: Any) -> None:
    artefacts = [
        s["with"] for job in file["jobs"].values() for s in job["steps"] if "load-artifact@" in s.get("uses", "")
    ]
    assert len(artefacts) == len(file["jobs"]) * 2 - 1
    for each in artefacts:
        assert each.get("name", each.get("pattern")).startswith("${{ inputs.name }}")


@pytest.mark.parametrize("name", ["weights.yml", "weights.yaml"])
def test_packages_are_cached_whatever_a_workflow_is_called(name: str) -> None:
    """setup-python fails where nothing matches."""
    steps = [step for file in (PARITY, EVALUATE) for job in file["jobs"].values() for step in job["steps"]]
    patterns = {
        s["with"]["cache-dependency-path"] for s in steps if s.get("uses", "").startswith("actions/setup-python@")
    }
    assert all(fnmatch(f".github/workflows/{name}", pattern) for pattern in patterns)


def test_a_private_model_needs_a_token(runner: Runner, published: HubServer) -> None:
    published.repository(REPOSITORY).private = True
    published.tokens["of_org"] = ("org", "read")
    values, secret = CALLS_PARITY["jobs"]["parity"]["with"], {"secrets.HF_TOKEN": "of_org"}
    context = given(PARITY, values, matrix_dtype="float64")
    for name in ("Verify", "Compare"):
        assert runner.step(PARITY, name, context, "parity") == 9, runner.said
    for name in ("Verify", "Compare"):
        assert runner.step(PARITY, name, context | secret, "parity") == 0, runner.said
    for file in (PARITY, EVALUATE):
        assert file["on"]["workflow_call"]["secrets"]["HF_TOKEN"]["required"] is False
        runs = [s for job in file["jobs"].values() for s in job["steps"] if "$MODEL" in s.get("run", "")]
        assert all(step["env"] == {"HF_TOKEN": "${{ secrets.HF_TOKEN }}"} for step in runs)
    runner.environment["HF_TOKEN"] = "of_org"  # for the action it is a variable of the step that uses it
    assert runner.step(ACTION, "Verify", given(ACTION, {"model": REPOSITORY})) == 0, runner.said


def test_the_hook_lints_what_was_changed(runner: Runner) -> None:
    (hook,) = parsed(ROOT / ".pre-commit-hooks.yaml")
    (repository,) = PRE_COMMIT["repos"]
    assert [each["id"] for each in repository["hooks"]] == [hook["id"]]
    own = [f"mappings/{path.name}" for path in (ROOT / "mappings").iterdir()]
    others = [path for path in own if not (re.search(hook["files"], path) and not re.search(hook["exclude"], path))]
    assert sorted(others) == [f"mappings/{name}.json" for name in ("released", "schema", "wrappers")]

    (runner.folder / "mappings").mkdir()
    table = write_table(runner.folder / "mappings").relative_to(runner.folder)
    for changed in (table, table.with_name("tiny.json")):
        done = runner.run(f"{hook['entry']} {changed}")
        assert (done.returncode, done.stdout) == (0, "tiny-table: 8 rules, sound for every variant\n"), done.stderr
    table = runner.folder / table
    table.write_text(table.read_text().replace('"target": "scalar"', '"target": "scale"'))
    done = runner.run(f"{hook['entry']} mappings/tiny.json mappings/{table.name}")
    assert (done.returncode, "'scale' fits no tensor of the target" in done.stderr) == (4, True), done.stderr


@needs_jq
def test_elsewhere_and_what_is_asked_of_json(runner: Runner) -> None:
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
