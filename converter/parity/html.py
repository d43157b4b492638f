"""A report of parity as one HTML page that needs nothing but itself.

Verdict, findings, the table and the detections are written here and can be read without JavaScript. The script of
`report.html` adds the chart, the pictures and sorting; it takes its numbers from a JSON block in the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from converter.display import figure
from converter.parity.compare import BINS, DECADES, TapResult
from converter.parity.detections import Box, DetectionResult
from converter.parity.report import (
    PER_ACTIVATION,
    VERDICTS,
    badness,
    by_rank,
    counts,
    findings,
    json_safe,
    looser,
    module_name,
    noise_line,
    printable,
    to_json,
    verdict,
)
from converter.parity.run import Report
from converter.parity.suspects import suspect_lines

# one character for each cell of a heat map: how large its error is, as a part of the worst
LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
ZERO, UNSOUND = ".", "!"
_CLASSES: Mapping[bool | None, str] = {True: "pass", False: "fail", None: "open"}
_MOST_SUSPECTS = 100  # tensors, listed
_MOST_BOXES = 100  # of an image and kind, drawn and listed


def to_html(
    report: Report,
    *,
    hashes: Mapping[str, str] | None = None,
    others: Sequence[Report] = (),
    weights: str | None = None,
) -> str:
    """The page of `report`. `hashes`: SHA-256 by name of the files that took part, which a report does not know;
    `others`: of the same model beside other captures, whose verdicts are listed; `weights`: what all of these see of
    the weights, as HTML."""
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    # the page may run this script and use this style sheet, and nothing else
    policy = "; ".join(
        ["default-src 'none'", "base-uri 'none'", "form-action 'none'"]
        + [f"{kind}-src '{_hash_of(template, kind)}'" for kind in ("style", "script")]
    )
    parts = {
        "policy": policy,
        "title": _text(f"Parity: {report.capture}: {verdict(report.passed)}"),
        "verdict": _verdict(report, others),
        "findings": _findings(report),
        "rows": "\n".join(_rows(report)),
        "detections": "\n".join(_image(report, i, d) for i, d in enumerate(report.detections))
        or "<p>No detections were compared.</p>",
        "weights": weights or "<p>Not computed. <code>converter parity --coverage</code> does.</p>",
        "settings": _settings(report, hashes or {}),
        "data": _data(report),
    }
    # in one pass, so that inserted text is not searched for placeholders
    return re.sub(r"@\{(\w+)\}", lambda place: parts[place[1]], template)


def _hash_of(template: str, tag: str) -> str:
    content = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    assert content is not None, f"report.html has no <{tag}>"
    return "sha256-" + base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _code(value: object) -> str:
    return f"<code>{_text(value)}</code>"


def _link(name: str) -> str:
    """An activation, and the way to its details, which the script opens."""
    target = "".join(f"%{byte:02X}" for byte in printable(name).encode())
    return f'<a href="#tap={target}">{_code(name)}</a>'


def _verdict(report: Report, others: Sequence[Report]) -> str:
    passed, loud = report.passed, looser(report.gate)
    lines = [
        f'<p class="verdict {_CLASSES[passed]}" role="status">{_text(verdict(passed))}</p>',
        f"<p>A {_text(report.dtype)} model on {_text(report.device)} beside capture {_code(report.capture)}.</p>",
        "<ul>",
        *(f"<li>{_text(mode)}: {counts(results)}</li>" for mode, results in report.modes.items()),
        *(f"<li>{_text(mode)}: skipped, {_text(reason)}</li>" for mode, reason in report.skipped.items()),
    ]
    for image, detection in enumerate(report.detections):
        lines.append(f"<li>image {image}: {_text(_detected(report, detection))}</li>")
    for other in others:
        word = f"<span class='{_CLASSES[other.passed]}'>{_text(verdict(other.passed))}</span>"
        lines.append(f"<li>beside capture {_code(other.capture)}: {word}</li>")
    lines += [
        "</ul>",
        f"<p>Gate: {_text(str(report.gate))} ({_text(report.gate.reason.rstrip('.'))}).</p>",
        f'<p class="loud" role="alert">{_text(loud)}</p>' if loud else "",
    ]
    return "\n".join(lines)


def _detected(report: Report, detection: DetectionResult) -> str:
    if detection.passed:
        return f"{detection.found} detections, the same in the same order"
    return detection.why(report.dtype)


def _findings(report: Report) -> str:
    found = [*findings(report), *suspect_lines(report, _MOST_SUSPECTS)]
    if not found:
        judged = {
            True: "Nothing is",
            False: "The detections are, no activation is",
            None: "Nothing that could be judged is",
        }
        return f"<p>{judged[report.passed]} beyond its limit.</p>"
    lines = [f"<li>{_text(line)}</li>" for line in found]
    off = {r.name: r for r in report.modes.get("injected", ()) if r.passed is False}
    names = [*([report.first.name] if report.first else []), *off]
    links = "".join(f"<li>{_link(name)}</li>" for name in dict.fromkeys(names))
    return f"<ul>{''.join(lines)}</ul><p>Look at:</p><ul class='links'>{links}</ul>"


def _rows(report: Report) -> Iterable[str]:
    """Rows of the table, the worst of all modes first; `data-row` is the place in the JSON block."""
    for place, (mode, r) in sorted(enumerate(_all(report)), key=lambda entry: badness(entry[1][1])):
        share = "-" if r.limit is None else "beyond" if math.isinf(r.share) else f"{r.share:.2g}"
        numbers = (
            figure(r.relative), figure(r.limit), share, "-" if r.ratio is None else f"{r.ratio:.2g}",
            figure(r.max_abs), figure(r.needed), "-" if r.cosine is None else f"{r.cosine:.6f}", str(r.unsound or "-"),
        )  # fmt: skip
        yield (
            f'<tr data-row="{place}"><td class="{_CLASSES[r.passed]}">{VERDICTS[r.passed]}</td>'
            f'<td>{mode}</td><th scope="row">{_link(r.name)}<br><small>{_text(module_name(r.module))}</small>'
            f"</th>{''.join(f'<td>{number}</td>' for number in numbers)}</tr>"
        )


def _all(report: Report) -> Iterable[tuple[str, TapResult]]:
    return ((mode, r) for mode, results in report.modes.items() for r in results)


def _image(report: Report, image: int, d: DetectionResult) -> str:
    facts = (d.expected, d.found, d.matched, len(d.missed), len(d.extra), *by_rank(d))
    lines = [
        f"<h3>Image {image}: <span class='{_CLASSES[d.passed]}'>{VERDICTS[d.passed]}</span></h3>",
        f"<p>{_text(_detected(report, d))}</p>",
        "<div class='scroll' tabindex='0' role='region' aria-label='Numbers of detections'><table><thead><tr>",
        *(f"<th scope='col'>{name}</th>" for name in
          ("captured", "found", "matched", "missed", "extra", "pixels", "scores")),
        f"</tr></thead><tbody><tr>{''.join(f'<td>{fact}</td>' for fact in facts)}</tr></tbody></table></div>",
    ]  # fmt: skip
    if d.missed or d.extra:
        lines.append("<div class='pair'>" + _drawing(report, image, d) + "<div>")
        lines += [_boxes(kind, boxes) for kind, boxes in (("missed", d.missed), ("extra", d.extra)) if boxes]
        lines.append("</div></div>")
    return "\n".join(lines)


def _boxes(kind: str, boxes: Sequence[Box]) -> str:
    rows = "".join(
        f"<tr><td>{box.label}</td><td>{box.score:.4f}</td>{''.join(f'<td>{c:.1f}</td>' for c in box.corners)}</tr>"
        for box in boxes[:_MOST_BOXES]
    )
    more = f"<p>and {len(boxes) - _MOST_BOXES} more</p>" if len(boxes) > _MOST_BOXES else ""
    header = "".join(f"<th scope='col'>{name}</th>" for name in ("label", "score", "x1", "y1", "x2", "y2"))
    return (
        f"<details><summary>{len(boxes)} {kind}</summary><div class='scroll' tabindex='0' role='region' "
        f"aria-label='{kind} boxes'><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>{more}"
        "</details>"
    )


def _drawing(report: Report, image: int, d: DetectionResult) -> str:
    """Missed and extra boxes in the frame of the image, or of the boxes where its size is not known."""
    corners = [c for box in (*d.missed, *d.extra) for c in box.corners if math.isfinite(c)]
    width = height = max([1.0, *corners])
    sizes = report.made.get("image_sizes_hw")
    if isinstance(sizes, list | tuple) and image < len(sizes):
        height, width = (float(side) for side in sizes[image])
    shapes = []
    for kind, boxes in (("missed", d.missed), ("extra", d.extra)):
        for box in boxes[:_MOST_BOXES]:
            if all(map(math.isfinite, box.corners)):
                x1, y1, x2, y2 = box.corners
                shapes.append(
                    f"<rect class='{kind}' x='{x1:.1f}' y='{y1:.1f}' width='{max(x2 - x1, 0):.1f}' "
                    f"height='{max(y2 - y1, 0):.1f}'><title>{kind}: label {box.label}, score {box.score:.4f}</title>"
                    "</rect>"
                )
    label = f"image {image}, {width:g} by {height:g} pixels: {len(d.missed)} missed and {len(d.extra)} extra boxes"
    margin = max(width, height) / 50
    view = f"{-margin:g} {-margin:g} {width + 2 * margin:g} {height + 2 * margin:g}"
    return (
        f"<figure><svg class='boxes' viewBox='{view}' role='img' aria-label='{label}'>"
        f"<rect class='frame' width='{width:g}' height='{height:g}'/>{''.join(shapes)}</svg>"
        "<figcaption><span class='key missed'>missed</span> <span class='key extra'>extra (dashed)</span></figcaption>"
        "</figure>"
    )


def _settings(report: Report, hashes: Mapping[str, str]) -> str:
    made = {key: value for key, value in report.made.items() if key not in PER_ACTIVATION}
    gate = {"allows": str(report.gate), "reason": report.gate.reason}
    if report.gate.default is not None:
        gate |= {"default": str(report.gate.default), "its reason": report.gate.default.reason}
    tables = {
        "This run": {**report.settings, "device": report.device, "dtype": report.dtype, "noise": noise_line(report)},
        "Gate": gate,
        "The capture": made,
        "SHA-256": hashes,
    }
    return "\n".join(f"<h3>{title}</h3>{_facts(facts)}" for title, facts in tables.items() if facts)


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [
        f"<dt>{_text(key)}</dt><dd>"
        f"{_text(value if isinstance(value, str) else json.dumps(json_safe(value), ensure_ascii=False))}</dd>"
        for key, value in facts.items()
    ]
    return f"<dl>{''.join(rows)}</dl>"


def _data(report: Report) -> str:
    """The JSON block; no `<` is left in it, so that no name can end the block or open a comment."""
    content = to_json(report, pictures=True)
    taps = [{"mode": mode, **tap} for mode, of_mode in content["modes"].items() for tap in of_mode]
    for tap, (_, result) in zip(taps, _all(report), strict=True):
        tap["module"] = module_name(result.module)
        tap["heat"] = _heat(result.heat)
    # what to open with: where the models part, or else the first block that is off
    off = (r for results in report.modes.values() for r in results if r.passed is False)
    first = report.first or next(off, None)
    kept = {"taps": taps, "bins": BINS, "decades": DECADES, "levels": LEVELS, "first": first and first.name}
    text = json.dumps(_printable(kept), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _printable(value: Any) -> Any:
    """All texts as the page shows them, so that the script finds names where the table has them."""
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _heat(heat: Sequence[Sequence[float]] | None) -> dict[str, Any] | None:
    """A heat map with a character for each cell, as a map of 32 by 32 numbers is long."""
    if not heat or not heat[0]:
        return None
    cells = [cell for row in heat for cell in row]
    top = max((cell for cell in cells if math.isfinite(cell)), default=0.0)
    sound = [cell if math.isfinite(cell) else math.inf for cell in cells]
    return {
        "rows": len(heat),
        "columns": len(heat[0]),
        "top": top,
        "worst": sound.index(max(sound)),
        "cells": "".join(_level(cell, top) for cell in cells),
    }


def _level(cell: float, top: float) -> str:
    if not math.isfinite(cell):
        return UNSOUND
    if not cell:
        return ZERO
    return LEVELS[round(cell / top * (len(LEVELS) - 1))]
