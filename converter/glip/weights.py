"""Loading: weights become a model, one tensor at a time, every one of them accounted for.

What `convert` wrote is read as it is. Any other known format is converted on the way, by the same plan.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from converter.checkpoint import Checkpoint
from converter.display import file_name, plain, quoted
from converter.errors import CheckpointError, ModelError
from converter.glip.model.config import GLIPConfig
from converter.writing.changes import compared_meanwhile
from converter.writing.in_memory import open_converted
from converter.writing.records import read_record

FLOATS = ("float16", "bfloat16", "float32", "float64")
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


def load(build: Callable[[GLIPConfig], M], path: Path, checkpoint: Checkpoint) -> M:
    """The model that `build` makes of the configuration of `checkpoint`, which was opened from `path`, and its weights.

    It is float32, on the CPU. ModelError if names, shapes or dtypes are not exactly the model's; all differences are
    listed.
    """
    model = _on_meta(build, _config(path, checkpoint), checkpoint)
    _check(model, checkpoint)
    fill(model, tensors(checkpoint), path)
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
        with torch.device("meta"):
            return build(config)
    except (RuntimeError, OverflowError, TypeError) as error:  # a tensor of more elements than an integer counts
        raise ModelError(
            f"{file_name(checkpoint.path)}: no model can have the sizes of its configuration: {error}"
        ) from None


def fill(model: nn.Module, tensors: Iterable[tuple[str, Tensor]], path: Path) -> None:
    """Allocate memory for a model on the meta device and fill its parameters, each cast to the parameter's dtype.

    Parameters are NaN until they get a value, so that one without a value is not taken for a weight. NaN in the file
    is loaded, with a warning.
    """
    model.to_empty(device="cpu")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(math.nan)
        for name, values in tensors:
            parameters[name].copy_(values)
        spoiled = [name for name, parameter in parameters.items() if parameter.isnan().any()]
    if spoiled:
        warnings.warn(f"{path}: weights that are NaN in the file: {', '.join(spoiled)}.", stacklevel=4)


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


def _check(model: nn.Module, checkpoint: Checkpoint) -> None:
    parameters, there = dict(model.named_parameters()), checkpoint.tensors
    problems = [f"missing: {n} {tuple(p.shape)}" for n, p in parameters.items() if n not in there]
    problems += [f"unexpected: {plain(n)} {t.shape}" for n, t in there.items() if n not in parameters]
    problems += [*checkpoint.unsupported.values()]
    for name, parameter in parameters.items():
        if (found := there.get(name)) is None:
            continue
        if found.shape != tuple(parameter.shape):
            problems.append(f"shape: {name} is {found.shape}, expected {tuple(parameter.shape)}")
        if found.dtype.name not in FLOATS:
            problems.append(f"dtype: {name} is {found.dtype}, expected one of {', '.join(FLOATS)}")
    if problems:
        raise ModelError(f"{file_name(checkpoint.path)}: does not fit the model.", problems)


def tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Names and values, one at a time."""
    for name, tensor in checkpoint.tensors.items():
        # numpy has no bfloat16: its bits come as integers
        yield name, torch.from_numpy(checkpoint.read(name)).view(getattr(torch, tensor.dtype.name))
