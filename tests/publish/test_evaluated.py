"""An evaluation is published with the weights it is of, told as it is, and refused beside others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard
from markdown_it import MarkdownIt

from converter.errors import CaptureError
from converter.evaluation.record import evaluation_path
from converter.glip.family import FAMILY
from converter.glip.task.protocol import load_protocol
from converter.hub.resolve import resolve
from converter.parity.family import Asked
from converter.publish.evaluated import NOTHING, TITLE
from tests.support.certifying import verify
from tests.support.evaluations import evaluate, evaluated
from tests.support.hub.server import HubServer
from tests.support.packaging import card_of, edit, packaged, run
from tests.support.publishing import REPO, Clock, files_at, go, is_published, refused
from tests.support.small_glip import loading

SKIPPED = [{"picture": 7, "file_name": "val/7.jpg", "reason": "is cut off"}]
SINGLE = "glip.safetensors"


def told(out: Path) -> str:
    """The card's section."""
    return card_of(out).split(f"\n## {TITLE}\n")[1].split("\n## ")[0]


def results(out: Path) -> list[EvalResult]:
    """What the Hub's client reads of the card."""
    return ModelCard.load(out / "README.md").data.eval_results or []


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("conversion", [SINGLE, "glip"])
def test_it_comes_with_the_package(conversion: str, conversions: Path) -> None:
    made = evaluate(conversions / conversion, evaluated(), evaluated(dataset="lvis"))
    out = conversions / "out"
    found = json.loads(run(conversions, conversion, out, "--json").stdout)
    assert found["evaluations"] == [evaluation.entry for evaluation in made]
    assert "evaluation.json" in found["files"]
    assert "evaluation.json" in json.loads((out / "conversion.json").read_text())["folder"]
    assert f"`evaluation.json` (SHA-256 `{file_sha256(out / 'evaluation.json')}`)" in told(out)
    assert run(conversions, "out", conversions / "again").exit_code == 0
    assert (conversions / "again" / "evaluation.json").read_bytes() == (out / "evaluation.json").read_bytes()


def test_without_one_the_card_says_that_nothing_was_run(conversions: Path) -> None:
    out = packaged(conversions, SINGLE, "--model-name", "glip-t")
    assert NOTHING in card_of(out)
    assert TITLE not in card_of(out)
    assert results(out) == []
    assert "model-index" not in card_of(out)


def test_the_hub_can_read_the_figures(conversions: Path) -> None:
    evaluate(conversions / SINGLE, evaluated(), evaluated(dataset="lvis"), evaluated(dataset="mine", pictures=9))
    out = packaged(conversions, SINGLE, "--model-name", "glip-t")
    data = ModelCard.load(out / "README.md").data
    assert data.model_name == "GLIP-T"
    assert {result.task_type for result in results(out)} == {"zero-shot-object-detection"}
    first = [(r.dataset_name, r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in results(out)]
    assert first[0] == ("COCO val2017", "coco", "val2017", "mAP", 46.58)
    assert ("LVIS minival", "lvis", "minival", "APr", 18.04) in first
    assert ("mine", "mine", None, "mAP", 46.58) in first
    assert results(out)[0].metric_args == {
        "protocol": "official", "dtype": "float32", "device": "cpu", "pictures": 5000,
    }  # fmt: skip
    assert not any(result.verified for result in results(out))


def test_runs_in_other_numbers_are_told_apart(conversions: Path) -> None:
    evaluate(conversions / SINGLE, evaluated(), evaluated(dtype="bfloat16", device="cuda:0"))
    out = packaged(conversions)
    assert [r.metric_args["dtype"] for r in results(out) if r.metric_type == "mAP"] == ["bfloat16", "float32"]
    assert "`bfloat16` on `cuda:0` (torch `2.13.0`)" in told(out)


def test_figures_stand_beside_the_reported_ones(conversions: Path) -> None:
    evaluate(conversions / SINGLE, evaluated(), evaluated(dataset="lvis"))
    section = told(packaged(conversions, SINGLE, "--model-name", "glip-t"))
    coco, lvis = section.split("**LVIS minival**, 4,809 pictures")
    assert "**COCO val2017**, 5,000 pictures, protocol `official`, `float32` on `cpu`" in coco
    assert "| in percent | AP | AP50 | AP75 | APs | APm | APl | AR1 |" in coco
    assert "| measured here | 46.58 | 62.00 | 51.00 | 30.00 | - |" in coco
    assert "| reported by the authors | 46.6 | - | - |" in coco
    assert "| in percent | AP | AP50 | AP75 | APr | APc | APf | AR |" in lvis
    assert "| reported by the authors | - | - | - | 17.6 | - | - | - |" in lvis
    assert "faster-coco-eval 1.8.0" in coco


OTHER_RUNS: dict[str, dict[str, Any]] = {
    "another protocol": {"protocol": {"name": "mine"}},
    "a protocol that was changed": {"protocol": {"name": "official with score_threshold=0.01"}},
    "other pictures": {"pictures": 4952},
    "another data set": {"dataset": "coco2014"},
    "some pictures": {"limited": True},
    "all but one picture": {"skipped": SKIPPED},
}


@pytest.mark.parametrize("what", OTHER_RUNS)
def test_what_is_not_the_benchmark_is_not_set_beside_it(what: str, conversions: Path) -> None:
    evaluate(conversions / SINGLE, evaluated(**OTHER_RUNS[what]))
    out = packaged(conversions, SINGLE, "--model-name", "glip-t")
    assert "reported by the authors" not in told(out)
    assert "not run on these weights: COCO val2017, AP, zero-shot; COCO" in card_of(out)
    assert [result.dataset_name for result in results(out)] != ["COCO val2017"]


def test_released_benchmarks_that_were_not_run_are_named(conversions: Path) -> None:
    evaluate(conversions / SINGLE, evaluated())
    card = card_of(packaged(conversions, SINGLE, "--model-name", "glip-t-b"))
    (line,) = [line for line in card.splitlines() if "not run on these weights" in line]
    assert "COCO val2017, AP, zero-shot" not in line
    assert "COCO val2017, AP, after fine-tuning on COCO; LVIS minival, APr, zero-shot, of the best" in line
    assert NOTHING not in card
    assert "not measured here" not in card


def test_of_a_model_that_was_not_named_nothing_is_reported(conversions: Path) -> None:
    evaluate(conversions / SINGLE, evaluated())
    out = packaged(conversions)
    assert "reported by the authors" not in card_of(out)
    assert "No other benchmark was run on these weights." in card_of(out)
    assert ModelCard.load(out / "README.md").data.model_name == "GLIP (small)"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"limited": True, "pictures": 100}, "**On 100 pictures only**, the first of the data set"),
        ({"skipped": SKIPPED}, "**1 picture skipped**, as not to be used: `val/7.jpg`: is cut off."),
    ],
)
def test_a_part_of_a_data_set_is_said_to_be_one_and_never_indexed(
    more: dict[str, Any], said: str, conversions: Path
) -> None:
    evaluate(conversions / SINGLE, evaluated(**more), evaluated(dataset="lvis"))
    out = packaged(conversions)
    assert said in told(out)
    assert {result.dataset_type for result in results(out)} == {"lvis"}
    evaluate(conversions / SINGLE, evaluated(**more))
    assert run(conversions, SINGLE, out, "--force").exit_code == 0
    assert said in told(out)
    assert "No whole benchmark was run on these weights" in card_of(out)
    assert "model-index" not in card_of(out)


@pytest.mark.parametrize(
    "hostile",
    ["www.evil.example", "`|x\n# y", "<script>alert(1)</script>", "](https://evil)", "\ud800", "---\na: b", "夜"],
)
def test_names_out_of_the_file_stay_names(hostile: str, conversions: Path) -> None:
    part = {"dataset": hostile, "protocol": {"name": hostile}, "torch": hostile, "library": hostile, "limited": True}
    part["skipped"] = [{"picture": 1, "file_name": hostile, "reason": hostile}]
    whole = {"dataset": hostile, "protocol": {"name": hostile}}
    evaluate(conversions / SINGLE, evaluated(**part), evaluated(**whole))
    out = packaged(conversions)
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(told(out))
    assert html.count("<table>") == 2
    assert "<h" not in html.replace("<hr", "")
    assert "<script" not in html
    assert "<a " not in html
    assert results(out)[0].dataset_type.isprintable()
    assert len(results(out)) == 3


def test_the_evaluation_of_other_weights_is_refused_everywhere(conversions: Path, hub: HubServer, clock: Clock) -> None:
    out = packaged(conversions)
    sha256 = json.loads((out / "conversion.json").read_text())["sha256"]
    for weights in (conversions / SINGLE, conversions / "glip", out):
        evaluate(weights, evaluated("d" * 64))
    (conversions / SINGLE).with_suffix(".parity.json").unlink()
    both = ("d" * 64, sha256)
    for conversion in (SINGLE, "glip"):
        result = run(conversions, conversion, conversions / "new")
        assert (result.exit_code, all(each in result.stderr for each in both)) == (8, True), result.output
        assert not (conversions / "new").exists()
    with pytest.raises(CaptureError) as caught:
        go(out, clock)
    assert all(each in str(caught.value) for each in both)
    assert hub.requests == []


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1, "evaluations": [{}]}'])
def test_one_that_is_not_sound_is_refused(content: str, conversions: Path, hub: HubServer, clock: Clock) -> None:
    out = packaged(conversions)
    for path in (conversions / "glip", out):
        (path / "evaluation.json").write_text(content)
    assert run(conversions, "glip", conversions / "new").exit_code == 8
    with pytest.raises(CaptureError, match=r"evaluation\.json: is "):
        go(out, clock)


def test_it_is_published_and_comes_back(conversions: Path, hub: HubServer, clock: Clock) -> None:
    evaluate(conversions / SINGLE, evaluated())
    out = packaged(conversions, SINGLE, "--model-name", "glip-t")
    go(out, clock)
    assert is_published(hub, out)
    found = resolve(REPO, cache_dir=conversions / "cache")
    assert (found.path / "evaluation.json").read_bytes() == (out / "evaluation.json").read_bytes()
    (conversions / "glip.evaluation.json").unlink()
    assert run(conversions, SINGLE, out, "--force").exit_code == 0
    assert go(out, clock).deleted == ("evaluation.json",)
    assert "evaluation.json" not in files_at(hub)


def test_without_a_certificate_it_is_published_too(conversions: Path, hub: HubServer, clock: Clock) -> None:
    (conversions / "glip.parity.json").unlink()
    evaluate(conversions / SINGLE, evaluated())
    out = packaged(conversions)
    go(out, clock, unverified=True)
    there = hub.content(REPO, "README.md").decode()
    assert "UNVERIFIED" in there
    assert f"## {TITLE}" in there
    (out / "evaluation.json").unlink()
    assert "there is no evaluation.json" in refused(lambda: go(out, clock, unverified=True))


def test_one_that_the_certificate_names_stays_as_it_was(conversions: Path, hub: HubServer, clock: Clock) -> None:
    (made,) = evaluate(conversions / SINGLE, evaluated())
    edit(conversions / "glip.parity.json", lambda certificate: certificate.update(evaluations=[made.entry]))
    out = packaged(conversions)
    assert verify(out, loading(out), evaluations=[made.entry]).passed
    go(out, clock)
    for change in (lambda path: evaluate(path, evaluated(torch="2.14.0")), lambda path: evaluation_path(path).unlink()):
        for path in (conversions / SINGLE, out):
            change(path)
        result = run(conversions, SINGLE, conversions / "again")
        expected = "is not what was certified: the evaluation on coco (protocol official, float32 on cpu): "
        assert (result.exit_code, expected in result.stderr) == (8, True), result.output
        with pytest.raises(CaptureError, match="is not what was certified: the evaluation on coco"):
            go(out, clock)


def replace_in_card(out: Path, old: str, new: str) -> None:
    card = card_of(out)
    assert old in card
    (out / "README.md").write_text(card.replace(old, new), encoding="utf-8")


OTHER_FIGURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another evaluation": (lambda out: evaluate(out, evaluated(torch="2.14.0")), "does not name evaluation.json"),
    "one more": (lambda out: evaluate(out, evaluated(), evaluated(dataset="lvis")), "does not name evaluation.json"),
    "none": (lambda out: (out / "evaluation.json").unlink(), "states figures of an evaluation, and there is no"),
    "a better figure": (
        lambda out: replace_in_card(out, "value: 46.58", "value: 56.58"),
        "states in its metadata box AP 56.58 on COCO val2017, which evaluation.json does not",
    ),
    "a figure of another run": (lambda out: replace_in_card(out, "device: cpu", "device: cuda"), "box AP 46.58 on"),
    "a model-index of nothing": (
        lambda out: replace_in_card(out, "model-index:", "model-index: [1]\nother:"), "cannot be read"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_FIGURES)
def test_a_card_with_other_figures_is_refused(what: str, conversions: Path, hub: HubServer, clock: Clock) -> None:
    evaluate(conversions / SINGLE, evaluated())
    out = packaged(conversions)
    change, expected = OTHER_FIGURES[what]
    change(out)
    said = refused(lambda: go(out, clock))
    assert expected in said
    assert f"Make it again: converter package {out} OUT" in said
    assert hub.requests == []


def test_figures_that_no_evaluation_has_are_refused(conversions: Path, hub: HubServer, clock: Clock) -> None:
    evaluate(conversions / SINGLE, evaluated())
    index = card_of(packaged(conversions)).partition("model-index:")[2].partition("---\n")[0]
    (conversions / "glip.evaluation.json").unlink()
    out = conversions / "out"
    assert run(conversions, SINGLE, out, "--force").exit_code == 0
    replace_in_card(out, "library_name:", f"model-index:{index}library_name:")
    assert "states in its metadata box AP 46.58" in refused(lambda: go(out, clock))


def test_a_card_packaged_again_is_published(conversions: Path, hub: HubServer, clock: Clock) -> None:
    out = packaged(conversions)
    evaluate(out, evaluated())
    assert "does not name evaluation.json" in refused(lambda: go(out, clock))
    assert run(conversions, "out", conversions / "again").exit_code == 0
    go(conversions / "again", clock)
    assert is_published(hub, conversions / "again")


def test_benchmarks_are_of_figures_that_are_reported() -> None:
    about = FAMILY.about()
    assert about["benchmarks"].keys() <= about["figures"].keys()
    for key, benchmark in about["benchmarks"].items():
        assert about["sources"][benchmark["source"]].startswith("https://")
        assert benchmark["name"] in about["figures"][key]
        assert f" {benchmark['figure']}," in about["figures"][key]
        assert benchmark["style"] == load_protocol(Asked(benchmark["protocol"]), benchmark["dataset"]).metric
