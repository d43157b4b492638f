"""Evaluations beside weights: a certificate names them, `verify` shows them and whether they are of these weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from converter.cli import main
from converter.errors import CaptureError
from converter.evaluation.record import add_evaluation, evaluation_of, evaluation_path
from converter.parity.evidence import certificate_path, evidence_of
from tests.support.evaluations import digest, evaluate, evaluated
from tests.support.packaging import edit
from tests.support.saved_glip import ledger, saved_glip
from tests.support.small_capture import write
from tests.support.small_folder import small_folder

Content = dict[str, Any]


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Weights, evaluated on a data set and on a part of another one, and certified; what `certify` told."""
    folder = tmp_path_factory.mktemp("evaluated")
    weights = saved_glip(folder)
    evaluate(weights, evaluated(), evaluated(dataset="lvis", limited=True, pictures=5))
    capture = write(folder / "capture.safetensors")
    return weights, run("certify", weights, "--reference", capture, "--mutate", 0, "--json").stdout


@pytest.fixture
def here(certified: tuple[Path, str], tmp_path: Path) -> Path:
    weights, _ = certified
    for path in (weights, certificate_path(weights), evaluation_path(weights)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / weights.name


def certificate(weights: Path) -> Content:
    content: Content = json.loads(certificate_path(weights).read_text())
    return content


def test_the_certificate_names_the_evaluations_of_whole_data_sets(certified: tuple[Path, str]) -> None:
    weights, told = certified
    whole = evaluation_of(evaluated(digest(weights)))
    assert certificate(weights)["evaluations"] == json.loads(told)["evaluations"] == [whole.entry]
    assert whole.entry["figures"]["AP"] == 0.4658


def test_verify_shows_each_and_whether_it_is_certified(here: Path) -> None:
    found = json.loads(run("verify", here, "--json").stdout)
    assert [(each["dataset"], each["certified"]) for each in found["evaluations"]] == [("coco", True), ("lvis", False)]
    summary = here.with_name("summary.md")
    shown = run("verify", here, "--summary", summary).stdout
    assert (
        "evaluated: coco, 5,000 pictures, protocol official, float32 on cpu: AP 46.58 %, as the certificate s" in shown
    )
    assert "evaluated: lvis, 5 pictures only, protocol official, float32 on cpu: AP 25.00 %, not in the certif" in shown
    assert "lvis, 5 pictures only" in summary.read_text()


def test_one_that_was_made_afterwards_is_added_without_certifying_again(here: Path) -> None:
    for content in (evaluated(digest(here), dataset="lvis"), evaluated(digest(here), dtype="bfloat16")):
        add_evaluation(evaluation_path(here), evaluation_of(content))
    found = json.loads(run("verify", here, "--json").stdout)
    assert found["verdict"] == "pass"
    assert [each["certified"] for each in found["evaluations"]] == [False, True, False]


def better(content: Content) -> None:
    """With a class that is as good, so that it agrees with itself."""
    content["evaluations"][0]["figures"]["AP"] = content["evaluations"][0]["classes"][0]["ap"] = 0.5


NOT_CERTIFIED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a better figure": (
        lambda weights: edit(evaluation_path(weights), better),
        "the evaluation on coco (protocol official, float32 on cpu): another than was certified",
    ),
    "another run": (
        lambda weights: evaluate(weights, evaluated(torch="2.14.0")),
        "the evaluation on coco (protocol official, float32 on cpu): another than was certified",
    ),
    "a part of it": (
        lambda weights: evaluate(weights, evaluated(limited=True)),
        "the evaluation on coco (protocol official, float32 on cpu): certified, and not here",
    ),
    "none": (lambda weights: evaluation_path(weights).unlink(), "certified, and not here"),
    "one of other weights": (
        lambda weights: evaluate(weights, evaluated("d" * 64)), f"of weights with sha256 {'d' * 64} here, "
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_CERTIFIED)
def test_what_is_not_as_it_was_certified_is_named(what: str, here: Path) -> None:
    change, expected = NOT_CERTIFIED[what]
    change(here)
    found = json.loads(run("verify", here, "--json", code=1).stdout)
    assert found["verdict"] == "FAIL"
    assert any(expected in problem for problem in found["problems"])
    assert expected in run("verify", here, code=1).stdout


def test_two_files_of_annotations_that_share_a_name_are_certified_apart(tmp_path: Path) -> None:
    weights = saved_glip(tmp_path)
    evaluate(weights, evaluated(dataset="mine"), evaluated(dataset="mine", annotations_sha256="d" * 64))
    run("certify", weights, "--reference", write(tmp_path / "capture.safetensors"), "--mutate", 0)
    found = json.loads(run("verify", weights, "--json").stdout)["evaluations"]
    assert [(each["dataset"], each["certified"]) for each in found] == [("mine", True)] * 2
    assert len({each["annotations"] for each in found}) == 2


def test_evaluations_of_other_weights_are_not_certified(tmp_path: Path) -> None:
    weights = saved_glip(tmp_path)
    evaluate(weights, evaluated("d" * 64))
    result = run("certify", weights, "--reference", write(tmp_path / "capture.safetensors"), code=8)
    assert f"have sha256 {'d' * 64}, these {digest(weights)}" in result.stderr
    assert not certificate_path(weights).exists()


def test_one_that_is_not_sound_is_refused_before_the_model_runs(here: Path) -> None:
    evaluation_path(here).write_text("{}")
    assert "is no evaluation" in run("verify", here, code=8).stderr


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder with the record of its conversion, and no certificate."""
    folder = small_folder(tmp_path / "model")
    (folder / "conversion.json").write_text(json.dumps(ledger(folder / "model.safetensors")))
    return folder


def test_without_a_certificate_they_are_held_against_the_tensors(recorded: Path) -> None:
    assert json.loads(run("verify", recorded, "--json").stdout)["evaluations"] == []
    evaluate(recorded, evaluated())
    (found,) = json.loads(run("verify", recorded, "--json").stdout)["evaluations"]
    assert (found["figures"]["AP"], found["certified"]) == (0.4658, False)
    summary = recorded.with_name("summary.md")
    assert "evaluated: coco, 5,000 pictures, protocol official, float32 on cpu: AP 46.58 %\n" in (
        run("verify", recorded, "--summary", summary).stdout
    )
    assert "coco, 5,000 pictures" in summary.read_text()


def test_without_a_certificate_those_of_others_are_named(recorded: Path) -> None:
    evaluate(recorded, evaluated("d" * 64))
    found = json.loads(run("verify", recorded, "--json", code=1).stdout)
    assert found["verdict"] == "FAIL"
    assert found["record"]["changed"] == []
    assert found["problems"] == [
        f"the evaluation on coco: of weights with sha256 {'d' * 64}, these have {digest(recorded)}; move it elsewhere"
    ]
    shown = run("verify", recorded, code=1).stdout
    assert shown.endswith("FAIL\n")
    assert found["problems"][0] in shown


CARELESS: dict[str, tuple[Callable[[Content], object], str]] = {
    "of other weights": (lambda c: c["evaluations"][0].update(weights="d" * 64), "that on coco is of other weights"),
    "twice": (lambda c: c.update(evaluations=c["evaluations"] * 2), "two are of the same data set"),
    "of a part": (lambda c: c["evaluations"][0].update(limited=True), "at 'evaluations/0/limited'"),
    "in percent": (lambda c: c["evaluations"][0]["figures"].update(AP=46.58), "at 'evaluations/0/figures/AP'"),
    "without a hash": (lambda c: c["evaluations"][0].pop("sha256"), "at 'evaluations/0'"),
}


@pytest.mark.parametrize("what", CARELESS)
def test_a_careless_edit_of_the_certificate_is_refused(what: str, certified: tuple[Path, str]) -> None:
    content = copy.deepcopy(certificate(certified[0]))
    change, message = CARELESS[what]
    change(content)
    with pytest.raises(CaptureError) as caught:
        evidence_of(content, Path("parity.json"))
    assert message in str(caught.value)


def test_a_certificate_from_before_names_none(certified: tuple[Path, str]) -> None:
    content = certificate(certified[0])
    del content["evaluations"]
    assert evidence_of(content, Path("parity.json")).evaluations == ()
