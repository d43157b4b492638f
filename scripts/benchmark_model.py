"""How fast the model is: its parts and the whole, beside the usual way to compute each and beside what the machine can.

    python scripts/benchmark_model.py                              # GLIP-T with random weights, on the CPU
    python scripts/benchmark_model.py glip-t.safetensors --device cuda --output h100.json
    python scripts/benchmark_model.py --against ../before          # and beside the package in another checkout
    python scripts/benchmark_model.py --growth docs/growth.svg     # time and memory against area, tokens and batch

All that is compared runs in turn, A B A B, and medians are printed. The usual ways are in usual_ways.py. "needed" are
the products that a part can't do without (`needed` in model_parts.py), "done" those that ours does; the peak is the
fastest product of large matrices in the same run, and "of peak" the time of the needed products at that rate over ours.
It needs torch alone; what else is missing is said. A measurement that fails is told, the others go on, and the exit
code is 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch
from torch.utils.flop_counter import FlopCounterMode

from converter.parity.device import find_device, set_precision, settings
from scripts import model_growth
from scripts.model_parts import NOT_COUNTED, Call, Parts, make_model, needed
from scripts.model_ways import (
    FORMATS,
    Before,
    Clock,
    Row,
    Way,
    compiled,
    graphs,
    large_products,
    our_ways,
    said,
    usual,
)

SIZE, TOKENS = (800, 1216), (16, 200, 256)
CUDA_LIMIT = 240  # seconds
SHORT, TIMES = 0.3, 10  # a turn of less than so many seconds is repeated, at most so many times
COLUMNS = ("ours", "before", "usual", "unpadded")


def main(arguments: Sequence[str] | None = None) -> int:
    a = parse(arguments)
    if a.point:
        print(json.dumps(model_growth.point(json.loads(a.point))))
        return 0
    if a.compiled:
        print(json.dumps([asdict(row) for row in in_its_process(argparse.Namespace(**json.loads(a.compiled)))]))
        return 0
    device = find_device(a.device)
    document: dict[str, Any] = {"facts": facts(a, device)}
    if a.growth:
        document |= model_growth.growth(a)
        text = model_growth.described(document)
    else:
        document |= benchmark(a, device)
        text = "".join(table(document, dtype) for dtype in a.dtype)
    print(json.dumps(document, indent=1) if a.json else heading(document) + text)
    if a.output:
        a.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    failed = [row for row in document["rows"] if row["error"]]
    for row in failed:
        print(f"failed: {row['called']}, {row['dtype']}: {row['error']}", file=sys.stderr)
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    option = parser.add_argument
    option("model", nargs="?", default="glip-t", help="the name of a variant, for random weights, or a path")
    option("--device", default="cpu")
    option("--size", type=size, default=SIZE, metavar="HxW", help="of the picture, in pixels")
    option("--batch", type=int, default=1)
    option("--tokens", type=int, nargs="+", default=list(TOKENS))
    option("--dtype", nargs="+", choices=FORMATS, help="default: float32 and bfloat16, on CUDA tf32, too")
    option("--repeat", type=int, default=5, help="runs of each")
    option("--threads", type=int)
    option("--limit", type=float, metavar="S", help=f"begin nothing after so many seconds; on CUDA {CUDA_LIMIT}")
    option("--against", type=Path, metavar="CHECKOUT", help="in turn with the package in this folder")
    option("--compile", action=argparse.BooleanOptionalAction, help="by torch.compile, too; as it is on CUDA")
    option("--growth", type=Path, metavar="SVG", help="instead: time and memory against area, tokens and batch")
    option("--json", action="store_true", help="print JSON, not tables")
    option("--output", type=Path, metavar="FILE", help="write the JSON, too")
    option("--point", help=argparse.SUPPRESS)
    option("--compiled", help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    cuda = a.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    a.dtype = a.dtype or ["float32", *(["tf32"] if cuda else []), "bfloat16"]
    a.limit = CUDA_LIMIT if cuda and a.limit is None else a.limit
    a.compile = cuda if a.compile is None else a.compile
    if a.threads:
        torch.set_num_threads(a.threads)
    return a


def size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


def facts(a: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    found = settings(torch.empty(0, device=device))
    keys = ("machine", "torch", "python", "threads", "instructions")
    asked = {"model": str(a.model), "size": list(a.size), "batch": a.batch, "tokens": a.tokens, "repeat": a.repeat}
    against = {"against": revision(a.against)} if a.against else {}
    return {key: found[key] for key in keys} | {
        "system": platform.platform(), "device": str(device), "revision": revision(ROOT), **against, **asked,
    }  # fmt: skip


def revision(folder: Path) -> str:
    """Of a git checkout, with a + where files differ from it."""
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def benchmark(a: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Rows of each number format, its peak in FLOP/s, and what the time did not suffice for."""
    end = time.perf_counter() + (a.limit or float("inf"))
    rows: list[Row] = []
    peak: dict[str, float | None] = {}
    for dtype in a.dtype:
        keys = ("model", "device", "size", "batch", "tokens", "threads")
        before = Before(a.against, {**{key: getattr(a, key) for key in keys}, "dtype": dtype}) if a.against else None
        try:
            found, peak[dtype] = measure(a, device, dtype, before, end)
            rows += found
        except Exception as error:  # of the model itself: then no part can be measured
            rows.append(Row("forward", "ours", None, dtype, error=said(error)))
        finally:
            if before:
                before.close()
    for dtype in reversed(a.dtype if a.compile else ()):  # last, because nothing can stop it
        rows += measure_compiled(a, dtype, end)
    late = [f"{row.called}, {row.dtype}" for row in rows if not (row.seconds or row.error or row.absent)]
    return {
        "peak": peak,
        "rows": [{**asdict(row), "called": row.called, "median": row.median} for row in rows],
        "not_measured": late,
    }


def measure(
    a: argparse.Namespace, device: torch.device, dtype: str, before: Before | None, end: float
) -> tuple[list[Row], float | None]:
    """All ways in one number format, each once to warm up and `repeat` times in turn; the rows, and the peak."""
    set_precision(dtype == "tf32")
    clock = Clock(device)
    parts = Parts(make_model(a.model, device, FORMATS[dtype]), a.size, a.batch, a.tokens)
    products = large_products(device, FORMATS[dtype])
    peaks = [Way(Row("product", "peak", None, dtype), clock.of(product)) for product, _ in products]
    ways = [*peaks, *our_ways(parts, clock, dtype, before), *usual(parts, clock, dtype)]
    if device.type == "cuda":
        ways += graphs(parts, clock, dtype)
    take(ways, a, device, end)
    rows = [way.row for way in ways if way.row.way != "peak" or way.row.error]
    count(rows, parts, a)
    rates = [flop / min(way.row.seconds) for way, (_, flop) in zip(peaks, products, strict=True) if way.row.seconds]
    return rows, max(rates, default=None)


def measure_compiled(a: argparse.Namespace, dtype: str, end: float) -> list[Row]:
    """The compiled forward, in turn with the eager one, in a process that can be stopped when the time is used up."""
    late = [Row("forward", "compile", max(a.tokens), dtype)]
    seconds = None if end == float("inf") else end - time.perf_counter()
    if seconds is not None and seconds <= 0:
        return late
    keys = ("model", "device", "size", "batch", "tokens", "threads", "repeat")
    asked = {**{key: getattr(a, key) for key in keys}, "dtype": dtype}
    command = [sys.executable, __file__, "--compiled", json.dumps(asked)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return late
    if done.returncode:
        late[0].error = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:300]
        return late
    return [Row(**row) for row in json.loads(done.stdout.strip().splitlines()[-1])]


def in_its_process(a: argparse.Namespace) -> list[Row]:
    """The other end of `measure_compiled`."""
    device, dtype, most = find_device(a.device), a.dtype, max(a.tokens)
    if a.threads:
        torch.set_num_threads(a.threads)
    set_precision(dtype == "tf32")
    clock = Clock(device)
    parts = Parts(make_model(a.model, device, FORMATS[dtype]), tuple(a.size), a.batch, [most], alone=True)
    eager = Way(Row("forward", "eager", most, dtype), clock.of(parts.call("forward", most)))
    ways = [eager, compiled(parts, clock, dtype)]
    take(ways, a, device, float("inf"))
    rows = [way.row for way in ways]
    count(rows, parts, a)
    return rows


def take(ways: list[Way], a: argparse.Namespace, device: torch.device, end: float) -> None:
    """All ways to compute a part once, to warm up, then in turn; part by part, `repeat` times."""
    for number in range(a.repeat):
        for part in dict.fromkeys(way.row.part for way in ways):
            same = [way for way in ways if way.row.part == part and not way.row.absent]
            if number == 0:
                warm_up(same, device, end)
            in_turn([way for way in same if way.row.first is not None], device, end)


def warm_up(ways: list[Way], device: torch.device, end: float) -> None:
    """The first call of each; the later parts, which contain the earlier ones, are warm from these."""
    for way in ways:
        if time.perf_counter() < end:
            if way.row.part == "forward" and way.row.way in COLUMNS and device.type == "cpu":
                way.row.first = 0.0
                continue
            way.row.first = way.attempt(device)
            note_of_device(way, device)


def in_turn(ways: list[Way], device: torch.device, end: float) -> None:
    """All ways to compute one part once, A B C; where that is short, A B C A B C."""
    begun = time.perf_counter()
    for _ in range(TIMES):
        for way in ways:
            if not way.row.error and time.perf_counter() < end:
                seconds = way.attempt(device)
                way.row.seconds += [] if seconds is None else [seconds]
        if time.perf_counter() - begun > SHORT:
            break


def note_of_device(way: Way, device: torch.device) -> None:
    """On CUDA, of the whole: the most bytes that a run takes, and how often the host waits for the device in it."""
    row = way.row
    if device.type != "cuda" or row.error or row.part != "forward" or row.way in ("before", "graph"):
        return
    torch.cuda.reset_peak_memory_stats(device)
    taken = torch.cuda.memory_allocated(device)
    way.attempt(device)
    row.memory = torch.cuda.max_memory_allocated(device) - taken
    row.waits = waits(lambda: way.attempt(device)) - waits(lambda: Clock(device)(lambda: None))


def waits(call: Call) -> int:
    """How often a call makes the host wait for the CUDA device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        call()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def count(rows: list[Row], parts: Parts, a: argparse.Namespace) -> None:
    """Note the FLOP of the products that each part needs, and of those that ours does."""
    for row in rows:
        tokens = row.tokens or parts.tokens[0]
        if row.way in ("ours", "before", "compile", "graph") and not row.error:
            row.needed = needed(parts.model.config, a.size, a.batch, tokens).get(row.part)
        if row.way == "ours" and row.seconds:
            with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=NOT_COUNTED) as counter:
                parts.call(row.part, tokens)()
            row.done = float(counter.get_total_flops())


def heading(document: dict[str, Any]) -> str:
    f = document["facts"]
    against = f", before: {f['against']}" if "against" in f else ""
    return (
        f"{f['model']}, {f['batch']} x {f['size'][0]}x{f['size'][1]}, {f['machine']} ({f['device']}), {f['threads']} "
        f"threads, torch {f['torch']}, revision {f['revision']}{against}; medians of {f['repeat']}\n"
    )


def table(document: dict[str, Any], dtype: str) -> str:
    """Of one number format, as Markdown."""
    rows = [row for row in document["rows"] if row["dtype"] == dtype]
    peak = document["peak"].get(dtype)
    ways = [way for way in COLUMNS if any(row["way"] == way and row["median"] for row in rows)]
    head = ["part", "tokens", *(f"{way} ms" for way in ways), *(f"{way}/ours" for way in ways[1:])]
    head += ["needed GFLOP", "done", "of peak", *(["before"] if "before" in ways else [])]
    rate = "no peak" if peak is None else f"peak {peak / 1e9:,.0f} GFLOP/s"
    precision = {"float32": " (IEEE)", "tf32": " (float32 whose products are rounded to TF32)"}.get(dtype, "")
    lines = [f"\n{dtype}{precision}, {rate}\n", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(line(row, rows, ways, peak)) + " |" for row in rows if row["way"] in OURS]
    lines += [f"\n{row['part']}, {row['way']}: {row['absent']}" for row in rows if row["absent"]]
    lines += [
        f"\n{row['called']}: {row['memory'] / 1e9:.2f} GB above weights, the host waits {row['waits']} times"
        for row in rows
        if row["memory"]
    ]
    lines += [
        f"\n{row['called']}: {row['first']:.0f} s to compile"
        for row in rows
        if row["way"] == "compile" and row["first"]
    ]
    lines += [f"\n{row['called']}: failed, {row['error']}" for row in rows if row["error"]]
    late = [name for name in document["not_measured"] if name.endswith(dtype)]
    lines += ["\nnot measured for want of time: " + "; ".join(late)] if late else []
    return "\n".join(lines) + "\n"


OURS = {"ours": "", "graph": " (CUDA graph)", "eager": " (beside torch.compile)", "compile": " (torch.compile)"}


def line(row: dict[str, Any], rows: list[dict[str, Any]], ways: list[str], peak: float | None) -> list[str]:
    """The cells of one row."""
    times = {way: time_of(row, way, rows) for way in ways}
    ours = times["ours"] = row["median"]
    cells = [row["part"] + OURS[row["way"]], str(row["tokens"] or "")]
    cells += [f"{1000 * seconds:,.1f}" if seconds else "" for seconds in times.values()]
    cells += [f"{times[way] / ours:.2f}" if ours and times[way] else "" for way in ways[1:]]
    cells += [f"{row[key] / 1e9:,.1f}" if row[key] else "" for key in ("needed", "done")]
    for seconds in (ours, *([times["before"]] if "before" in ways else [])):
        cells.append(f"{row['needed'] / peak / seconds:.0%}" if row["needed"] and peak and seconds else "")
    return cells


def time_of(row: dict[str, Any], way: str, rows: list[dict[str, Any]]) -> float | None:
    """The median of the same part, for the same tokens or for all."""
    for other in rows:
        same = other["part"] == row["part"] and other["way"] == way and other["tokens"] in (row["tokens"], None)
        if same and other["median"]:
            return float(other["median"])
    return None


if __name__ == "__main__":
    sys.exit(main())
