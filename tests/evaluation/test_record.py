"""`evaluation.json`: written whole, read strictly, and of one model's weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.errors import CaptureError
from converter.evaluation.record import (
    add_evaluation,
    evaluation_of,
    evaluation_path,
    evaluations_beside,
    read_evaluations,
    to_json,
)
from converter.writing.staging import Staging
from tests.support.evaluations import COCO, WEIGHTS, evaluated

Content = dict[str, Any]
DEEP = b'{"format": 1, "evaluations": [' + b"[" * 5000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "evaluation.json"


def test_it_lies_beside_the_weights(tmp_path: Path) -> None:
    assert evaluation_path(tmp_path) == tmp_path / "evaluation.json"
    assert evaluation_path(tmp_path / "a.safetensors") == tmp_path / "a.evaluation.json"
    assert evaluations_beside(tmp_path) == ()


def test_the_same_evaluations_are_the_same_bytes(path: Path) -> None:
    contents = [evaluated(), evaluated(dataset="lvis"), evaluated(dtype="bfloat16")]
    there = [to_json(map(evaluation_of, order)) for order in (contents, contents[::-1])]
    assert there[0] == there[1]
    path.write_bytes(there[0])
    read = read_evaluations(path)
    assert to_json(read) == there[0]
    assert [(each.dataset, each.dtype) for each in read] == [
        ("coco", "bfloat16"), ("coco", "float32"), ("lvis", "float32"),
    ]  # fmt: skip


def test_what_it_says_is_told_in_a_line() -> None:
    whole = evaluation_of(evaluated())
    assert str(whole) == "coco, 5,000 pictures, protocol official, float32 on cpu: AP 46.58 %"
    assert whole.entry["sha256"] == whole.sha256 != evaluation_of(evaluated(batch=2)).sha256
    skipped = [{"picture": 1, "file_name": "a.jpg", "reason": "is no picture"}]
    part = evaluation_of(evaluated(limited=True, pictures=9, skipped=skipped, dataset="\x1b[31m"))
    assert str(part).startswith(r"'\x1b[31m', 9 pictures only, 1 skipped, ")
    assert (whole.is_whole, part.is_whole, evaluation_of(evaluated(skipped=skipped)).is_whole) == (True, False, False)


def test_another_data_set_protocol_dtype_or_device_is_added(path: Path) -> None:
    others = [evaluated(dataset="lvis"), evaluated(protocol={"name": "mine"}), evaluated(dtype="bfloat16")]
    for count, content in enumerate([evaluated(), *others, evaluated(device="cuda:0")], start=1):
        assert len(add_evaluation(path, evaluation_of(content))) == count
    assert len(read_evaluations(path)) == 5


def test_the_same_run_again_is_replaced(path: Path) -> None:
    add_evaluation(path, evaluation_of(evaluated(torch="2.12.0")))
    add_evaluation(path, evaluation_of(evaluated(torch="2.13.0", tf32=True)))
    assert [each.content["run"]["torch"] for each in read_evaluations(path)] == ["2.13.0"]


def test_a_run_on_some_pictures_does_not_replace_that_on_all(path: Path) -> None:
    whole, part = evaluation_of(evaluated()), evaluation_of(evaluated(limited=True, pictures=10))
    add_evaluation(path, whole)
    assert [each.is_limited for each in add_evaluation(path, part)] == [False, True]
    assert [each.is_limited for each in add_evaluation(path, part)] == [False, True]
    assert [each.is_limited for each in add_evaluation(path, whole)] == [False]


def test_an_evaluation_of_other_weights_is_not_added(path: Path) -> None:
    add_evaluation(path, evaluation_of(evaluated()))
    before = path.read_bytes()
    with pytest.raises(CaptureError, match=f"have sha256 {WEIGHTS}, these {'d' * 64}. Move it elsewhere"):
        add_evaluation(path, evaluation_of(evaluated("d" * 64, dataset="lvis")))
    assert path.read_bytes() == before


def test_it_is_written_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_evaluation(path, evaluation_of(evaluated()))
    before = path.read_bytes()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Staging, "commit", stopped)
    with pytest.raises(KeyboardInterrupt):
        add_evaluation(path, evaluation_of(evaluated(dataset="lvis")))
    assert path.read_bytes() == before
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_more_than_a_reader_takes_is_not_written(path: Path) -> None:
    add_evaluation(path, evaluation_of(evaluated()))
    before = path.read_bytes()
    large = evaluation_of(evaluated(dataset="large", chunks=[0] * 1_000_000))
    with pytest.raises(CaptureError, match="would have more than 1000000 commas, colons and brackets"):
        add_evaluation(path, large)
    assert path.read_bytes() == before


def twice(content: Content) -> None:
    content["evaluations"] *= 2


def of_two_models(content: Content) -> None:
    content["evaluations"].append(evaluated("d" * 64, dataset="lvis"))


HOSTILE: dict[str, tuple[Callable[[Content], object] | bytes, str]] = {
    "nothing": (b"", "is not the JSON of an evaluation"),
    "no JSON": (b"<html>", "is not the JSON of an evaluation"),
    "no text": (b"\xff\xfe", "is not the JSON of an evaluation"),
    "NaN": (b'{"format": NaN}', "NaN is not a JSON number"),
    "a figure beyond all floats": (b'{"AP": 1e999}', "is too large"),
    "a name twice": (b'{"format": 1, "format": 1}', "is there twice"),
    "levels without end": (DEEP, "is not the JSON of an evaluation"),
    "a list": (b"[]", "at its top"),
    "a text": (b'"evaluation"', "at its top"),
    "another format": (lambda c: c.update(format=2), "at 'format'"),
    "no evaluations": (lambda c: c.update(evaluations=[]), "at 'evaluations'"),
    "evaluations without end": (lambda c: c.update(evaluations=[0] * 201), "at 'evaluations'"),
    "an evaluation that is a number": (lambda c: c.update(evaluations=[1]), "at 'evaluations/0'"),
    "twice the same": (twice, "coco: is there twice"),
    "two models": (of_two_models, f"is of 2 models, with sha256 {WEIGHTS} and {'d' * 64}"),
}
PARTS: dict[str, tuple[Callable[[Content], object], str]] = {
    "no weights": (lambda c: c.pop("weights"), "'weights' is a required property"),
    "weights without a hash": (lambda c: c["weights"].update(sha256="x"), "at 'evaluations/0/weights/sha256'"),
    "a hash in capitals": (lambda c: c["weights"].update(sha256="A" * 64), "at 'evaluations/0/weights/sha256'"),
    "no predictions": (lambda c: c.update(predictions_sha256=None), "predictions_sha256'"),
    "a converter that is none": (lambda c: c.update(converter="latest"), "'latest' is not a version"),
    "a data set without a name": (lambda c: c["dataset"].update(name=""), "dataset/name'"),
    "a name without end": (lambda c: c["dataset"].update(name="a" * 1001), "dataset/name'"),
    "no pictures": (lambda c: c["dataset"].update(pictures=0), "dataset/pictures'"),
    "half a picture": (lambda c: c["dataset"].update(pictures=0.5), "dataset/pictures'"),
    "pictures beyond counting": (lambda c: c["dataset"].update(pictures=10**300), "dataset/pictures'"),
    "limited to 100": (lambda c: c["dataset"].update(limited=100), "dataset/limited'"),
    "a picture skipped without a reason": (lambda c: c["dataset"].update(skipped=[{"picture": 1}]), "skipped/0'"),
    "a picture skipped twice": (
        lambda c: c["dataset"].update(skipped=[{"picture": 1, "file_name": "a", "reason": "b"}] * 2), "skipped twice"
    ),
    "more skipped than there are": (
        lambda c: c["dataset"].update(pictures=1, skipped=[{"picture": 1, "file_name": "a", "reason": "b"}]),
        "1 pictures were skipped of 1",
    ),
    "a protocol without a name": (lambda c: c.update(protocol={}), "'name' is a required property"),
    "a device that is markup": (lambda c: c["run"].update(device="<img src=x>"), "run/device'"),
    "a dtype of 4 bits": (lambda c: c["run"].update(dtype="int4"), "run/dtype'"),
    "a metric of one's own": (lambda c: c["metric"].update(style="mine"), "metric/style'"),
    "LVIS's metric of a data set of COCO's kind": (lambda c: c["metric"].update(style="lvis"), "needs a data set of"),
    "no AP": (lambda c: c["figures"].pop("AP"), "'AP' is a required property"),
    "AP in percent": (lambda c: c["figures"].update(AP=46.58), "figures/AP'"),
    "AP below nothing": (lambda c: c["figures"].update(AP=-1), "figures/AP'"),
    "AP that is a text": (lambda c: c["figures"].update(AP="0.4658"), "figures/AP'"),
    "AP that is true": (lambda c: c["figures"].update(AP=True), "figures/AP'"),
    "a figure that is markup": (lambda c: c["figures"].update({"AP|": 0.1}), "figures'"),
    "a figure of LVIS": (lambda c: c["figures"].update(APr=0.1), "APr is none of the metric coco"),
    "AP75 above AP50": (lambda c: c["figures"].update(AP75=0.7), "AP75 0.7 is more than AP50 0.62"),
    "AR10 above AR100": (lambda c: c["figures"].update(AR10=0.7), "AR10 0.7 is more than AR100 0.6"),
    "a better AP": (lambda c: c["figures"].update(AP=0.467), "AP is 0.467, and the mean of its classes 0.4658"),
    "a better AP50": (lambda c: c["figures"].update(AP50=0.63), "AP50 is 0.63, and the mean of its classes 0.62"),
    "no AP of classes that have one": (lambda c: c["figures"].update(AP=None), "AP is none, and the mean"),
    "no classes": (lambda c: c.update(classes=[]), "classes'"),
    "a better class": (lambda c: c["classes"][0].update(ap=0.5), "AP is 0.4658, and the mean of its classes 0.5"),
    "a class with more at the stricter overlap": (lambda c: c["classes"][0].update(ap=0.7), "is more than ap50 0.62"),
    "a class twice": (lambda c: c["classes"][1].update(id=1), "id 1 is there 2 times"),
    "AP of what is not annotated": (lambda c: c["classes"][0].update(annotated=0), "nothing of it is annotated"),
    "AP of what was not predicted": (lambda c: c["classes"][0].update(predicted=0), "nothing was predicted"),
    "fewer than no boxes": (lambda c: c["classes"][0].update(predicted=-1), "classes/0/predicted'"),
    "a frequency that is none": (lambda c: c["classes"][0].update(frequency="x"), "classes/0/frequency'"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_is_none_is_refused(what: str, path: Path) -> None:
    make, message = HOSTILE[what]
    if isinstance(make, bytes):
        path.write_bytes(make)
    else:
        content = {"format": 1, "evaluations": [evaluated()]}
        make(content)
        path.write_text(json.dumps(content))
    refused(lambda: read_evaluations(path), message, str(path))
    before = path.read_bytes()
    refused(lambda: add_evaluation(path, evaluation_of(evaluated())), message, str(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("what", PARTS)
def test_an_evaluation_that_is_none_or_contradicts_itself_is_refused(what: str, path: Path) -> None:
    change, message = PARTS[what]
    content = evaluated()
    change(content)
    path.write_text(json.dumps({"format": 1, "evaluations": [content]}))
    refused(lambda: read_evaluations(path), message, str(path))
    refused(lambda: evaluation_of(content), message, "this evaluation")


def refused(read: Callable[[], object], message: str, where: str) -> None:
    with pytest.raises(CaptureError) as caught:
        read()
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{where}: ")
    assert len(str(caught.value)) < 2000


def test_of_lvis_the_frequencies_are_held_against_the_classes() -> None:
    evaluation_of(evaluated(dataset="lvis"))
    content = evaluated(dataset="lvis")
    content["figures"] |= {"APr": 0.2696, "APc": 0.1804}
    refused(lambda: evaluation_of(content), "APr is 0.2696, and the mean of its classes 0.1804", "this evaluation")


def test_figures_may_be_unknown() -> None:
    content = evaluated(figures=dict.fromkeys(COCO), classes=evaluated()["classes"][1:])
    assert str(evaluation_of(content)).endswith("AP unknown")


def test_what_is_not_a_file_is_refused(path: Path) -> None:
    path.mkdir()
    refused(lambda: read_evaluations(path), "cannot be read: Is a directory", str(path))
