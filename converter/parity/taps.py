"""Reading a model's activations while it runs, under the names that a table gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from converter.errors import ModelError
from converter.mapping.table import Tap


def collect(model: nn.Module, taps: Iterable[Tap], run: Callable[[], object]) -> dict[str, Tensor]:
    """Call `run`, and return every tapped activation by its source-side name.

    Raises ModelError for a tap whose module, output or field the model does not have.
    """
    taps = list(taps)
    modules = dict(model.named_modules())
    if unknown := sorted({tap.target for tap in taps} - set(modules)):
        raise ModelError(f"the model has no module {unknown[0]!r}, which a tap names ({len(unknown)} in all)")
    outputs: dict[str, Any] = {}

    def keep(path: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, inputs, output: outputs.__setitem__(path, output)

    hooks = [modules[path].register_forward_hook(keep(path)) for path in {tap.target for tap in taps}]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {tap.source: _follow(outputs, tap) for tap in taps}


def _follow(outputs: dict[str, Any], tap: Tap) -> Tensor:
    """Step by step from a module's output to the tensor."""
    try:
        value = outputs[tap.target]
        for step in tap.output:
            value = getattr(value, step) if isinstance(step, str) else value[step]
    except (KeyError, IndexError, AttributeError, TypeError):
        raise ModelError(f"tap {tap.source!r}: {tap.target!r} has no output {list(tap.output)}") from None
    if not isinstance(value, Tensor):
        raise ModelError(f"tap {tap.source!r}: {tap.target!r}{list(tap.output)} is a {type(value).__name__}, no tensor")
    return value
