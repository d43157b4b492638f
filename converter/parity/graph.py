"""How a family's models are exported: what `Family.graph` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from converter.mapping.entries import Tap

if TYPE_CHECKING:
    from torch import Tensor, nn


def output_name(tap: Tap) -> str:
    """Of an output of the model the way to it, `boxes.0`; of another activation its source-side name."""
    return tap.source if tap.target else ".".join(map(str, tap.output))


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of an exported model's inputs that may have any length: `multiple` times 1 to `most`."""

    name: str
    multiple: int = 1
    most: int = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """How a model is exported.

    inputs     example tensors by the names of the forward's arguments, in their order; none of a length like another's
    axes       of each input those that are not fixed, by their number
    detection  makes of the model's output and of `asked` what is found, a tuple of tensors; None: left out
    asked      example tensors of its further inputs, by their names
    found      names of what it makes
    context    in which the model runs while it is exported
    operators  what operators of `torch.library` become: functions of onnxscript
    """

    inputs: Mapping[str, Tensor]
    axes: Mapping[str, Mapping[int, Axis]]
    context: AbstractContextManager[None] = field(default_factory=nullcontext)
    operators: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    detection: nn.Module | None = None
    asked: Mapping[str, Tensor] = field(default_factory=dict)
    found: tuple[str, ...] = ()

    @property
    def multiple(self) -> int:
        """What the lengths of its axes are multiples of."""
        return max(axis.multiple for axes in self.axes.values() for axis in axes.values())

    @property
    def all_inputs(self) -> Mapping[str, Tensor]:
        """Those of the model, then those of its detection."""
        return {**self.inputs, **self.asked}
