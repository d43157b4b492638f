"""How far one activation is from the captured one, and whether that is too far."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converter.errors import CaptureError
from converter.parity.capture import Activation, Capture, Mode, error_of_probes

BINS = 16  # of each axis of a histogram
DECADES = (-20.0, 4.0)  # of magnitudes and errors, log10
HEAT = 32  # cells of a heat map at most, per side


@cache
def gates() -> Mapping[str, Any]:
    """The content of `gates.json`: what is tolerated, and why."""
    content: Mapping[str, Any] = json.loads(Path(__file__).with_name("gates.json").read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True, slots=True)
class Gate:
    """A tolerance of the relative Frobenius error: a number, or so many times the captured model's own error.

    `default` is what it replaces, None if it is the default itself.
    """

    relative: float | None
    times: float | None
    reason: str
    default: Gate | None = None

    def __str__(self) -> str:
        return f"{self.relative:g}" if self.relative is not None else f"{self.times:g}x the reference's own error"

    @property
    def looser(self) -> bool:
        """It lets pass what the default would not, or measures something else."""
        if self.default is None:
            return False
        if self.relative is not None and self.default.relative is not None:
            return self.relative > self.default.relative
        if self.times is not None and self.default.times is not None:
            return self.times > self.default.times
        return True

    def limit(self, activation: Activation, capture: Capture, dtype: str, mode: Mode) -> float | None:
        """What the error of `activation` may be. None if the capture does not hold what that takes, or if so many times
        the own error would let anything pass."""
        if self.relative is not None:
            return self.relative
        own = _expected_error(activation, capture, dtype, mode)
        if own is None or self.times is None or self.times * own >= gates()["most"]["relative"]:
            return None
        return self.times * own


def find_gate(device: str, dtype: str, override: str | None = None) -> Gate:
    """The gate for a device (`cpu`, `cuda`) and dtype; `override` is a number like `1e-8`, or `6x`."""
    entry = next(g for g in gates()["gates"] if g["device"] in ("any", device) and g["dtype"] == dtype)
    default = Gate(entry.get("relative"), entry.get("times"), entry["reason"])
    if override is None:
        return default
    try:
        number = float(override.removesuffix("x"))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise CaptureError(f"a gate is a number like 1e-8, or a multiple like 6x, not {override!r}")
    if override.endswith("x"):
        return Gate(None, number, "given on the command line", default)
    return Gate(number, None, "given on the command line", default)


def _expected_error(activation: Activation, capture: Capture, dtype: str, mode: Mode) -> float | None:
    """The captured error, or that of all levels of the same output where the activation is a handful of numbers."""
    own = activation.own(dtype, mode)
    if own is None or math.prod(activation.shape) >= gates()["few"]["numbers"]:
        return own
    output = activation.name.rpartition(".")[0]
    levels = [
        error
        for other in capture.activations.values()
        if other.name.rpartition(".")[0] == output and (error := other.own(dtype, mode)) is not None
    ]
    return max(own, math.sqrt(sum(error**2 for error in levels) / len(levels)))


@dataclass(frozen=True, slots=True)
class TapResult:
    """One activation beside the captured one. Errors are differences to the captured values, in float64.

    Args:
        name, module: of the tap on the captured side, and its module in the model under test.
        relative: Frobenius norm of the difference over that of the captured values.
        max_abs, needed, cosine: largest difference; the least t with |difference| <= t + t |captured| everywhere;
            None where only probes were captured.
        own: the captured model's own relative error in this dtype, if it is known.
        unsound: numbers that are NaN or infinite here and were not so in the capture, or the other way round.
        limit: what `relative` may be, None where nothing says.
        histogram: how many differences there are by magnitude (rows, log10 of what was captured) and error (columns,
            log10), over DECADES; heat: the largest difference by position, rows of a map.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    relative: float
    max_abs: float | None
    needed: float | None
    cosine: float | None
    own: float | None
    unsound: int
    limit: float | None
    histogram: tuple[tuple[int, ...], ...] | None = None
    heat: tuple[tuple[float, ...], ...] | None = None

    @property
    def passed(self) -> bool | None:
        """Within its limit; None where there is none. NaN is never within."""
        if self.unsound:
            return False
        return None if self.limit is None else self.relative <= self.limit

    def unjudged(self, dtype: str) -> str:
        """Why there is no limit."""
        if self.own is None:
            return f"not judged, as the capture does not hold its own error in {dtype}"
        return f"not judged, as the captured model's own error in {dtype} is {self.own:.0e}, too much to judge by"

    @property
    def ratio(self) -> float | None:
        """The error in units of the captured model's own."""
        return self.relative / self.own if self.own else None

    @property
    def share(self) -> float:
        """How much of the limit is used up; what a list of the worst is sorted by."""
        if self.unsound or (self.passed is False and not self.limit):
            return math.inf
        return self.relative / self.limit if self.limit else self.relative


def measure(
    capture: Capture,
    name: str,
    module: str,
    found: Tensor,
    *,
    gate: Gate,
    dtype: str,
    mode: Mode,
    pictures: bool = False,
) -> TapResult:
    """Compare `found` with the captured activation `name`; `pictures` adds histogram and heat map.

    CaptureError if it has another shape, unless the capture only has more tokens of padding.
    """
    activation = capture.activations[name]
    limit = gate.limit(activation, capture, dtype, mode)
    result = partial(TapResult, name=name, module=module, own=activation.own(dtype, mode), limit=limit)
    if activation.compact:
        if tuple(found.shape) != activation.shape:
            raise other_shape(capture, activation, found)
        relative = error_of_probes(activation, capture.read(name), found)
        return result(
            shape=activation.shape, relative=relative, max_abs=None, needed=None, cosine=None,
            unsound=int(not found.isfinite().all()),
        )  # fmt: skip
    expected = fitted(capture, activation, found)
    here = found.detach().to("cpu", torch.float64)
    difference = (here - expected).abs()
    unsound = int((here.isfinite() != expected.isfinite()).sum())
    norm = float(expected.norm())
    return result(
        shape=tuple(expected.shape),
        relative=float(difference.norm()) / (norm or 1.0),
        max_abs=float(difference.max()) if difference.numel() else 0.0,
        needed=float((difference / (1 + expected.abs())).max()) if difference.numel() else 0.0,
        cosine=float((here * expected).sum() / (here.norm() * norm)) if norm and here.norm() else None,
        unsound=unsound,
        histogram=_histogram(expected, difference) if pictures else None,
        heat=_heat(difference, capture) if pictures else None,
    )


def fitted(capture: Capture, activation: Activation, like: Tensor) -> Tensor:
    """The captured values, cut to the tokens that `like` has where they differ in nothing else."""
    expected = capture.read(activation.name)
    tokens, computed = capture.input_ids.shape[1], capture.tokens
    for axis, length in enumerate(like.shape[: expected.dim()]):
        if expected.shape[axis] == tokens > computed == length:
            expected = expected.narrow(axis, 0, length)
            break
    if expected.shape != like.shape:
        raise other_shape(capture, activation, like)
    return expected


def other_shape(capture: Capture, activation: Activation, found: Tensor) -> CaptureError:
    return CaptureError(
        f"capture {capture.name!r}: {activation.name!r} is {tuple(found.shape)} in this model, captured was "
        f"{activation.shape}. It was made with {capture.model}."
    )


def _histogram(expected: Tensor, difference: Tensor) -> tuple[tuple[int, ...], ...]:
    low, high = DECADES

    def bins(values: Tensor) -> Tensor:
        place = (values.abs().clamp(min=10**low).log10() - low) / (high - low) * BINS
        return place.nan_to_num(nan=BINS - 1).long().clamp(0, BINS - 1).flatten()

    counts = torch.bincount(bins(expected) * BINS + bins(difference), minlength=BINS * BINS).view(BINS, BINS)
    return tuple(tuple(row) for row in counts.tolist())


def _heat(difference: Tensor, capture: Capture) -> tuple[tuple[float, ...], ...]:
    """Largest difference by position: rows and columns of a map, or one row of tokens."""
    if difference.dim() == 4:
        plane = difference.amax(dim=(0, 1))
    elif difference.dim() == 3:
        cells = difference.amax(dim=(0, 2))
        height, width = next(
            (size for size in _map_sizes(capture.images.shape[-2:]) if math.prod(size) == len(cells)), (1, len(cells))
        )
        plane = cells.view(height, width)
    else:
        plane = difference.reshape(1, -1)
    target = [min(length, HEAT) for length in plane.shape]
    pooled = torch.nn.functional.adaptive_max_pool2d(plane[None], target)[0]
    return tuple(tuple(row) for row in pooled.tolist())


def _map_sizes(image: Iterable[int]) -> list[tuple[int, int]]:
    """Sizes of all maps of an image, from stride 4 on."""
    height, width = (-(-length // 4) for length in image)
    sizes = [(height, width)]
    for _ in range(5):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes
