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
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    json_safe,
    looser,
    noise_line,
    to_json,
)
from converter.parity.run import Report
from converter.parity.summary import Line, headline, module_name, named, printable, summary, verdict

# one character for each cell of a heat map: how large its error is, as a part of the worst
LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
ZERO, UNSOUND = ".", "!"
_CLASSES: Mapping[bool | None, str] = {True: "pass", False: "fail", None: "open"}
_MOST_BOXES = 100  # of an image and kind, drawn and listed
_MOST_LINKS = 6  # of one line


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
        "columns": "\n".join(f'<th scope="col" data-by="{by}">{title}</th>' for by, title, *_ in _columns(report)),
        "legend": _legend(report),
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


def _link(name: str, shown: str | None = None) -> str:
    """An activation, or other words for it, and the way to its details, which the script opens."""
    target = "".join(f"%{byte:02X}" for byte in printable(name).encode())
    return f'<a href="#tap={target}">{_code(name) if shown is None else _text(shown)}</a>'


def _verdict(report: Report, others: Sequence[Report]) -> str:
    """What is to be known first, and what to do next."""
    passed, loud, lines = report.passed, looser(report.gate), summary(report)
    sentence = headline(report, named(report)).partition(": ")[2]
    labels = ["" if i and line.label == lines[i - 1].label else line.label for i, line in enumerate(lines)]
    content = [
        f'<p class="verdict {_CLASSES[passed]}" role="status">{_text(verdict(passed))}</p>',
        f"<p>{_text(sentence)}.</p>",
        "<dl>",
        *(f"<dt>{_text(label)}</dt><dd>{_line(report, line)}</dd>" for label, line in zip(labels, lines, strict=True)),
        *(
            f"<dt>capture {_text(other.capture)}</dt>"
            f"<dd><span class='{_CLASSES[other.passed]}'>{_text(verdict(other.passed))}</span></dd>"
            for other in others
        ),
        f"<dt>gate</dt><dd>{_text(str(report.gate))} ({_text(report.gate.reason.rstrip('.'))})</dd>",
        "</dl>",
        f'<p class="loud" role="alert">{_text(loud)}</p>' if loud else "",
    ]
    return "\n".join(content)


def _line(report: Report, line: Line) -> str:
    """The text of a line, with the way to the activations that it is about."""
    if line.label == "next":
        return _code(line.text)
    if line.label == "first difference" and report.first is not None:
        return f"{_text(line.text)} ({_link(report.first.name, 'show it')})"
    off = [r.name for r in report.modes.get("injected", ()) if r.passed is False]
    if line.label == "off by itself" and off:
        return f"{_text(line.text)} ({', '.join(map(_link, off[:_MOST_LINKS]))})"
    return _text(line.text)


def _detected(report: Report, detection: DetectionResult) -> str:
    if detection.passed:
        return f"{detection.found} detections, the same in the same order"
    return detection.why(report.dtype)


def _legend(report: Report) -> str:
    """What the columns of the table mean that are there."""
    return " ".join(said for by, _, said, _ in _columns(report) if said)


def _columns(report: Report) -> list[tuple[str, str, str, Callable[[TapResult], str]]]:
    """Of the columns of numbers those that are not empty: the key by which the script sorts, the title as HTML, what it
    means, and a cell of it."""
    results = [r for _, r in _all(report)]
    return [column for column in _COLUMNS if any(column[3](r) != "-" for r in results)]


def _share(result: TapResult) -> str:
    return "-" if result.limit is None else "beyond" if math.isinf(result.share) else f"{result.share:.2g}"


_COLUMNS: Sequence[tuple[str, str, str, Callable[[TapResult], str]]] = (
    ("relative", "error", "", lambda r: figure(r.relative)),
    ("limit", "limit", "", lambda r: figure(r.limit)),
    ("share", "error /<br>limit", "", _share),
    (
        "ratio", "x own", "x own: in units of the captured model's own error.",
        lambda r: "-" if r.ratio is None else f"{r.ratio:.2g}",
    ),
    ("max_abs", "max abs", "", lambda r: figure(r.max_abs)),
    (
        "needed", "needed", "needed: the least t with |difference| at most t + t |captured| everywhere.",
        lambda r: figure(r.needed),
    ),
    (
        "cosine", "cosine<br>(shown only)", "Cosine ignores scale: it is shown only, and never a gate.",
        lambda r: "-" if r.cosine is None else f"{r.cosine:.6f}",
    ),
    (
        "unsound", "unsound", "unsound: numbers that are NaN or infinite on one side only.",
        lambda r: str(r.unsound or "-"),
    ),
)  # fmt: skip


def _rows(report: Report) -> Iterable[str]:
    """Rows of the table, the worst of all modes first; `data-row` is the place in the JSON block."""
    columns = _columns(report)
    for place, (mode, r) in sorted(enumerate(_all(report)), key=lambda entry: badness(entry[1][1])):
        yield (
            f'<tr data-row="{place}"><td class="{_CLASSES[r.passed]}">{VERDICTS[r.passed]}</td>'
            f'<td>{mode}</td><th scope="row">{_link(r.name)}<br><small>{_text(module_name(r.module))}</small>'
            f"</th>{''.join(f'<td>{cell(r)}</td>' for *_, cell in columns)}</tr>"
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
    # what to open with: the first difference, or else the first block that is off
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
