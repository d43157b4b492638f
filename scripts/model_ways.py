"""All that benchmark_model.py measures: our parts, those of another checkout, the usual ways, compiled, as a graph."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from converter.parity.device import DTYPES, find_device, set_precision
from scripts import usual_ways
from scripts.model_parts import OF_TEXT, ROOT, Call, Parts, make_model

FORMATS = {**DTYPES, "tf32": torch.float32}
SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices by whose product the peak is measured
Made = TypeVar("Made")


@dataclass(slots=True)
class Row:
    """One way to compute one part.

    tokens: None where they make no difference; first: seconds of the first call, which compiles and allocates;
    memory: the most bytes above weights and inputs; waits: how often the host waits for the device in it; needed,
    done: FLOP of the products.
    """

    part: str
    way: str
    tokens: int | None
    dtype: str
    seconds: list[float] = field(default_factory=list)
    first: float | None = None
    memory: int | None = None
    waits: int | None = None
    needed: float | None = None
    done: float | None = None
    error: str | None = None
    absent: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds and self.error is None else None

    @property
    def called(self) -> str:
        return f"{self.part}, {self.way}" + (f", {self.tokens} tokens" if self.tokens else "")


@dataclass(frozen=True, slots=True)
class Way:
    """A row, and what measures it once, in seconds."""

    row: Row
    run: Callable[[], float]

    def attempt(self, device: torch.device) -> float | None:
        """Seconds, or None where it failed, with the error in the row; out of memory harms none that come after."""
        try:
            return self.run()
        except Exception as error:
            self.row.error = said(error)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            return None


class Clock:
    """Seconds of one call on a device, in inference mode."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, call: Call) -> float:
        with torch.inference_mode():
            if self.device.type != "cuda":
                start = time.perf_counter()
                call()
                return time.perf_counter() - start
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize(self.device)
            return float(begin.elapsed_time(end)) / 1000

    def of(self, call: Call) -> Callable[[], float]:
        return lambda: self(call)


class Before:
    """The package of another checkout in a process of its own, which answers with the seconds of one call."""

    def __init__(self, checkout: Path, asked: dict[str, Any]) -> None:
        code = (
            "import sys; sys.path[:0] = [sys.argv[1]]; import converter; sys.path[0] = sys.argv[2];"
            "from scripts.model_ways import answer; answer(sys.argv[3])"
        )
        command = [sys.executable, "-c", code, str(checkout.resolve()), str(ROOT), json.dumps(asked)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def of(self, part: str, tokens: int) -> Callable[[], float]:
        return lambda: self._seconds(part, tokens)

    def _seconds(self, part: str, tokens: int) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(part, tokens, file=self.process.stdin, flush=True)
        answered = self.process.stdout.readline()
        if not answered:
            raise RuntimeError(f"the process of the other checkout has ended: {self.process.wait(60)}")
        found: dict[str, Any] = json.loads(answered)
        if "error" in found:
            raise RuntimeError(found["error"])
        return float(found["seconds"])

    def close(self) -> None:
        with self.process:  # closes both pipes and waits
            pass


def answer(asked: str) -> None:
    """The other end of `Before`."""
    a = json.loads(asked)
    device = find_device(a["device"])
    if a["threads"]:
        torch.set_num_threads(a["threads"])
    set_precision(a["dtype"] == "tf32")
    parts = Parts(make_model(a["model"], device, FORMATS[a["dtype"]]), tuple(a["size"]), a["batch"], a["tokens"])
    clock = Clock(device)
    for line in sys.stdin:
        part, tokens = line.split()
        try:
            found: dict[str, Any] = {"seconds": clock(parts.call(part, int(tokens)))}
        except Exception as error:
            found = {"error": said(error)}
        print(json.dumps(found), flush=True)


def our_ways(parts: Parts, clock: Clock, dtype: str, before: Before | None) -> Iterator[Way]:
    """Every part for each number of tokens, or once where these make no difference; then the other checkout's."""
    for part in parts.names():
        for count in parts.tokens if part in OF_TEXT else parts.tokens[:1]:
            tokens = count if part in OF_TEXT else None
            yield Way(Row(part, "ours", tokens, dtype), clock.of(parts.call(part, count)))
            if before:
                yield Way(Row(part, "before", tokens, dtype), before.of(part, count))


def usual(parts: Parts, clock: Clock, dtype: str) -> Iterator[Way]:
    """The usual ways; rows with `absent` for what can't be had here.

    Captions are padded to 256 tokens, so that one measurement is that of all; "unpadded" are the same on real tokens.
    """
    swin, no_swin = made(lambda: usual_ways.swin(parts.model))
    bert, no_bert = made(lambda: usual_ways.bert(parts.model))
    deform, no_torchvision = made(usual_ways.torchvision_deform)
    whole = usual_ways.UsualGLIP(parts.model, swin, bert, deform or usual_ways.plain_deform)
    most, block = max(parts.tokens), parts.block
    given = usual_given(parts, most, padded=True)
    calls: dict[str, Call] = {
        "fpn": lambda: usual_ways.fpn(parts.model.fpn, given.maps),
        "dynamic_conv": lambda: usual_ways.dynamic_conv(block.dynamic_conv, given.fused, whole.deform),
        "forward": lambda: whole(parts.images, given.ids, given.attended),
    }
    if swin is not None:
        calls["backbone"] = lambda: swin(parts.images)
    for part in parts.names():
        if part in calls:
            yield Way(Row(part, "usual", None, dtype), clock.of(calls[part]))
    for part, call in text_calls(parts, given, bert).items():
        yield Way(Row(part, "usual", None, dtype), clock.of(call))
    for tokens in parts.tokens:
        for part, call in text_calls(parts, usual_given(parts, tokens, padded=False), bert).items():
            yield Way(Row(part, "unpadded", tokens, dtype), clock.of(call))
    for part, why in (("backbone", no_swin), ("text_encoder", no_bert), ("dynamic_conv", no_torchvision)):
        if why:
            instead = "; grid_sample and a product in its place" if part == "dynamic_conv" else ""
            yield Way(Row(part, "usual", None, dtype, absent=why + instead), lambda: 0.0)


@dataclass(frozen=True, slots=True)
class Given:
    """What the usual ways are given: as ours, in the layout that they have in the official code."""

    ids: Tensor
    attended: Tensor
    text: Tensor
    maps: tuple[Tensor, ...]
    levels: tuple[Tensor, ...]
    fused: tuple[Tensor, ...]


@torch.inference_mode()
def usual_given(parts: Parts, tokens: int, *, padded: bool) -> Given:
    ids, attended = parts.caption(tokens)
    levels, text, fused = parts.given[tokens]
    if padded:
        ids, attended = usual_ways.padded(ids, attended, parts.model.config)
        text = F.pad(text, (0, 0, 0, ids.shape[1] - tokens))
    maps, levels, fused = (tuple(x.contiguous() for x in y) for y in (parts.maps, levels, fused))
    return Given(ids, attended, text, maps, levels, fused)


def text_calls(parts: Parts, given: Given, bert: Any) -> dict[str, Call]:
    """The parts that depend on the caption, the usual way."""
    block, mask = parts.block, given.attended.long()
    calls: dict[str, Call] = {}
    if bert is not None:
        calls["text_encoder"] = lambda: bert(given.ids, attention_mask=mask)
    if block.fusion is not None:
        calls["fusion"] = lambda: usual_ways.fusion(block.fusion, given.levels, given.text, given.attended)
        calls["text_layer"] = lambda: usual_ways.text_layer(block.text_layer, given.text, given.attended)
    return calls


def made(make: Callable[[], Made]) -> tuple[Made | None, str | None]:
    """It, or why it can't be had: a package that is missing, or one that does not load."""
    try:
        return make(), None
    except ImportError as error:
        return None, said(error)


def compiled(parts: Parts, clock: Clock, dtype: str) -> Way:
    """The forward by torch.compile, for the longest caption; `first` is the compilation."""
    tokens = max(parts.tokens)
    ids, attended = parts.caption(tokens)
    forward = torch.compile(parts.model)
    return Way(Row("forward", "compile", tokens, dtype), clock.of(lambda: forward(parts.images, ids, attended.long())))


def graphs(parts: Parts, clock: Clock, dtype: str) -> Iterator[Way]:
    """The forward as a CUDA graph: launches are recorded once, in the first call, and then played."""
    for tokens in parts.tokens:
        yield Way(Row("forward", "graph", tokens, dtype), clock.of(Graph(parts.unchecked(tokens))))


class Graph:
    """A call that is recorded when it is first made."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.graph: Any = None

    def __call__(self) -> None:
        if self.graph is None:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # libraries choose their kernels and take their memory
                for _ in range(3):
                    self.call()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.call()
            self.graph = graph
        self.graph.replay()


def large_products(device: torch.device, dtype: torch.dtype) -> list[tuple[Call, float]]:
    """A product of square matrices that are large for the device, on the CPU a 3x3 convolution too, each with its FLOP.

    There the two come from two libraries, and on an AMD processor that of products has half the rate.
    """
    side = SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products: list[tuple[Call, float]] = [(lambda: a @ b, 2.0 * side**3)]
    if device.type == "cpu":
        channels = side // 4
        x = torch.randn(1, channels, 64, 64).to(dtype, memory_format=torch.channels_last)
        kernel = torch.randn(channels, channels, 3, 3).to(dtype)
        cells = (64 - 2) ** 2  # that a kernel of 3 fits into
        products.append((lambda: F.conv2d(x, kernel), 2.0 * cells * kernel.numel()))
    return products


def said(error: BaseException) -> str:
    """Its class and its first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}".removesuffix(": ")
