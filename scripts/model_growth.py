"""Time and memory of GLIP's forward against picture area, tokens and batch: points, slopes in words, a plot as SVG.

Each point is a process of its own, so that its memory is its own: the most that the resident memory (on CUDA, the
allocated one) rose during one forward above what it was before, with weights and inputs in it. Code of the libraries
and small tables are in before, since a small picture is computed first.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from converter.parity.device import find_device, set_precision
from scripts.model_parts import ROOT, Parts, make_model
from scripts.model_ways import FORMATS, Clock, said

AREAS, TOKENS, BATCHES = (0.25, 0.5, 1.0, 2.0, 4.0), (8, 16, 32, 64, 128, 256), (1, 2, 4, 8)
LARGEST = (800, 1333)  # of the official preprocessing
TITLES = {"area": "picture area, megapixels", "tokens": "tokens of the caption", "batch": "pictures in a batch"}
Document = dict[str, Any]


def growth(a: argparse.Namespace) -> Document:
    """The rows of all points, and the plot in a.growth; batches are of pictures of half the size."""
    base = {"model": str(a.model), "device": a.device, "dtype": a.dtype[0], "repeat": a.repeat, "threads": a.threads}
    few, half = a.tokens[0], tuple(side // 2 for side in a.size)
    asked = [("area", x, {"size": of_area(x), "tokens": few, "batch": 1}) for x in AREAS]
    asked += [("tokens", x, {"size": a.size, "tokens": x, "batch": 1}) for x in TOKENS]
    asked += [("batch", x, {"size": half, "tokens": few, "batch": x}) for x in BATCHES]
    asked += [("largest", x, {"size": LARGEST, "tokens": x, "batch": 1}) for x in a.tokens]
    begun, rows = time.perf_counter(), []
    for series, x, point_ in asked:
        row: Document = {"series": series, "x": x, **point_, "dtype": a.dtype[0], "called": f"{series} {x}"}
        row |= {"seconds": None, "memory": None, "error": None}
        if a.limit is None or time.perf_counter() - begun < a.limit:
            row |= in_a_process({**base, **point_})
            rows.append(row)
    a.growth.write_text(plot(rows), encoding="utf-8")
    return {"rows": rows, "slopes": [*slopes(rows)]}


def of_area(megapixels: float) -> tuple[int, int]:
    """Height and width, about 2 to 3, multiples of 32."""
    height = 32 * round(math.sqrt(megapixels * 1e6 / 1.5) / 32)
    return height, 32 * round(megapixels * 1e6 / height / 32)


def in_a_process(asked: Document) -> Document:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_model.py"), "--point", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {"error": lines[-1][:300]}
    found: Document = json.loads(done.stdout)
    return found


def point(asked: Document) -> Document:
    """One point: median seconds of `repeat` forwards, and the memory of the first, in bytes."""
    device = find_device(asked["device"])
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    set_precision(asked["dtype"] == "tf32")
    model = make_model(asked["model"], device, FORMATS[asked["dtype"]])
    clock, tokens = Clock(device), asked["tokens"]
    try:
        clock(Parts(model, (64, 96), 1, [tokens], alone=True).call("forward", tokens))
        call = Parts(model, tuple(asked["size"]), asked["batch"], [tokens], alone=True).call("forward", tokens)
        before = taken(device)
        clock(call)
        memory = most(device) - before
        return {"seconds": statistics.median(clock(call) for _ in range(asked["repeat"])), "memory": memory}
    except Exception as error:
        return {"error": said(error)}


def taken(device: torch.device) -> int:
    """Bytes now; what `most` gives counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM is the present size again (proc(5))
    return _status("VmRSS")


def most(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def points(rows: Iterable[Document], series: str, of: str) -> list[tuple[float, float]]:
    """(x, seconds or GB) of one series, as far as it was measured."""
    unit = 1.0 if of == "seconds" else 1e-9
    return [(row["x"], row[of] * unit) for row in rows if row["series"] == series and row[of]]


def slopes(rows: Sequence[Document]) -> Iterable[str]:
    """Each curve in words."""
    for series in TITLES:
        for of, what in (("seconds", "time"), ("memory", "memory")):
            found = points(rows, series, of)
            if len(found) > 1:
                slope = fitted(found)
                ratio = (found[-1][1] / found[-2][1]) ** (math.log(2) / math.log(found[-1][0] / found[-2][0]))
                yield (
                    f"{what} against {series}: slope {slope:.2f} on log-log axes, {word(slope)}; the last doubling "
                    f"multiplies it by {ratio:.2f}"
                )


def fitted(found: Sequence[tuple[float, float]]) -> float:
    """The slope of the least squares line through the logarithms."""
    return statistics.linear_regression(*zip(*((math.log(x), math.log(y)) for x, y in found), strict=True)).slope


def word(slope: float) -> str:
    """What a slope means."""
    steps = ((0.1, "it hardly grows"), (0.9, "less than in proportion"), (1.1, "in proportion"))
    return next((said_ for limit, said_ in steps if slope < limit), "more than in proportion")


def described(document: Document) -> str:
    """The points as a Markdown table, and the slopes."""
    lines = ["", "| series | picture | batch | tokens | seconds | memory GB |", "|---|---|---|---|---|---|"]
    for row in document["rows"]:
        cells = [row["series"], "x".join(map(str, row["size"])), row["batch"], row["tokens"]]
        cells += [f"{row['seconds']:.2f}" if row["seconds"] else row["error"] or ""]
        cells += [f"{row['memory'] / 1e9:.2f}" if row["memory"] else ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", *(f"- {slope}" for slope in document["slopes"]), ""])


WIDTH, HEIGHT, LEFT, TOP, INNER_WIDTH, INNER_HEIGHT = 330, 250, 56, 34, 250, 170


def plot(rows: Sequence[Document]) -> str:
    """Time above, memory below, against area, tokens and batch, on logarithmic axes; dashed: growth in proportion."""
    panels = []
    for line, (of, unit) in enumerate((("seconds", "seconds"), ("memory", "GB above weights"))):
        values = [y for series in TITLES for _, y in points(rows, series, of)]
        for column, (series, title) in enumerate(TITLES.items()):
            found = points(rows, series, of)
            if len(found) > 1:
                inside = panel(found, (min(values), max(values)), f"{unit} / {title}")
                panels.append(f'<g transform="translate({column * WIDTH},{line * HEIGHT})">{inside}</g>')
    whole = f'viewBox="0 0 {3 * WIDTH} {2 * HEIGHT}" font-family="sans-serif" font-size="11" fill="#333"'
    frame = f'<rect width="{3 * WIDTH}" height="{2 * HEIGHT}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {whole}>\n{frame}\n' + "\n".join(panels) + "\n</svg>\n"


def panel(found: Sequence[tuple[float, float]], values: tuple[float, float], title: str) -> str:
    """One curve in its frame; `values`: least and most of the panels beside it, which share its scale."""
    low, high = (math.log(values[0] * 0.8), math.log(values[1] * 1.25))
    first, last = math.log(found[0][0]), math.log(found[-1][0])

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + INNER_WIDTH * (math.log(x) - first) / (last - first)
        return across, TOP + INNER_HEIGHT * (high - math.log(y)) / (high - low)

    bottom = TOP + INNER_HEIGHT
    parts = [f'<text x="{LEFT}" y="{TOP - 10}" font-weight="bold">{title}</text>']
    for tick in (digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)):
        if low <= math.log(tick) <= high:
            y = at(1, tick)[1]
            parts.append(f'<path d="M{LEFT} {y:.1f}h{INNER_WIDTH}" stroke="#e4e4e4"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x, _ in found:
        parts.append(f'<text x="{at(x, 1)[0]:.1f}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>')
    end = min(found[-1][0], found[0][0] * values[1] * 1.25 / found[0][1])  # where the dashed line leaves the frame
    x0, y0, x1, y1 = *at(*found[0]), *at(end, found[0][1] * end / found[0][0])
    dashed = f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="#999" stroke-dasharray="4 3"/>'
    curve = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*pair) for pair in found))
    dots = "".join('<circle cx="{:.1f}" cy="{:.1f}" r="3.2" fill="#1f5fa8"/>'.format(*at(*pair)) for pair in found)
    frame = f'<rect x="{LEFT}" y="{TOP}" width="{INNER_WIDTH}" height="{INNER_HEIGHT}" fill="none" stroke="#999"/>'
    return "".join([*parts, dashed, f'<polyline points="{curve}" fill="none" stroke="#1f5fa8" stroke-width="1.8"/>',
                    dots, frame])  # fmt: skip
