"""What a report says in text, JSON and JUnit XML; made by hand, so that every verdict is among them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.display import figure
from converter.parity.compare import Gate, TapResult
from converter.parity.detections import Box, DetectionResult
from converter.parity.html import to_html
from converter.parity.report import badness, to_json, to_junit, to_text
from converter.parity.run import Report, Weights
from converter.parity.summary import printable, summary, top

GATE = Gate(1e-10, None, "it decides")
LOOSER = Gate(1e-6, None, "given on the command line", GATE)
LOUD = "LOOSER THAN THE DEFAULT: 1e-06 instead of 1e-10 (given on the command line)"
HOSTILE = "</script><script>alert(1)</script><!-- ]]> & \"'\x00\x08\x1b[2J\ud800\ufffe\u202e\n#${x}@{data}"
MISSED = Box(2, 0.7264, (0.0, 1.0, 31.4, 63.0))


def tap(name: str, relative: float = 1e-13, **changes: Any) -> TapResult:
    values: dict[str, Any] = {
        "module": f"model.{name}", "shape": (1, 8, 2, 3), "max_abs": 2e-13, "needed": 1e-13, "cosine": 0.99,
        "own": 5e-14, "unsound": 0, "limit": 1e-10, "histogram": ((0, 3), (1, 0)), "heat": ((0.0, 1e-13, 2e-13),) * 2,
    }  # fmt: skip
    return TapResult(name=name, relative=relative, **(values | changes))


def image(**changes: Any) -> DetectionResult:
    values: dict[str, Any] = {
        "expected": 2, "found": 2, "same_order": True, "pixels": 1e-9, "scores": 1e-9, "matched": 2, "missed": (),
        "extra": (), "limit": 1e-3, "score_limit": 1e-6,
    }  # fmt: skip
    return DetectionResult(**(values | changes))


def report(*taps: TapResult, **changes: Any) -> Report:
    values: dict[str, Any] = {
        "capture": "small", "made": {"weights": "synthetic", "errors": {"float32": {"a": 1.0}}}, "device": "cpu",
        "dtype": "float64", "gate": GATE, "settings": {"torch": "2.13.0", "threads": 2},
        "modes": {"propagated": taps or (tap("a"), tap("b")), "injected": taps or (tap("a"), tap("b"))},
        "detections": (image(),), "noise": 0.0,
    }  # fmt: skip
    return Report(**(values | changes))


def failed() -> Report:
    """Two blocks of `model.head` agree, but not the whole; it is off by itself, as is an image."""
    bad = tap("head", 0.25, module="model.head")
    parts = tap("one", module="model.head.one"), tap("two", module="model.head.two")
    missing = image(found=1, matched=1, missed=(MISSED,), pixels=math.nan, scores=math.nan)
    return report(*parts, bad, detections=(missing,))


def unjudged() -> Report:
    return report(
        tap("a", 3e-3, limit=None, own=None), dtype="bfloat16", gate=Gate(None, 4, "times its own"),
        detections=(image(limit=None),), skipped={"injected": "only probes were kept"}, noise=None,
    )  # fmt: skip


def xml(value: Report) -> ElementTree.Element:
    return ElementTree.fromstring(to_junit(value))


def test_a_pass_is_said_in_every_form() -> None:
    value = report()
    assert to_text(value).startswith("pass: the model computes what capture small holds (float64, cpu)\n")
    assert to_json(value)["verdict"] == "pass"
    assert {key: xml(value).get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6", "failures": "0", "errors": "0", "skipped": "0",
    }  # fmt: skip


def test_a_failure_is_said_in_every_form() -> None:
    value = failed()
    assert to_text(value).startswith("FAIL: the model does not compute what capture small holds (float64, cpu)\n")
    assert to_json(value)["passed"] is False
    failures = [(case.get("classname"), case.get("name")) for case in xml(value).iter("testcase") if len(case)]
    assert failures == [
        ("parity.summary", "small"), ("parity.propagated", "head"), ("parity.injected", "head"),
        ("parity.detections", "image 0"),
    ]  # fmt: skip


def test_what_could_not_be_judged_is_no_pass() -> None:
    value = unjudged()
    assert to_text(value).startswith("could not be judged: whether the model computes what capture small holds")
    assert "not judged  a: relative error 3.0e-03; not judged, as the capture does not hold" in to_text(value)
    assert to_json(value)["passed"] is None
    messages = [element.get("message") for element in xml(value).iter("skipped")]
    assert any("does not hold its own error in bfloat16" in str(message) for message in messages)
    assert "only probes were kept" in messages


def test_text_says_where_to_look() -> None:
    text = to_text(failed())
    assert "image 0: missed label 2, score 0.7264, 0.0 1.0 31.4 63.0" in text
    assert "shown only, never a gate" in text
    assert "noise floor: 0 relative" in text
    assert "settings: torch 2.13.0, threads 2" in text


def test_the_top_of_a_failure_can_be_acted_on() -> None:
    known = Weights(Path("my model.safetensors"), same=True)
    value = replace(
        failed(), weights=known, reference=Path("small.safetensors"), suspects=("head.box.weight",),
        parameters=("model.head.weight", "model.head.bias"), record="the file was changed after it was written",
    )  # fmt: skip
    assert to_text(value).splitlines()[: len(top(value))] == top(value)
    assert top(value) == [
        "FAIL: my model.safetensors does not compute what capture small holds (float64, cpu)",
        "  first difference  at head (computed by model.head): relative error 2.5e-01, at most 1.0e-10",
        "  off by itself     model.head, given the captured inputs",
        "                    model.head: its parts agree, so the fault is in the code between them",
        "  suspect tensors   head.box.weight",
        "  record            the file was changed after it was written",
        "  parameters        model.head: weight, bias",
        "  weights           those that the capture was made of",
        "  next              converter convert OFFICIAL.pth 'my model.safetensors' --force  # writes it as recorded",
        "                    converter diff OFFICIAL.pth 'my model.safetensors'  # which tensors are not those of the "
        "source",
        "  propagated        2 of 3 activations are within their limit, 1 beyond",
        "  injected          2 of 3 activations are within their limit, 1 beyond",
        f"  detections        differ in 1 of 1 image; image 0: {value.detections[0].why('float64')}",
    ]


def test_a_success_is_short() -> None:
    text = to_text(replace(report(), weights=Weights(Path("x.safetensors"), same=True)))
    assert text.splitlines()[:5] == [
        "pass: x.safetensors computes what capture small holds (float64, cpu)",
        "  propagated  all 2 activations are within their limit",
        "  injected    all 2 activations are within their limit",
        "  detections  the same 2 objects in 1 image",
        "",
    ]
    assert len(text.splitlines()) == 8
    assert "verdict" not in text
    assert len(to_text(report(), rows=1).splitlines()) > 12


def said(value: Report, label: str) -> list[str]:
    return [line.text for line in summary(value) if line.label == label]


def test_errors_that_only_add_up_are_told_apart() -> None:
    value = report(modes={"propagated": (tap("a", 1e-9),), "injected": (tap("a"),)})
    assert said(value, "off by itself") == ["no block, given the captured inputs: small differences have added up"]
    unknown = report(modes={"propagated": (tap("a", 1e-9),)}, skipped={"injected": "only probes were kept"})
    assert said(unknown, "off by itself") == ["not known: only probes were kept"]


@pytest.mark.parametrize("form", [to_text, lambda r: str(to_json(r)), lambda r: to_junit(r).decode(), to_html])
def test_other_weights_are_suspected_where_nothing_ever_agreed(form: Any) -> None:
    unknown = Weights(Path("x.safetensors"))
    never = report(tap("a", 1e-2), tap("b", 1e-1), weights=unknown)
    assert "not known whether the capture was made of these: it does not say" in form(never)
    assert "other weights are the likeliest cause" in form(never)
    later = report(tap("a"), tap("b", 1e-1), weights=unknown)
    assert "likeliest cause" not in form(later)
    assert "not known whether the capture was made of these" in form(later)
    assert "likeliest cause" not in form(replace(never, weights=replace(unknown, same=True)))


def test_the_next_command_is_one_that_tells_more() -> None:
    value = report(modes={"propagated": (tap("a"), tap("b", 1.0))}, reference=Path("c.safetensors"))
    file = Weights(Path("x.safetensors"))
    injected = "converter parity x.safetensors --reference c.safetensors --mode injected"
    assert [line.partition("  #")[0] for line in said(replace(value, weights=file), "next")] == [
        "converter diff OFFICIAL.pth x.safetensors",
        injected,
    ]
    converted = replace(value, weights=replace(file, converted=True))
    assert [line.partition("  #")[0] for line in said(converted, "next")] == [injected]
    compact = replace(value, weights=file, skipped={"injected": "compact"}, made={"official_config": "x.yaml"})
    assert "--full" in said(compact, "next")[-1]
    assert said(replace(report(), weights=file), "next") == []


def test_the_worst_stands_first_and_rows_can_be_limited() -> None:
    taps = [tap("fine"), tap("near", 9e-11), tap("bad", 1e-9), tap("nan", math.nan), tap("open", limit=None)]
    exact = tap("none allowed", 1e-17, limit=0.0)
    assert [r.name for r in sorted([*taps, exact], key=badness)] == [
        "nan", "none allowed", "bad", "open", "near", "fine",
    ]  # fmt: skip
    text = to_text(report(*taps), rows=2)
    assert "propagated: the worst 2 (--rows 5 shows all)" in text
    assert "near" not in text.partition("propagated: the worst")[2].partition("injected: the worst")[0]


@pytest.mark.parametrize("form", [to_text, lambda r: json.dumps(to_json(r)), lambda r: to_junit(r).decode()])
def test_a_gate_looser_than_the_default_is_loud_in_every_form(form: Any) -> None:
    assert LOUD in form(report(gate=LOOSER))
    assert "LOOSER" not in form(report())


def test_columns_without_a_number_are_not_shown() -> None:
    compact = tap("a", 1.0, max_abs=None, needed=None, cosine=None)
    head = to_text(report(compact)).partition("\npropagated\n")[2].splitlines()[0]
    assert head.split() == ["verdict", "error", "limit", "x", "own", "activation"]
    assert "cosine" not in to_text(report(compact))
    assert to_html(report(compact)).count('<th scope="col" data-by=') == 7
    assert to_html(failed()).count('<th scope="col" data-by=') == 10


def test_a_gate_is_said_with_all_its_digits() -> None:
    assert str(Gate(1.4e-10, None, "")) == "1.4e-10"
    assert str(Gate(None, 4, "")) == "4x the reference's own error"


def test_an_error_just_beyond_its_limit_does_not_look_equal() -> None:
    assert "relative error 1.0000001e-10, at most 1e-10" in to_text(report(tap("a", 1.0000001e-10)))


def test_json_has_no_numbers_that_json_lacks() -> None:
    value = report(tap("a", math.nan, max_abs=math.inf, unsound=2), made={"x": [-math.inf], "y": {3}}, noise=None)
    content = json.loads(json.dumps(to_json(value, pictures=True), allow_nan=False))
    first = content["modes"]["propagated"][0]
    assert (first["relative"], first["max_abs"], first["share"]) == ("NaN", "Infinity", "Infinity")
    assert content["made"] == {"x": ["-Infinity"], "y": "{3}"}
    assert content["noise"] is None


def test_json_holds_pictures_only_where_asked_and_no_facts_of_each_activation() -> None:
    plain, whole = to_json(report()), to_json(report(), pictures=True)
    assert "heat" not in plain["modes"]["injected"][0]
    assert whole["modes"]["injected"][0]["histogram"] == [[0, 1, 3], [1, 0, 1]]
    assert plain["made"] == {"weights": "synthetic"}


def test_hostile_names_are_harmless() -> None:
    value = report(tap(HOSTILE, 1.0, module=HOSTILE), capture=HOSTILE, settings={HOSTILE: HOSTILE})
    text = to_text(value)
    assert all(line.isprintable() for line in text.splitlines())
    text.encode()
    assert {case.get("name") for case in xml(value).iter("testcase")} >= {printable(HOSTILE), "image 0"}
    assert json.loads(json.dumps(to_json(value)))["modes"]["propagated"][0]["name"] == HOSTILE


@given(st.text(st.characters(), min_size=1))
def test_any_name_makes_xml_that_can_be_read(name: str) -> None:
    value = report(tap(name, 1.0, module=name), gate=replace(LOOSER, reason=name))
    assert printable(name) in [case.get("name") for case in xml(value).iter("testcase")]


def test_figures() -> None:
    assert [figure(x) for x in (None, 0.0, 1.25e-7, math.nan)] == ["-", "0", "1.2e-07", "nan"]
