"""What a reader of checkpoints makes of a file: tensors that can be compared, or a refusal that can be read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from converter.checkpoint import open_checkpoint
from converter.errors import CheckpointError


@dataclass(frozen=True)
class Outcome:
    """How reading one file in a process of its own ended: with a refusal, or with none if its tensors were read."""

    refusal: str | None
    seconds: float
    growth: float  # of the peak of resident memory, MiB


Apart = Callable[..., list[Outcome]]  # the fixture that reads files so
Bits = tuple[str, tuple[int, ...], bytes]
SIX = {"w": ("float32", (2, 3), np.arange(6, dtype="<f4").tobytes())}  # what `craft.tensor()` named w holds

_NEXT_STEP = re.compile(
    r"[.,;:] (?:(?:If|When|Once|Where) [^.]+, )?"
    r"(Check|Choose|Copy|Get|Give|Leave out|Load|Reshape|Run|Save|Unpack|Update)\b[^\n]*$",
    re.IGNORECASE,
)


def contents(path: Path, root: str | None = None) -> dict[str, Bits]:
    """All tensors of a file, read whole and, to the same result, piece by piece."""
    found = {}
    with open_checkpoint(path, root) as checkpoint:
        for name, info in checkpoint.tensors.items():
            array = checkpoint.read(name)
            found[name] = (info.dtype.name, array.shape, array.tobytes())
            assert array.flags.c_contiguous
            assert array.dtype == info.dtype.carrier
            assert b"".join(map(bytes, checkpoint.chunks(name))) == found[name][2]
    return found


def read_everything(path: Path, root: str | None = None) -> None:
    """Read all tensors, among them those that cannot be read."""
    with open_checkpoint(path, root) as checkpoint:
        for name in (*checkpoint.tensors, *checkpoint.unsupported, *checkpoint.objects):
            checkpoint.read(name)


def bits(tensor: torch.Tensor) -> Bits:
    """What torch says the values of `tensor` are."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    flat = plain.as_strided((plain.numel(),), (1,))  # contiguous, and yet of any stride where a length is one
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes()


def loaded(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Bits]:
    """`bits` of a state dict."""
    return {name: bits(tensor) for name, tensor in state_dict.items()}


def refusal(path: Path, kind: type[CheckpointError] = CheckpointError, root: str | None = None) -> str:
    """The message with which opening `path`, or reading all of its tensors, is refused."""
    with pytest.raises(kind) as caught:
        read_everything(path, root)
    message = str(caught.value)
    check_message(message, path)
    return message


def check_message(message: str, path: Path) -> None:
    """A message begins with the file, is one line that a terminal can show, and ends with what to do next."""
    assert message.startswith(str(path)), message
    assert message.isprintable(), ascii(message)
    assert len(message) < 2000 + len(str(path)), message
    assert _NEXT_STEP.search(message), message
