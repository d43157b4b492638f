"""Looking at a model's activations while it runs, under the names that a table gives them, and replacing them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from converter.errors import ModelError
from converter.mapping.entries import Tap

OnValue = Callable[[Tap, Tensor], Tensor | None]


@contextmanager
def observe(model: nn.Module, taps: Iterable[Tap], on_value: OnValue) -> Iterator[None]:
    """While active, `on_value` sees every tapped activation when its module has computed it.

    What it returns, if anything, takes the activation's place for all that follows. Raises ModelError for a tap whose
    module, output or field the model does not have.
    """
    modules = dict(model.named_modules())
    by_module: dict[str, list[Tap]] = {}
    for tap in taps:
        by_module.setdefault(tap.target, []).append(tap)
    if unknown := sorted(set(by_module) - set(modules)):
        raise ModelError(f"the model has no module {unknown[0]!r}, which a tap names ({len(unknown)} in all)")

    def hook(of_module: Sequence[Tap]) -> Callable[[nn.Module, object, object], object]:
        def run(module: nn.Module, inputs: object, output: object) -> object:
            for tap in of_module:
                replacement = on_value(tap, _follow(output, tap))
                if replacement is not None:
                    output = _replace(output, tap.output, replacement)
            return output

        return run

    handles = [modules[path].register_forward_hook(hook(of_module)) for path, of_module in by_module.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def collect(model: nn.Module, taps: Iterable[Tap], run: Callable[[], object]) -> dict[str, Tensor]:
    """Call `run`, and return every tapped activation by its source-side name. ModelError as `observe`."""
    found: dict[str, Tensor] = {}
    with observe(model, taps, lambda tap, value: found.__setitem__(tap.source, value)):
        run()
    return found


def _follow(value: Any, tap: Tap) -> Tensor:
    """Step by step from a module's output to the tensor."""
    try:
        for step in tap.output:
            value = getattr(value, step) if isinstance(step, str) else value[step]
    except (KeyError, IndexError, AttributeError, TypeError):
        raise ModelError(f"tap {tap.source!r}: {tap.target!r} has no output {list(tap.output)}") from None
    if not isinstance(value, Tensor):
        raise ModelError(f"tap {tap.source!r}: {tap.target!r}{list(tap.output)} is a {type(value).__name__}, no tensor")
    return value


def _replace(value: Any, steps: Sequence[str | int], replacement: Tensor) -> Any:
    """`value`, a tensor, a list or a tuple with fields or without, with another tensor at the end of `steps`."""
    if not steps:
        return replacement
    step, rest = steps[0], steps[1:]
    if isinstance(step, str):
        return value._replace(**{step: _replace(getattr(value, step), rest, replacement)})
    items = [_replace(item, rest, replacement) if index == step else item for index, item in enumerate(value)]
    if hasattr(value, "_fields"):
        return type(value)(*items)
    return items if isinstance(value, list) else tuple(items)
