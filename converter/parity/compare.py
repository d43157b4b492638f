"""How far one activation is from the captured one, and whether that is too far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from converter.display import beside, counted, figure
from converter.errors import CaptureError
from converter.parity.capture import Activation, Capture, Mode, error_of_probes
from converter.parity.gates import Gate

BINS = 16  # of each axis of a histogram
DECADES = (-20.0, 4.0)  # of magnitudes and errors, log10
HEAT = 32  # cells of a heat map at most, per side


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

    def why(self, dtype: str) -> str:
        """Why it has its verdict, for a model in `dtype`."""
        if self.unsound:
            return f"{counted(self.unsound, 'number')} NaN or infinite on one side only"
        if self.limit is not None:
            return beside("relative error {}, at most {}", self.relative, self.limit)
        if self.own is None:
            reason = f"the capture does not hold its own error in {dtype}"
        else:
            reason = f"the captured model's own error in {dtype} is {self.own:.0e}, too much to judge by"
        return f"relative error {figure(self.relative)}; not judged, as {reason}"

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


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What activations are compared with, and by which gate.

    Args:
        dtype: of the model under test.
        cut: lengths of axes of which the model computes only the beginning: captured -> computed.
        pictures: whether to keep histograms and heat maps.
    """

    capture: Capture
    gate: Gate
    dtype: str
    cut: Mapping[int, int] = field(default_factory=dict)
    pictures: bool = False

    def measure(self, name: str, module: str, found: Tensor, mode: Mode) -> TapResult:
        """`found`, which `module` computed, beside the captured activation `name`.

        CaptureError if it has another shape, unless the capture only has more of what is cut.
        """
        activation = self.capture.activations[name]
        result = partial(
            TapResult,
            name=name,
            module=module,
            own=activation.own(self.dtype, mode),
            limit=self.limit(name, mode, found.shape),
        )
        if activation.compact:
            if tuple(found.shape) != activation.shape:
                raise self._other_shape(activation, found)
            relative = error_of_probes(activation, self.capture.read(name), found)
            return result(
                shape=activation.shape, relative=relative, max_abs=None, needed=None, cosine=None,
                unsound=int(not found.isfinite().all()),
            )  # fmt: skip
        expected = self.expected(name, found)
        here = found.detach().to("cpu", torch.float64)
        difference = (here - expected).abs()
        norm = float(expected.norm())
        return result(
            shape=tuple(expected.shape),
            relative=float(difference.norm()) / (norm or 1.0),
            max_abs=float(difference.max()) if difference.numel() else 0.0,
            needed=float((difference / (1 + expected.abs())).max()) if difference.numel() else 0.0,
            cosine=float((here * expected).sum() / (here.norm() * norm)) if norm and here.norm() else None,
            unsound=int((here.isfinite() != expected.isfinite()).sum()),
            histogram=_histogram(expected, difference) if self.pictures else None,
            heat=_heat(difference, self.capture) if self.pictures else None,
        )

    def limit(self, name: str, mode: Mode, shape: Sequence[int]) -> float | None:
        """What the relative error of the activation `name`, of which `shape` is compared, may be; None if nothing
        says."""
        return self.gate.limit(self.capture.activations[name], shape, self.capture, self.dtype, mode)

    def expected(self, name: str, like: Tensor) -> Tensor:
        """The captured values in float64 on the CPU, cut to what `like` has where they differ in nothing else."""
        activation = self.capture.activations[name]
        expected = self.capture.read(name)
        for axis, length in enumerate(like.shape[: expected.dim()]):
            if self.cut.get(expected.shape[axis]) == length:
                expected = expected.narrow(axis, 0, length)
                break
        if expected.shape != like.shape:
            raise self._other_shape(activation, like)
        return expected

    def _other_shape(self, activation: Activation, found: Tensor) -> CaptureError:
        return CaptureError(
            f"capture {self.capture.name!r}: {activation.name!r} is {tuple(found.shape)} in this model, captured was "
            f"{activation.shape}. It was made with {self.capture.model}."
        )


def cut_axes(captured: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[int, int]:
    """Lengths of axes that `given`, what a model is called with, has less of than was captured."""
    return {
        whole: part
        for name, tensor in given.items()
        for whole, part in zip(captured[name].shape, tensor.shape, strict=True)
        if part < whole
    }


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
        images = [tensor.shape[-2:] for tensor in capture.inputs.values() if tensor.dim() == 4]
        sizes = [size for image in images for size in _map_sizes(image)]
        height, width = next((size for size in sizes if math.prod(size) == len(cells)), (1, len(cells)))
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
