"""`converter evaluate` as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.evaluation.answer import JOURNAL
from converter.evaluation.record import read_evaluations
from converter.glip.task.evaluate import evaluate
from tests.support.evaluating import (
    CLASSES,
    PICTURES,
    QUICK,
    as_json,
    contents,
    evaluation,
    options,
    write_data,
)
from tests.support.packaging import card_of
from tests.support.packaging import run as package
from tests.support.saved_glip import ledger, save
from tests.support.small_glip import small_glip

FILES = ["evaluation.json", "predictions.json", "report.html"]
FIGURES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def done(shared: Path) -> Path:
    """A folder of results."""
    result = evaluation(shared / "small", *options(shared), "--out", shared / "done")
    assert result.exit_code == 0, result.output
    return shared / "done"


@pytest.fixture(scope="module")
def other(shared: Path) -> Path:
    """A second model: the first in float16, and one number of it another."""
    folder = shared / "half"
    shutil.copytree(shared / "small", folder)
    model = small_glip()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 0.5
    save(model.half(), folder / "model.safetensors")
    return folder


def predicted(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "predictions.json").read_text())
    return rows


def test_figures_are_told_with_what_they_are_of(shared: Path) -> None:
    result = evaluation(shared / "small", *options(shared))
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    asked = "official with shorter_side=90, score_threshold=0.01"
    assert head == f"mine: 6 pictures, protocol {asked}, float32 on cpu, faster-coco-eval 1.8.0"
    assert [row.split()[0] for row in rows[:12]] == FIGURES
    assert rows[12] == "AP by class, the lowest first:"
    assert {row.split()[-1] for row in rows[13:]} == {"person", "dog"}
    assert sum(int(row.split()[1]) for row in rows[13:]) == 3 * PICTURES
    assert result.stderr == ""


def test_json_says_everything_and_quiet_nothing(shared: Path, done: Path) -> None:
    content = as_json(shared / "small", *options(shared))
    assert (content["model"], content["against"], content["mean"]) == (str(shared / "small"), None, None)
    (found,) = content["evaluations"]
    assert (found["dataset"], found["pictures"], found["limited"], found["skipped"]) == ("mine", PICTURES, False, [])
    assert found["captions"] == ["person. dog"]
    assert (found["settings"]["shorter_side"], found["settings"]["longer_side"]) == (90, 1333)
    assert found["figures"].keys() == set(FIGURES)
    (record,) = read_evaluations(done / "evaluation.json")
    assert found["figures"] == record.figures
    assert found["weights"] == record.weights
    quiet = evaluation(shared / "small", *options(shared), "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_the_folder_has_predictions_record_and_page(shared: Path, done: Path) -> None:
    assert sorted(contents(done)) == FILES
    rows = predicted(done)
    assert len(rows) > 50
    assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in rows)
    assert {row["category_id"] for row in rows} == {3, 7}
    sizes = {image["id"]: (image["width"], image["height"]) for image in annotated_images(shared)}
    for row in rows:
        x, y, w, h = row["bbox"]
        width, height = sizes[row["image_id"]]
        assert -0.01 <= x < x + w <= width + 2  # the pixel that the protocol adds
        assert -0.01 <= y < y + h <= height + 2
    (record,) = read_evaluations(done / "evaluation.json")
    assert (record.dataset, record.pictures, record.is_whole) == ("mine", PICTURES, True)
    assert record.protocol == "official with shorter_side=90, score_threshold=0.01"
    page = (done / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == PICTURES
    assert "001.jpg" in page


def annotated_images(folder: Path) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = json.loads((folder / "mine.json").read_text())["images"]
    return images


def test_a_folder_with_results_is_not_written_over(shared: Path, done: Path, tmp_path: Path) -> None:
    before = contents(done)
    result = evaluation(shared / "small", *options(shared), "--out", done)
    assert result.exit_code == 6
    assert result.stderr == f"error: {done} is not empty; --force writes into it\n"
    assert contents(done) == before
    assert evaluation(shared / "small", *options(shared), "--out", done, "--force").exit_code == 0
    assert contents(done) == before
    missing = evaluation(shared / "small", *options(shared), "--out", tmp_path / "no" / "out")
    assert missing.exit_code == 6
    assert "is not a folder to put another into; make it first" in missing.stderr


def test_workers_threads_and_python_give_the_same_bytes(shared: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluation(shared / "small", *options(shared)[:-2], "--workers", 2, "--threads", 3, "--out", out)
    assert result.exit_code == 0, result.output
    assert contents(out) == contents(done)
    settings = {"shorter_side": "90", "score_threshold": "0.01"}
    files = (shared / "mine.json", shared / "images")
    outcome = evaluate(str(shared / "small"), *files, settings=settings, workers=0, out=tmp_path / "python")
    assert outcome is not None
    written = contents(tmp_path / "python")
    assert written["predictions.json"] == contents(done)["predictions.json"]
    (mine,), (theirs,) = (read_evaluations(f / "evaluation.json") for f in (tmp_path / "python", done))
    assert mine.weights == theirs.weights
    assert dict(mine.figures) == dict(outcome.scores.figures) == dict(theirs.figures)
    assert mine.content["protocol"] == theirs.content["protocol"]
    assert mine.content["run"] == theirs.content["run"]


def test_a_limit_takes_the_first_pictures_and_says_so(shared: Path) -> None:
    result = evaluation(shared / "small", *options(shared), "--limit", 2)
    assert result.stdout.startswith("mine: 2 pictures only, protocol official")
    (found,) = as_json(shared / "small", *options(shared), "--limit", 2)["evaluations"]
    assert (found["pictures"], found["limited"]) == (2, True)
    assert sum(each["annotated"] for each in found["classes"]) == 6
    (all_,) = as_json(shared / "small", *options(shared), "--limit", PICTURES)["evaluations"]
    assert not all_["limited"]


def test_a_record_is_kept_beside_the_model_and_packaged(shared: Path, tmp_path: Path) -> None:
    weights = tmp_path / "glip"
    shutil.copytree(shared / "small", weights)
    (weights / "conversion.json").write_text(json.dumps(ledger(weights / "model.safetensors")))
    result = evaluation(weights, *options(shared), "--record")
    assert result.exit_code == 0, result.output
    assert result.stderr == f"recorded: {weights / 'evaluation.json'}\n"
    (record,) = read_evaluations(weights / "evaluation.json")
    assert record.is_whole
    shutil.copy(weights / "vocab.txt", tmp_path)
    packaged = package(tmp_path, "glip", tmp_path / "out")
    assert packaged.exit_code == 0, packaged.output
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == (weights / "evaluation.json").read_bytes()
    assert f"{100 * (record.figures['AP'] or 0):.2f}" in card_of(tmp_path / "out")


def test_a_record_that_cannot_be_kept_is_refused_before_it_begins(
    shared: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.evaluation.run.Run.results", lambda *_: pytest.fail("it began"))
    model = tmp_path / "small"
    shutil.copytree(shared / "small", model)
    some = evaluation(model, *options(shared), "--record", "--limit", 2)
    assert (some.exit_code, "does not go with --limit" in some.stderr) == (2, True)
    file = evaluation(done / "predictions.json", *options(shared), "--record")
    assert (file.exit_code, "MODEL is a file of predictions" in file.stderr) == (2, True)
    (model / "evaluation.json").write_text(
        (done / "evaluation.json").read_text().replace('"sha256": "', '"sha256": "0')
    )
    other = evaluation(model, *options(shared), "--record")
    assert other.exit_code == 8
    assert "evaluation.json: is no evaluation" in other.stderr


def test_another_model_is_compared(shared: Path, other: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluation(shared / "small", "--against", other, *options(shared), "--out", out)
    assert result.exit_code in (0, 1), result.output
    assert f"against {other}: " in result.stdout
    assert result.stdout.splitlines()[1].split()[0] == "AP"
    assert len(result.stdout.splitlines()[1].split()) == 3
    files = contents(out)
    assert sorted(files) == ["against/evaluation.json", "against/predictions.json", "against/report.html", *FILES]
    assert files["predictions.json"] == contents(done)["predictions.json"]
    assert files["evaluation.json"] == contents(done)["evaluation.json"]
    assert files["against/predictions.json"] != files["predictions.json"]
    assert str(other).encode() in files["report.html"]
    content = as_json(shared / "small", "--against", other, *options(shared), code=result.exit_code)
    pair = content["evaluations"][0]["paired"]
    assert content["against"] == str(other)
    assert pair["better"] + pair["worse"] + pair["equal"] == PICTURES
    assert {row["picture"] for row in pair["pictures"]} <= set(range(1, PICTURES + 1))


def test_predictions_of_a_file_are_measured_and_compared(shared: Path, done: Path) -> None:
    file = done / "predictions.json"
    dataset = ["--dataset", shared / "mine.json"]
    (measured,) = as_json(file, *dataset)["evaluations"]
    (ran,) = as_json(shared / "small", *options(shared))["evaluations"]
    assert measured["figures"] == ran["figures"]
    assert measured["classes"] == ran["classes"]
    assert [measured[name] for name in ("protocol", "settings", "captions", "run", "weights")] == [None] * 5
    for first, second, given in (
        (file, file, dataset),
        (shared / "small", file, options(shared)),
        (file, shared / "small", options(shared)),
    ):
        content = as_json(first, "--against", second, *given)
        assert content["evaluations"][0]["paired"]["verdict"] == "identical"
    (some,) = as_json(shared / "small", "--against", file, *options(shared), "--limit", 2)["evaluations"]
    assert some["paired"]["verdict"] == "identical"  # of all pictures: those that are left out are passed over


def test_files_are_written_of_predictions_too(shared: Path, done: Path, other: Path, tmp_path: Path) -> None:
    file = done / "predictions.json"
    result = evaluation(file, "--dataset", shared / "mine.json", "--out", tmp_path / "alone")
    assert (result.exit_code, sorted(contents(tmp_path / "alone"))) == (0, ["predictions.json", "report.html"])
    evaluation(file, "--against", other, *options(shared), "--out", tmp_path / "beside")
    assert sorted(contents(tmp_path / "beside")) == [
        "against/evaluation.json", "against/predictions.json", "against/report.html", "predictions.json", "report.html",
    ]  # fmt: skip


def test_of_predictions_the_metric_alone_can_be_chosen(shared: Path, done: Path) -> None:
    result = evaluation(done / "predictions.json", "--dataset", shared / "mine.json", *QUICK)
    assert result.exit_code == 2
    assert "no model is run; of predictions, metric alone can be chosen" in result.stderr


def test_the_protocol_can_be_another(shared: Path) -> None:
    (found,) = as_json(shared / "small", *options(shared), "--protocol", "mmdet", "--limit", 2)["evaluations"]
    assert found["protocol"] == "mmdet with shorter_side=90, score_threshold=0.01"
    assert found["settings"]["size_rounding"] == "down"


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_any_dtype_can_be_measured(dtype: str, shared: Path, done: Path) -> None:
    result = evaluation(shared / "small", *options(shared), "--dtype", dtype, "--limit", 2, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["evaluations"][0]["run"]["dtype"] == dtype


def test_a_batch_changes_rounding_alone(shared: Path, done: Path, tmp_path: Path) -> None:
    result = evaluation(shared / "small", *options(shared), "--batch", 4, "--dtype", "float64", "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    alone = evaluation(shared / "small", *options(shared), "--dtype", "float64", "--out", tmp_path / "a")
    assert alone.exit_code == 0
    assert (tmp_path / "a/predictions.json").read_bytes() == (tmp_path / "b/predictions.json").read_bytes() or (
        [
            (row["image_id"], row["category_id"], pytest.approx(row["bbox"], abs=0.002))
            for row in predicted(tmp_path / "a")
        ]
        == [(row["image_id"], row["category_id"], row["bbox"]) for row in predicted(tmp_path / "b")]
    )


def test_an_unfinished_run_is_gone_on_with_or_started_over(shared: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / JOURNAL).write_text('{"converter":"0"}\n')
    refused = evaluation(shared / "small", *options(shared), "--out", out)
    assert refused.exit_code == 6
    assert "holds results of a run that was stopped, and that differed in annotations, converter" in refused.stderr
    assert refused.stderr.startswith("error: ")  # not that the same command goes on
    assert evaluation(shared / "small", *options(shared), "--out", out, "--force").exit_code == 0
    assert contents(out) == contents(done)


def test_help_names_what_can_be_given() -> None:
    result = evaluation("--help")
    assert result.exit_code == 0
    for word in ("coco, lvis, odinw", "--against", "--captions", "torchrun", "--setting NAME=VALUE", "--record"):
        assert word in result.stdout
    missing = evaluation("--dataset", "coco")
    assert (missing.exit_code, "Missing argument 'MODEL'" in missing.stderr) == (2, True)


def test_classes_are_those_of_the_file(shared: Path) -> None:
    """Ids as they are there, though a model counts its words from 1."""
    assert {
        row["id"]: row["name"] for row in as_json(shared / "small", *options(shared))["evaluations"][0]["classes"]
    } == (dict(CLASSES))
