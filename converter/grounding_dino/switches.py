"""Where the official code and transformers compute something different, and how transformers' class does the other.

A capture holds what the official code computes (groundingdino-py 0.4.0). To be compared with it, a model of
transformers runs with these switches: weights stay as they are, and so does the model for everybody else. Each
difference, its size and its places in both sources are in docs/families/grounding-dino.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

OFFICIAL_EPSILON = 1e-3  # of the inverse sigmoid: groundingdino/util/misc.py, inverse_sigmoid


class _Functions(TorchFunctionMode):
    """While active, `change` sees every call of torch."""

    def __init__(self, change: Callable[..., Any]) -> None:
        super().__init__()
        self.change = change

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        return self.change(function, *arguments, **(named or {}))


@contextmanager
def changing(change: Callable[..., Any]) -> Iterator[None]:
    """Every function of torch returns what `change` makes of it and its arguments."""
    with _Functions(change):
        yield


@contextmanager
def official_inverse_sigmoid() -> Iterator[None]:
    """Boxes are refined from references that are cut at 1e-3, not 1e-5."""

    def change(function: Any, *arguments: Any, **named: Any) -> Any:
        if function is not torch.special.logit:
            return function(*arguments, **named)
        x = arguments[0]
        return torch.log(x.clamp(min=OFFICIAL_EPSILON) / (1 - x).clamp(min=OFFICIAL_EPSILON))

    with changing(change):
        yield


def mixed_in(pictures: int, heads: int) -> Tensor:
    """Whose mask each head of each picture gets: (pictures, heads).

    Head h of picture b gets that of picture (b * heads + h) % pictures: the official code repeats all masks once for
    each head, where the heads of one picture lie together.
    """
    return (torch.arange(pictures * heads) % pictures).view(pictures, heads)


def _mixed(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The masks (B, N, N) for each head."""
    masks: Tensor = named["attention_masks"]
    hidden: Tensor = named["hidden_states"]
    allowed = masks[mixed_in(len(masks), module.num_heads).to(masks.device)].to(hidden.dtype)
    return arguments, {**named, "attention_masks": (1.0 - allowed) * torch.finfo(hidden.dtype).min}


@contextmanager
def official_text_masks(model: nn.Module) -> Iterator[None]:
    """In a batch, heads of the text enhancer get the masks of other pictures' captions."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name.endswith(".text_enhancer_layer"):
                stack.callback(module.register_forward_pre_hook(_mixed, with_kwargs=True).remove)
        yield


@contextmanager
def exact() -> Iterator[None]:
    """What both codes compute in float32 in any model, they compute in float64: positions, sums of masks, logits."""

    def change(function: Any, *arguments: Any, **named: Any) -> Any:
        if named.get("dtype") is torch.float32:
            named = {**named, "dtype": torch.float64}
        if function is torch.Tensor.float:
            return arguments[0].double()
        return function(*arguments, **named)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with changing(change):
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def selecting(given: Tensor | None = None) -> Iterator[list[Tensor]]:
    """The proposals that become queries are `given` (B, queries), where it is not None; those of every run gather in
    the list. In float32 near ties fall otherwise than in float64, and all that follows is in another order."""
    seen: list[Tensor] = []

    def change(function: Any, *arguments: Any, **named: Any) -> Any:
        found = function(*arguments, **named)
        if function is not torch.topk:
            return found
        if given is not None:
            indices = given.to(found.indices)
            found = type(found)((arguments[0].gather(named.get("dim", -1), indices), indices))
        seen.append(found.indices)
        return found

    with changing(change):
        yield seen


SWITCHES: Mapping[str, Callable[[nn.Module], Any]] = {
    "inverse sigmoid": lambda model: official_inverse_sigmoid(),
    "text masks": official_text_masks,
}


@contextmanager
def as_official(model: nn.Module, *, without: str = "") -> Iterator[None]:
    """While active, the model computes as the official code does, in all but the switch `without`.

    A float64 model is exact throughout, as the float64 run that a capture holds is.
    """
    with ExitStack() as stack:
        for name, switch in SWITCHES.items():
            if name != without:
                stack.enter_context(switch(model))
        if next(model.parameters()).dtype == torch.float64:
            stack.enter_context(exact())
        yield
