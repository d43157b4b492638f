"""Loading: weights become a model, one tensor at a time, every one of them accounted for.

What `convert` wrote is read as it is. Any other known format is converted on the way, by the same plan.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from converter.checkpoint import Checkpoint
from converter.display import file_name, listed, quoted
from converter.errors import CaptureError, CheckpointError, ConverterWarning, ModelError
from converter.glip.model.config import GLIPConfig
from converter.glip.saving import Origin, origin_of, stated_hashes
from converter.glip.unfilled import Unfilled
from converter.mapping.spec import load_spec
from converter.parity.device import DTYPES, find_device
from converter.writing.changes import compared_meanwhile
from converter.writing.fitting import FLOATS, check_fits
from converter.writing.in_memory import open_converted
from converter.writing.records import read_record
from converter.writing.transfer import sha256_of

CPU = torch.device("cpu")
M = TypeVar("M", bound=nn.Module)


@contextmanager
def open_pretrained(path: Path, root: str | None = None) -> Iterator[Checkpoint]:
    """The weights in a file or folder of any known format, to be loaded. `root`: of several state dicts, this one.

    A converted file that is not what its own record says is a warning. ModelError if a file is missing, damaged or
    inconsistent, or changes meanwhile; PlanError, with all problems, if it is no conversion and cannot be converted.
    """
    try:
        with open_converted(path, root) as checkpoint:
            with compared_meanwhile(checkpoint, path):
                yield checkpoint
            checkpoint.verify_unchanged()
    except CheckpointError as error:
        raise ModelError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a model is to lie, and in which dtype."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, device: str | torch.device, dtype: str | torch.dtype) -> Memory:
        """By their names, or as they are. ModelError if there is no such device here, or a model cannot be of it."""
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ModelError(f"dtype: found {quoted(name)}, expected one of {', '.join(FLOATS)}.")
        try:
            return cls(find_device(device), DTYPES[name])
        except CaptureError as error:
            raise ModelError(f"device: {error}.") from None


def load_pretrained(
    build: Callable[[GLIPConfig], M], name: str, path: Path, memory: Memory, root: str | None
) -> tuple[M, Origin]:
    """As `load` of what `open_pretrained` opens; and what the model is to be remembered to be from, under `name`."""
    if name == str(path) and not os.path.lexists(path) and name in _released():
        raise ModelError(
            f"{name}: is the name of a model, and there is no such file or folder. Give the path of its weights, or "
            f"org/name on the Hub; with random numbers, converter.glip.get_model({name!r}) makes it."
        )
    with open_pretrained(path, root) as checkpoint:
        stated, hashes = stated_hashes(path, checkpoint), dict[str, str]()
        model = load(build, path, checkpoint, memory, hashes if stated is None else None)
        return model, origin_of(name, path, checkpoint, hashes if stated is None else stated)


def _released() -> set[str]:
    return {name for variant in load_spec("glip").variants for name in (variant.name, *variant.also)}


def load(
    build: Callable[[GLIPConfig], M],
    path: Path,
    checkpoint: Checkpoint,
    memory: Memory | None = None,
    hashes: dict[str, str] | None = None,
) -> M:
    """The model that `build` makes of the configuration of `checkpoint`, which was opened from `path`, and its weights.

    `hashes` gets the SHA-256 of each tensor as it is read. ModelError if names, shapes or dtypes are not exactly the
    model's; all differences are listed.
    """
    memory = memory or Memory()
    model = _on_meta(build, _config(path, checkpoint), checkpoint)
    check_fits({name: tuple(value.shape) for name, value in dict(model.named_parameters()).items()}, checkpoint)
    fill(model.to(memory.dtype), tensors(checkpoint, hashes), path, memory.device)
    return model


def _on_meta(build: Callable[[GLIPConfig], M], config: GLIPConfig, checkpoint: Checkpoint) -> M:
    """The model without memory, so that its shapes are compared with the weights' before any is allocated."""
    layers = sum(config.depths) + config.text_layers + config.head_blocks
    if layers > len(checkpoint.tensors):
        raise ModelError(
            f"{file_name(checkpoint.path)}: the configuration has {layers} layers, but there are "
            f"{len(checkpoint.tensors)} tensors."
        )
    try:
        with torch.device("meta"), Unfilled():
            return build(config)
    except (RuntimeError, OverflowError, TypeError) as error:  # a tensor of more elements than an integer counts
        raise ModelError(
            f"{file_name(checkpoint.path)}: no model can have the sizes of its configuration: {error}"
        ) from None


def fill(model: nn.Module, tensors: Iterable[tuple[str, Tensor]], path: Path, device: torch.device = CPU) -> None:
    """Allocate memory for a model on the meta device and fill its parameters, each cast to the parameter's dtype.

    Besides the model, memory holds one tensor at a time. Parameters are NaN until they get a value, so that one without
    a value is not taken for a weight. NaN in the file is loaded, with a warning. ModelError for a value that is beyond
    the parameter's dtype.
    """
    with Unfilled():
        model.to_empty(device=device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(math.nan)
        for name, values in tensors:
            parameter = parameters[name]
            parameter.copy_(values)
            if parameter.dtype == torch.float16 and parameter.isinf().sum() > values.isinf().sum():
                most = values[values.isfinite()].abs().max()
                raise ModelError(f"{file_name(path)}: {name} holds {most:g}, beyond float16. Choose another dtype.")
        spoiled = [name for name, parameter in parameters.items() if parameter.isnan().any()]
    if spoiled:
        warnings.warn(f"{path}: weights that are NaN in the file: {listed(spoiled)}.", ConverterWarning, stacklevel=5)


def _config(path: Path, checkpoint: Checkpoint) -> GLIPConfig:
    document = read_record(path, checkpoint, "config")
    if document["model"] != "glip":
        raise ModelError(f"{file_name(path)}: holds a model of {quoted(document['model'])}, not a GLIP.")
    if part := document.get("part"):
        raise ModelError(
            f"{file_name(path)}: holds the {part} of GLIP alone. converter.glip.get_model loads the image encoder; a "
            "whole GLIP comes from a whole checkpoint."
        )
    try:
        return GLIPConfig.from_dict(document["config"])
    except ModelError as error:
        raise ModelError(f"{file_name(path)}: {error}") from None


def tensors(checkpoint: Checkpoint, hashes: dict[str, str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Names and values, one at a time. `hashes` gets their SHA-256."""
    for name, tensor in checkpoint.tensors.items():
        values = checkpoint.read(name)
        if hashes is not None:
            hashes[name] = sha256_of(values)
        # numpy has no bfloat16: its bits come as integers
        yield name, torch.from_numpy(values).view(getattr(torch, tensor.dtype.name))
