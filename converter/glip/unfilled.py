"""A context in which a model on the meta device is made, and given memory, without what torch would import for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Unfilled(TorchFunctionMode):
    """Modules are made without random numbers, of which the meta device has none: torch imports its compiler for them.

    And `to_empty` allocates as `torch.empty` does: for `torch.empty_like` of a meta tensor torch imports sympy. Both
    take two seconds, of the four or five until a small model has found something.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if function is torch.empty_like and args[0].is_meta:
            return torch.empty(args[0].shape, **{"dtype": args[0].dtype, **kwargs})
        return function(*args, **kwargs)
