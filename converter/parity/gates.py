"""Tolerances: what the error of an activation may be, by device and dtype. The numbers stand in gates.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import CaptureError

if TYPE_CHECKING:
    from converter.parity.capture import Activation, Capture, Mode


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

    def limit(
        self, activation: Activation, shape: Sequence[int], capture: Capture, dtype: str, mode: Mode
    ) -> float | None:
        """What the error of `activation` may be, of which `shape` is compared.

        None if the captured model's own error is needed and not recorded, or if the multiple of it is so large that
        anything would pass (`most` in gates.json).
        """
        if self.relative is not None:
            return self.relative
        own = _expected_error(activation, shape, capture, dtype, mode)
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


def _expected_error(
    activation: Activation, shape: Sequence[int], capture: Capture, dtype: str, mode: Mode
) -> float | None:
    own = activation.own(dtype, mode)
    errors = ((name, other.own(dtype, mode)) for name, other in capture.activations.items())
    return None if own is None else expected_error(activation.name, shape, own, errors)


def expected_error(name: str, shape: Sequence[int], own: float, errors: Iterable[tuple[str, float | None]]) -> float:
    """The captured error, or that of all levels of the same output where the activation is a handful of numbers.

    `errors`: of all activations in the same dtype and mode, by name.
    """
    if math.prod(shape) >= gates()["few"]["numbers"]:
        return own
    output = name.rpartition(".")[0]
    levels = [error for other, error in errors if other.rpartition(".")[0] == output and error is not None]
    return max(own, math.sqrt(sum(error**2 for error in levels) / len(levels)))
