"""What is said where a model computes nothing that can be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from converter.display import listed
from converter.errors import ModelError

SMALLER = "Choose a smaller dtype, or another device."


@contextmanager
def memory_for(what: str, device: torch.device, advice: str = SMALLER) -> Iterator[None]:
    """ModelError where memory does not suffice for it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ModelError(f"{what}: more than the memory of {device} holds. {advice}") from None


def not_a_number(model: nn.Module, dtype: torch.dtype) -> ModelError:
    """The error where there is NaN: of such scores nothing is found, and such boxes are nowhere."""
    spoiled = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    name = str(dtype).removeprefix("torch.")
    if spoiled:
        cause = f"Weights are NaN or infinite: {listed(spoiled)}. Training diverged, or the file is damaged."
    else:
        others = " or ".join(other for other in ("bfloat16", "float32") if other != name)
        cause = f"The weights are finite, but what they make is beyond {name}. Try {others}."
    return ModelError(f"the model computes NaN in {name}, so nothing can be found. {cause}")
