"""How a family's models are exported: what `Family.graph` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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
    context    in which the model runs while it is exported
    operators  what operators of `torch.library` become: functions of onnxscript
    """

    inputs: Mapping[str, Tensor]
    axes: Mapping[str, Mapping[int, Axis]]
    context: AbstractContextManager[None] = field(default_factory=nullcontext)
    operators: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
