"""On which data sets `converter evaluate` measures, how their classes are named, and what is refused at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.evaluating import (
    QUICK,
    annotated,
    as_json,
    contents,
    evaluation,
    options,
    write_data,
    write_pictures,
)
from tests.support.packaging import edit

FILES = ["evaluation.json", "predictions.json", "report.html"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def data(shared: Path, tmp_path: Path) -> Path:
    """Pictures and annotations to be changed."""
    shutil.copytree(shared / "images", tmp_path / "images")
    shutil.copy(shared / "mine.json", tmp_path)
    return tmp_path


def captions_of(shared: Path, tmp_path: Path, said: object) -> list[str]:
    (tmp_path / "captions.json").write_text(json.dumps(said))
    (found,) = as_json(shared / "small", *options(shared), "--limit", 1, "--captions", tmp_path / "captions.json")[
        "evaluations"
    ]
    captions: list[str] = found["captions"]
    return captions


@pytest.mark.parametrize(
    ("said", "captions"),
    [
        ({}, ["person. dog"]),
        ({"dog": "small dog"}, ["person. small dog"]),
        ({"dog": {"prefix": "a ", "suffix": " with a person"}, "person": "cat"}, ["cat. a dog with a person"]),
        ([{"prefix": " ", "name": "cat", "suffix": ""}, {"prefix": "", "name": "umbrella", "suffix": " on a boat"}],
         [" cat. umbrella on a boat"]),
    ],
)  # fmt: skip
def test_captions_say_how_classes_are_named(said: object, captions: list[str], shared: Path, tmp_path: Path) -> None:
    assert captions_of(shared, tmp_path, said) == captions


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"god": "dog"}, "names 'god', which are no classes of the data set"),
        (["dog"], "has 1 captions for 2 classes"),
        ({"dog": 5}, "what it says of 'dog' is not a text, nor prefix, name and suffix"),
        ({"dog": {"before": "a"}}, "what it says of 'dog' is not a text"),
        ({"dog": " "}, "its caption would be empty"),
        ("dog", "expected an object, class name: caption, or a list of captions"),
        (None, "cannot be read as captions"),
    ],
)
def test_wrong_captions_are_refused_before_weights_are_read(
    said: object, problem: str, shared: Path, tmp_path: Path, no_weights: None
) -> None:
    path = tmp_path / "captions.json"
    if said is not None:
        path.write_text(json.dumps(said))
    result = evaluation(shared / "small", *options(shared), "--captions", path)
    assert result.exit_code == 7
    assert problem in result.stderr


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither hashed nor loaded."""
    monkeypatch.setattr("converter.cli.evaluate_sides.load_subject", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setattr("converter.checkpoint.hashes.tensor_hashes", lambda *_: pytest.fail("weights were hashed"))


def test_coco_lies_as_its_archives_have_it(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "val2017"
    rows = write_pictures(images, 2, names="{:012}.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(annotated(rows)))
    arguments = [shared / "small", "--dataset", "coco", *QUICK, "--workers", 0]
    (found,) = as_json(*arguments, "--images", images)["evaluations"]
    assert (found["dataset"], found["pictures"], found["metric"]["style"]) == ("coco", 2, "coco")
    monkeypatch.chdir(images)
    assert as_json(*arguments, "--images", ".")["evaluations"] == [found]
    monkeypatch.chdir(tmp_path)
    assert as_json(*arguments, "--images", "val2017/")["evaluations"] == [found]
    (tmp_path / "annotations").rename(tmp_path / "elsewhere")
    lost = evaluation(*arguments, "--images", images)
    assert lost.exit_code == 7
    assert lost.stderr == "error: coco: where are its annotations? Give instances_val2017.json by --annotations.\n"
    given = tmp_path / "elsewhere" / "instances_val2017.json"
    assert as_json(*arguments, "--images", images, "--annotations", given)["evaluations"] == [found]


def test_lvis_is_measured_by_its_rules(shared: Path, tmp_path: Path) -> None:
    rows = [
        {"id": row["id"], "coco_url": f"http://images.cocodataset.org/val2017/{row['file_name']}",
         "neg_category_ids": [7], "not_exhaustive_category_ids": []}
        for row in write_pictures(tmp_path / "val2017", 2)
    ]  # fmt: skip
    content = annotated(rows)
    content["categories"] = [each | {"frequency": "r"} for each in content["categories"]]
    (tmp_path / "minival.json").write_text(json.dumps(content))
    arguments = [shared / "small", "--dataset", "lvis", "--images", tmp_path, *QUICK, "--workers", 0]
    (found,) = as_json(*arguments, "--annotations", tmp_path / "minival.json")["evaluations"]
    assert found["metric"]["style"] == "lvis-fixed"
    assert (found["settings"]["most"], found["settings"]["per_caption"]) == (300, 40)
    assert found["figures"]["APr"] == found["figures"]["AP"]
    missing = evaluation(*arguments)
    assert (missing.exit_code, "--dataset lvis needs --annotations" in missing.stderr) == (2, True)
    own = evaluation(*arguments[:1], "--dataset", tmp_path / "minival.json", *arguments[3:], "--json")
    assert json.loads(own.stdout)["evaluations"][0]["figures"] == found["figures"]


ODINW: Mapping[str, tuple[str, tuple[tuple[int, str], ...]]] = {
    "EgoHands": ("EgoHands/generic/mini_val", ((1, "hand"),)),
    "Packages": ("Packages/Raw/valid", ((1, "package"),)),
}


@pytest.fixture(scope="module")
def odinw(shared: Path) -> list[object]:
    """Two of the 13 data sets, and a vocabulary with their words; the command line."""
    folder = shared / "odinw"
    for path, classes in ODINW.values():
        rows = write_pictures(folder / path, 2)
        # what their classes are called is said by the benchmark, not by the files
        content = annotated(rows, [(number, name.upper()) for number, name in classes])
        (folder / path / "annotations_without_background.json").write_text(json.dumps(content))
    words = (shared / "small" / "vocab.txt").read_text().split()
    for at, word in enumerate(("hand", "package", "there", "is", "porch")):
        words[-1 - at] = word
    (shared / "odinw.txt").write_text("".join(f"{word}\n" for word in words))
    return [shared / "small", "--images", folder, "--vocab", shared / "odinw.txt", *QUICK, "--workers", 0]


def test_odinw_is_several_data_sets_and_their_mean(odinw: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluation(*odinw, "--dataset", "odinw", "--out", out)
    assert result.exit_code == 0, result.output
    assert "odinw: not evaluated, since they are not in " in result.stderr
    assert "AerialMaritimeDrone" in result.stderr
    assert sorted(contents(out)) == sorted(f"{name}/{file}" for name in ODINW for file in FILES)
    content = as_json(*odinw, "--dataset", "odinw")
    found = content["evaluations"]
    assert [each["dataset"] for each in found] == ["odinw/EgoHands", "odinw/Packages"]
    assert [each["captions"] for each in found] == [["hand"], ["package"]]
    assert content["mean"] == pytest.approx(sum(each["figures"]["AP"] for each in found) / 2)
    assert f"mean AP of 2 data sets: {100 * content['mean']:.2f}" in result.stdout
    prompted = as_json(*odinw, "--dataset", "odinw-prompted")["evaluations"]
    assert [each["captions"] for each in prompted] == [[" hand of a person"], ["there is a package on the porch"]]


def test_several_data_sets_go_on_where_they_were_stopped(
    odinw: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the first of them has all that it needs."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert evaluation(*odinw, "--dataset", "odinw", "--out", whole).exit_code == 0
    from converter.glip.task import task

    ran: list[int] = []
    real = task._Runner.__call__

    def stop(runner: Any, pictures: Any) -> Any:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(len(pictures))
        return real(runner, pictures)

    monkeypatch.setattr(task._Runner, "__call__", stop)
    stopped = evaluation(*odinw, "--dataset", "odinw", "--out", out, "--threads", 1)
    assert stopped.exit_code == 130
    assert f"interrupted; what is done is kept in {out / 'Packages'}; the same command goes on" in stopped.stderr
    ran.clear()
    again = evaluation(*odinw, "--dataset", "odinw", "--out", out, "--threads", 1)
    assert again.exit_code == 0, again.output
    assert ran == [1]
    assert contents(out) == contents(whole)


def test_a_data_set_that_cannot_be_used_is_told_before_any_is_begun(
    odinw: list[object], shared: Path, tmp_path: Path, no_weights: None
) -> None:
    shutil.copytree(shared / "odinw", tmp_path / "odinw")
    arguments = [tmp_path / "odinw" if part == shared / "odinw" else part for part in odinw]
    last = tmp_path / "odinw" / "Packages" / "Raw" / "valid"
    for path in last.glob("*.jpg"):
        path.unlink()
    result = evaluation(*arguments, "--dataset", "odinw")
    assert result.exit_code == 7
    assert "holds none of the 2 pictures" in result.stderr
    edit(
        last / "annotations_without_background.json",
        lambda content: content["categories"].append({"id": 2, "name": "x"}),
    )
    edit(
        last / "annotations_without_background.json",
        lambda content: content["annotations"][0].update(category_id=2),
    )
    result = evaluation(*arguments, "--dataset", "odinw")
    assert result.exit_code == 7
    assert "has the classes [1, 2], and the official data set [1]. Get the official annotations." in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--dataset", "coc"], 7, "found 'coc', expected one of coco, lvis, odinw, odinw-prompted, or a file"),
        (["--protocol", "theirs"], 7, "protocol: found 'theirs', expected one of official, mmdet"),
        (["--setting", "sorter_side=90"], 7, "setting: found 'sorter_side', expected one of order"),
        (["--setting", "shorter_side"], 2, "write NAME=VALUE, each name once"),
        (["--setting", "most=1", "--setting", "most=2"], 2, "write NAME=VALUE, each name once"),
        (["--setting", "most=many"], 7, "setting: most is 'many', expected an integer from 1 to 10000"),
        (["--setting", "metric=lvis"], 7, "the metric 'lvis' needs to know which classes"),
        (["--dataset", "odinw"], 7, "holds none of the data sets of odinw"),
        (["--images", "nowhere"], 7, "nowhere: is not a folder. Give the one that holds the pictures (--images)"),
        (["--annotations", "x.json"], 2, "--annotations is for --dataset coco and lvis"),
    ],
)
def test_what_is_unknown_is_told_with_what_is_known(
    words: list[str], code: int, said: str, shared: Path, no_weights: None
) -> None:
    arguments = options(shared)
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name in arguments and name != "--setting":
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name, value]
    result = evaluation(shared / "small", *arguments)
    assert result.exit_code == code, result.output
    assert said in result.stderr


def test_without_pictures_a_model_cannot_be_asked(shared: Path, no_weights: None) -> None:
    result = evaluation(shared / "small", "--dataset", shared / "mine.json")
    assert result.exit_code == 7
    assert result.stderr == "error: a model is run on pictures: give their folder by --images.\n"


def test_a_wrong_folder_is_told_before_weights_are_read(shared: Path, tmp_path: Path, no_weights: None) -> None:
    result = evaluation(shared / "small", "--dataset", shared / "mine.json", "--images", tmp_path)
    assert result.exit_code == 7
    assert "holds none of the 6 pictures that" in result.stderr
    assert "(001.jpg, 002.jpg, 003.jpg)" in result.stderr


def twice(content: dict[str, Any]) -> None:
    content["images"][1]["id"] = 1


def long(content: dict[str, Any]) -> None:
    content["categories"][0]["name"] = "dog " * 300


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (twice, "image 1: the id is there twice"),
        (lambda content: content.update(categories=[]), "no categories"),
        (long, "alone has 302 tokens, expected at most "),
        (lambda content: content["categories"][1].update(name="xyz"), "no word of 'xyz' is in the vocabulary"),
    ],
)
def test_annotations_that_cannot_be_used_are_told_before_weights_are_read(
    change: Callable[[dict[str, Any]], object], said: str, shared: Path, data: Path, no_weights: None
) -> None:
    edit(data / "mine.json", change)
    result = evaluation(shared / "small", *options(data))
    assert result.exit_code == 7, result.output
    assert said in result.stderr
