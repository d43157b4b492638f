"""Loading: weights that `convert` wrote become a model, one tensor at a time, every one of them accounted for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.display import file_name, plain, quoted
from converter.errors import CheckpointError, ModelError
from converter.glip.model.config import GLIPConfig
from converter.writing.records import read_record

FLOATS = ("float16", "bfloat16", "float32", "float64")
M = TypeVar("M", bound=nn.Module)


def load_pretrained(build: Callable[[GLIPConfig], M], path: Path) -> M:
    """The model that `build` makes of the configuration of a file or folder, with its weights: float32, on the CPU.

    ModelError if a file is missing, damaged or inconsistent, or if names, shapes or dtypes are not exactly the model's;
    all differences are listed.
    """
    try:
        with open_checkpoint(path) as checkpoint:
            config = _config(path, checkpoint)
            model = _on_meta(build, config, checkpoint)
            _check(model, checkpoint)
            fill(model, ((name, _read(checkpoint, name)) for name in checkpoint.tensors), path)
            checkpoint.verify_unchanged()
            return model
    except CheckpointError as error:
        raise ModelError(str(error)) from None


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
    parameters, tensors = dict(model.named_parameters()), checkpoint.tensors
    problems = [f"missing: {n} {tuple(p.shape)}" for n, p in parameters.items() if n not in tensors]
    problems += [f"unexpected: {plain(n)} {t.shape}" for n, t in tensors.items() if n not in parameters]
    problems += [*checkpoint.unsupported.values()]
    for name, parameter in parameters.items():
        if (found := tensors.get(name)) is None:
            continue
        if found.shape != tuple(parameter.shape):
            problems.append(f"shape: {name} is {found.shape}, expected {tuple(parameter.shape)}")
        if found.dtype.name not in FLOATS:
            problems.append(f"dtype: {name} is {found.dtype}, expected one of {', '.join(FLOATS)}")
    if problems:
        raise ModelError(f"{file_name(checkpoint.path)}: does not fit the model.", problems)


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    # numpy has no bfloat16: its bits come as integers
    return torch.from_numpy(checkpoint.read(name)).view(getattr(torch, checkpoint.tensors[name].dtype.name))
