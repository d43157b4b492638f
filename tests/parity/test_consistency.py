"""A certificate that was edited is refused, whichever of its numbers it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.errors import CaptureError
from converter.parity.consistency import NO_GAPS
from converter.parity.coverage import Reason
from converter.parity.evidence import evidence_of, read_evidence
from tests.support.certifying import certified_small

Content = dict[str, Any]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Of two captures, each compared in both precisions."""
    path = certified_small(tmp_path_factory.mktemp("certified"), captures=2)
    content: Content = json.loads(path.read_text())
    return content


def double(c: Content) -> Content:
    """The first run, in float64."""
    run: Content = c["runs"][0]
    assert run["dtype"] == "float64"
    return run


def single(c: Content) -> Content:
    run: Content = c["runs"][1]
    assert run["dtype"] == "float32"
    return run


def taps(run: Content) -> list[Content]:
    found: list[Content] = run["modes"]["propagated"]
    return found


def loosen(run: Content, **gate: Any) -> None:
    """The gate replaced, and every limit with it."""
    run["gate"] |= gate
    for found in run["modes"].values():
        for tap in found:
            tap["limit"] *= 10
            tap["share"] /= 10


def looser_gate(run: Content, looser: bool) -> None:
    default = {**run["gate"]}
    loosen(run, relative=1e-9, text="1e-09", looser=looser, default=default)


def gap(c: Content) -> Content:
    """The first part of a tensor that no position reached."""
    found: Content = next(p for t in c["coverage"]["tensors"] for p in t["unseen"] if p["gap"])
    return found


EDITS: dict[str, tuple[Callable[[Content], object], str]] = {
    "an error beyond its limit": (lambda c: taps(double(c))[0].update(relative=2e-10, share=2.0), "and yet passed"),
    "a smaller error": (lambda c: taps(single(c))[3].update(relative=1e-30), "is not the stated share"),
    "a limit that was raised": (lambda c: taps(double(c))[0].update(limit=1e-9), "its limit 1e-09 is not what"),
    "a limit in float32 that was raised": (
        lambda c: taps(single(c))[5].update(limit=taps(single(c))[5]["limit"] * 2), "is not what the gate"
    ),
    "a captured error that was raised": (
        lambda c: taps(single(c))[5].update(own=taps(single(c))[5]["own"] * 2), "is not what the gate"
    ),
    "no captured error": (lambda c: taps(single(c))[5].update(own=None), "is not what the gate"),
    "an activation that did not pass": (lambda c: taps(double(c))[0].update(passed=False), "passed'"),
    "an activation that was not judged": (lambda c: taps(double(c))[0].update(passed=None), "passed'"),
    "numbers that are NaN": (lambda c: taps(double(c))[0].update(unsound=1), "unsound'"),
    "no limit": (lambda c: taps(double(c))[0].update(limit=None), "limit'"),
    "a looser gate": (lambda c: loosen(double(c), relative=1e-9, text="1e-09"), "is not the gate for float64 on cpu"),
    "a looser gate that is not marked": (lambda c: looser_gate(double(c), False), "is not stated as such"),
    "a looser multiple": (lambda c: single(c)["gate"].update(times=8), "is not the gate for float32 on cpu"),
    "another text of the gate": (lambda c: double(c)["gate"].update(text="1e-12"), "is not stated as such"),
    "no gate": (lambda c: double(c)["gate"].update(relative=None), "gate'"),
    "a run that did not pass": (lambda c: double(c).update(passed=False), "passed'"),
    "a run that was not judged": (lambda c: double(c).update(verdict="could not be judged"), "verdict'"),
    "a run with problems": (lambda c: double(c).update(problems=["off"]), "problems'"),
    "detections that did not pass": (lambda c: double(c)["detections"][0].update(passed=False), "did not pass"),
    "detections beyond their limit": (lambda c: double(c)["detections"][0].update(pixels=1.0), "did not pass"),
    "another number of detections": (lambda c: double(c)["detections"][0].update(pixels="NaN"), "did not pass"),
    "no limit of detections": (lambda c: double(c)["detections"][0].update(limit=None), "its limits are not those"),
    "an activation left out": (lambda c: taps(double(c)).pop(), "do not compare the same activations"),
    "an activation twice": (lambda c: [taps(r).append(taps(r)[0]) for r in c["runs"][:2]], "has an activation twice"),
    "an activation left out everywhere": (
        lambda c: [results.pop(3) for r in c["runs"] for results in r["modes"].values()],
        "which the fingerprint has",
    ),
    "a fingerprint of something else": (lambda c: c.update(fingerprint="AAAA"), "its fingerprint is damaged"),
    "no float64": (lambda c: c["runs"].pop(0), "was not compared in float64"),
    "a capture without runs": (lambda c: c.update(runs=c["runs"][:2]), "was not compared in float64"),
    "runs of another capture": (lambda c: double(c).update(capture="else"), "which is not among the captures"),
    "captures of one name": (lambda c: c["captures"].append(c["captures"][0]), "two have the same name"),
    "more noticed than made": (lambda c: c["mutations"].update(caught=10**6), "are not among"),
    "more made than possible": (lambda c: c["mutations"].update(possible=1), "are not among"),
    "a survivor left out": (lambda c: c["mutations"]["survivors"].append({}), "are listed as not noticed"),
    "a better score": (lambda c: c["mutations"].update(score=2.0), "the score is not 2"),
    "more of a kind": (
        lambda c: next(iter(c["mutations"]["kinds"].values())).update(made=10**6), "made of all kinds are not the"
    ),
    "fewer noticed of a kind": (
        lambda c: [kind.update(caught=0) for kind in c["mutations"]["kinds"].values()], "0 caught of all kinds"
    ),
    "a version that is none": (lambda c: c.update(converter="latest"), "'latest' is not a version"),
    "another version than the runs'": (lambda c: c.update(converter="0.0.9"), "the certificate by another version"),
    "a torch that is none": (lambda c: double(c)["settings"].update(torch="?"), "settings/torch: '?' is not a version"),
    "a table without a hash": (lambda c: c.update(table={"name": "x", "sha256": "y"}), "at 'table'"),
    "more seen": (lambda c: c["coverage"].update(seen=c["coverage"]["seen"] + 1), "its totals are not those"),
    "fewer gaps": (lambda c: c["coverage"].update(gaps=0), "its totals are not those"),
    "another reason": (lambda c: c["coverage"]["unseen"].update({"none": 1}), "its totals are not those"),
    "a gap that is none": (lambda c: gap(c).update(gap=False), "is not such a gap as it says"),
    "a gap with another reason": (lambda c: gap(c).update(reason=NO_GAPS[0]), "is not such a gap as it says"),
    "fewer elements": (lambda c: gap(c).update(elements=1), "has another number of elements"),
    "coverage of another tensor": (lambda c: c["coverage"]["tensors"][0].update(name="x"), "is not among the weights"),
    "coverage by other captures": (lambda c: c["coverage"].update(captures=["small"]), "not that of the captures"),
    "no settings": (lambda c: c["package"].update(settings={}), "at 'package/settings'"),
    "a file without a hash": (lambda c: c["package"]["files"].update({"v.txt": ""}), "at 'package/files/v.txt'"),
}  # fmt: skip


def test_as_it_was_written_it_is_one(certificate: Content) -> None:
    evidence = evidence_of(certificate, Path("parity.json"))
    assert [(run.capture, run.dtype) for run in evidence.runs] == [
        ("small", "float64"), ("small", "float32"), ("second", "float64"), ("second", "float32"),
    ]  # fmt: skip
    assert [capture.name for capture in evidence.captures] == ["small", "second"]
    assert not any(run.looser for run in evidence.runs)
    assert evidence.coverage is not None
    assert evidence.coverage["captures"] == ["small", "second"]


@pytest.mark.parametrize("edit", EDITS)
def test_a_careless_edit_is_refused(edit: str, certificate: Content) -> None:
    content = copy.deepcopy(certificate)
    change, message = EDITS[edit]
    change(content)
    with pytest.raises(CaptureError) as caught:
        evidence_of(content, Path("parity.json"))
    assert message in str(caught.value)
    assert str(caught.value).startswith("parity.json: ")


def test_a_looser_gate_that_is_marked_is_shown(certificate: Content) -> None:
    content = copy.deepcopy(certificate)
    looser_gate(double(content), True)
    assert [run.looser for run in evidence_of(content, Path("parity.json")).runs] == [True, False, False, False]


def test_another_version_of_the_converter_may_have_made_it(certificate: Content) -> None:
    content = copy.deepcopy(certificate)
    for place in (content, *(run["settings"] for run in content["runs"])):
        place["converter"] = "0.2.0rc1"
    content["runs"][0]["settings"] |= {"torch": "2.9.0a0+145a3a7bda.nv25.10", "python": "3.14.0rc2+"}
    evidence_of(content, Path("parity.json"))


def test_what_is_a_gap_is_as_coverage_says() -> None:
    assert {reason.value for reason in Reason if not reason.gap} == set(NO_GAPS)


def test_coverage_may_be_absent(certificate: Content) -> None:
    content = {key: value for key, value in certificate.items() if key != "coverage"}
    assert evidence_of(content, Path("parity.json")).coverage is None


def test_the_first_format_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "parity.json").write_text('{"format": 1}')
    with pytest.raises(CaptureError, match=r"parity\.json: is a certificate of format 1, .* Certify again\.$"):
        read_evidence(tmp_path / "parity.json")


def test_limits_of_few_numbers_are_among_what_was_read(certificate: Content) -> None:
    """Those that the errors of all levels of an output make."""
    assert [tap for tap in taps(single(certificate)) if tap["limit"] != 4 * tap["own"]]
