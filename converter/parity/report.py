"""A report of parity as text, JSON and JUnit XML, each with its summary first; `html.py` makes a page of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from converter.display import figure, plain
from converter.parity.compare import BINS, DECADES, TapResult
from converter.parity.detections import Box, DetectionResult
from converter.parity.gates import Gate
from converter.parity.run import Report
from converter.parity.summary import headline, module_name, next_steps, overall, printable, summary, top, verdict

VERDICTS: Mapping[bool | None, str] = {True: "pass", False: "FAIL", None: "not judged"}
# of a capture's facts: per activation, and in the results already
PER_ACTIVATION = ("errors", "compact")
_HEADER = ("verdict", "error", "limit", "x own", "max abs", "needed", "cosine*", "unsound", "activation")
_NOTES = {
    "x own": "x own: in units of the captured model's own error",
    "needed": "needed: the least t with |difference| <= t + t |captured|",
    "cosine*": "* cosine ignores scale: shown only, never a gate",
    "unsound": "unsound: numbers that are NaN or infinite on one side only",
}


def badness(result: TapResult) -> tuple[int, float]:
    """Sorts failed before not judged before passed, and among these by the share of the limit that is used up."""
    rank = {False: 0, None: 1, True: 2}[result.passed]
    return rank, -(math.inf if math.isnan(result.share) else result.share)


def looser(gate: Gate) -> str | None:
    """A loud line where the gate lets pass what the default would not."""
    if not gate.looser:
        return None
    default = str(gate.default) if gate.default is not None else "none"
    return f"LOOSER THAN THE DEFAULT: {gate} instead of {default} ({gate.reason})"


def noise_line(report: Report) -> str:
    """How far two runs of the same model are apart."""
    if report.noise is None:
        return "noise floor: not measured (one run)"
    return f"noise floor: {figure(report.noise)} relative between two runs of the model"


def to_text(report: Report, rows: int | None = None) -> str:
    """The report for a terminal: what is to be known first; then of each mode the `rows` worst activations.

    Without `rows` these are the worst 20 of those that did not pass.
    """
    lines = top(report)
    loud = looser(report.gate)
    if loud is not None:
        lines += [f"  {loud}"]
    for mode, results in report.modes.items():
        worst = sorted(results, key=badness)
        shown = worst[:rows] if rows else [result for result in worst if not result.passed][:20]
        if not shown:
            continue
        some = f": the worst {len(shown)} (--rows {len(results)} shows all)" if len(results) > len(shown) else ""
        table = _table(shown)
        lines += ["", f"{mode}{some}", *table, *(note for name, note in _NOTES.items() if name in table[0])]
    if report.detections and (rows or not report.passed):
        lines += ["", *_detection_lines(report, rows or 20)]
    lines += ["", f"gate: {report.gate} ({report.gate.reason.rstrip('.')})"]
    lines.append(noise_line(report))
    lines.append("settings: " + ", ".join(f"{name} {plain(str(value))}" for name, value in report.settings.items()))
    if loud is not None:
        lines.append(loud)
    return "\n".join(map(printable, lines)) + "\n"


def _table(results: Sequence[TapResult]) -> list[str]:
    """Without columns that are empty."""
    shown = [
        (
            VERDICTS[r.passed], figure(r.relative), figure(r.limit), "-" if r.ratio is None else f"{r.ratio:.2g}",
            figure(r.max_abs), figure(r.needed), "-" if r.cosine is None else f"{r.cosine:.6f}",
            str(r.unsound or "-"), plain(r.name),
        )
        for r in results
    ]  # fmt: skip
    columns = [(head, *cells) for head, *cells in zip(_HEADER, *shown, strict=True) if set(cells) != {"-"}]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for first, *middle, last in zip(*columns, strict=True):
        numbers = [text.rjust(width) for text, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  " + "  ".join([first.ljust(widths[0]), *numbers, last]))
    return lines


def by_rank(detection: DetectionResult) -> tuple[str, str]:
    """The largest differences of boxes and scores of the same rank; there are none where the numbers differ."""
    boxes, scores = (None if math.isnan(value) else value for value in (detection.pixels, detection.scores))
    return figure(boxes), figure(scores)


def _detection_lines(report: Report, rows: int) -> list[str]:
    lines = [
        "detections:",
        "  "
        + "  ".join(("image", "verdict   ", "captured", "found", "matched", "missed", "extra", " pixels", " scores")),
    ]
    for image, d in enumerate(report.detections):
        pixels, scores = by_rank(d)
        lines.append(
            f"  {image:>5}  {VERDICTS[d.passed]:<10}  {d.expected:>8}  {d.found:>5}  {d.matched:>7}  {len(d.missed):>6}"
            f"  {len(d.extra):>5}  {pixels:>7}  {scores:>7}"
        )
    for image, d in enumerate(report.detections):
        if d.passed is False:
            lines.append(f"  image {image}: {d.why(report.dtype)}")
        for kind, boxes in (("missed", d.missed), ("extra", d.extra)):
            lines += [f"  image {image}: {kind} {describe(box)}" for box in boxes[:rows]]
            if len(boxes) > rows:
                lines.append(f"  image {image}: ... and {len(boxes) - rows} more {kind}, of lower rank")
    return lines


def describe(box: Box) -> str:
    """`label 2, score 0.7264, 0.0 0.0 31.4 63.0`."""
    return f"label {box.label}, score {box.score:.4f}, " + " ".join(f"{corner:.1f}" for corner in box.corners)


def to_json(report: Report, *, pictures: bool = False) -> dict[str, Any]:
    """The whole report as JSON, without the capture's facts on each activation; `pictures` adds histograms, heat maps.

    JSON has no NaN and no infinity, so they become strings; null is a number that is not known. A histogram is listed
    as [row, column, count] for each cell that is not empty.
    """
    content: dict[str, Any] = {
        "verdict": verdict(report.passed),
        "passed": report.passed,
        "summary": [headline(report), *(f"{line.label}: {line.text}" for line in summary(report))],
        "capture": report.capture,
        "made": {key: value for key, value in report.made.items() if key not in PER_ACTIVATION},
        "device": report.device,
        "dtype": report.dtype,
        "gate": {**_gate(report.gate), "looser": report.gate.looser, "warning": looser(report.gate)},
        "settings": report.settings,
        "skipped": report.skipped,
        "noise": report.noise,
        "first": report.first and report.first.name,
        "culprits": report.culprits,
        "glue": report.glue,
        "block": report.block,
        "parameters": report.parameters,
        "suspects": report.suspects,
        "record": report.record or None,
        "same_weights": report.weights.same,
        "next": list(next_steps(report)) if report.passed is False else [],
        "problems": report.problems,
        "modes": {mode: [_tap(r, pictures) for r in results] for mode, results in report.modes.items()},
        "detections": [{"passed": d.passed, **asdict(d)} for d in report.detections],
    }
    if pictures:
        content["pictures"] = {"bins": BINS, "decades": DECADES}
    safe: dict[str, Any] = json_safe(content)
    return safe


def _gate(gate: Gate) -> dict[str, Any]:
    return {
        "text": str(gate),
        "relative": gate.relative,
        "times": gate.times,
        "reason": gate.reason,
        "default": _gate(gate.default) if gate.default is not None else None,
    }


def _tap(result: TapResult, pictures: bool) -> dict[str, Any]:
    numbers = {key: value for key, value in asdict(result).items() if key not in ("histogram", "heat")}
    content = {"passed": result.passed, **numbers, "ratio": result.ratio, "share": result.share}
    if pictures:
        histogram = result.histogram
        content["histogram"] = histogram and [
            (i, j, count) for i, row in enumerate(histogram) for j, count in enumerate(row) if count
        ]
        content["heat"] = result.heat
    return content


def json_safe(value: Any) -> Any:
    """`value` of what JSON knows: mappings, lists, text, finite numbers; the rest as text."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def to_junit(*reports: Report) -> bytes:
    """JUnit XML: of each report a suite for each mode and one for the detections; a case for each activation and image.

    What was not judged, and a mode that cannot be had, count as skipped.
    """
    names = ", ".join(report.capture for report in reports)
    word = verdict(overall(reports))
    root = ElementTree.Element("testsuites", name=printable(f"parity with {names}: {word}"))
    suites = [suite for report in reports for suite in _suites(report)]
    for total in ("tests", "failures", "errors", "skipped"):
        root.set(total, str(sum(int(suite.get(total, "0")) for suite in suites)))
    root.extend(suites)
    ElementTree.indent(root)
    xml: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"


def _suites(report: Report) -> list[ElementTree.Element]:
    """The first of them is the report's top, so that whoever reads failures in their order reads that first."""
    first = next((f"{line.label} {line.text}" for line in summary(report) if line.label == "first difference"), "")
    said = f"{headline(report)}; {first}" if first else headline(report)
    suites = [_suite(report, "summary", [(report.capture, report.passed, said, "\n".join(top(report)))])]
    for mode, results in report.modes.items():
        cases = [(r.name, r.passed, r.why(report.dtype), module_name(r.module)) for r in results]
        suites.append(_suite(report, mode, cases))
    for mode, reason in report.skipped.items():
        suites.append(_suite(report, mode, [(mode, None, reason, "")]))
    if report.detections:
        images = [
            (f"image {i}", d.passed, d.why(report.dtype), "\n".join(
                [*(f"missed {describe(box)}" for box in d.missed), *(f"extra {describe(box)}" for box in d.extra)]
            ))
            for i, d in enumerate(report.detections)
        ]  # fmt: skip
        suites.append(_suite(report, "detections", images))
    return suites


def _suite(report: Report, name: str, cases: Sequence[tuple[str, bool | None, str, str]]) -> ElementTree.Element:
    """`cases`: name, verdict, the reason of it, and more for whoever opens a failure."""
    passed = [case[1] for case in cases]
    suite = ElementTree.Element(
        "testsuite", name=name, tests=str(len(cases)), failures=str(passed.count(False)), errors="0",
        skipped=str(passed.count(None)),
    )  # fmt: skip
    about = {"capture": report.capture, "device": report.device, "dtype": report.dtype, "gate": str(report.gate)}
    loud = looser(report.gate)
    about |= {"gate.reason": report.gate.reason, **({"gate.warning": loud} if loud else {})}
    about |= {
        "noise": figure(report.noise),
        **{f"settings.{key}": str(value) for key, value in report.settings.items()},
    }
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in about.items():
        ElementTree.SubElement(properties, "property", name=printable(key), value=printable(value))
    for case, verdict_, reason, more in cases:
        element = ElementTree.SubElement(suite, "testcase", classname=f"parity.{name}", name=printable(case))
        if verdict_ is False:
            failure = ElementTree.SubElement(element, "failure", message=printable(reason), type="parity")
            failure.text = "\n".join(map(printable, more.splitlines()))
        elif verdict_ is None:
            ElementTree.SubElement(element, "skipped", message=printable(reason))
    if loud:
        ElementTree.SubElement(suite, "system-err").text = printable(loud)
    return suite
