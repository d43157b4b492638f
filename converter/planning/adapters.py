"""Low-rank adapters (LoRA): merged into the weights that they are for, so that a plan sees a checkpoint like any other.

A layer of weight W with an adapter of matrices A and B computes what one of weight W + alpha / rank * B A does (Hu et
al., LoRA, section 4.1). The sum is made in float64 and rounded once.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import NoReturn

from converter.checkpoint import DTYPES, Checkpoint
from converter.checkpoint.adapters import AdapterSettings, adapter_settings
from converter.display import counted, file_name, quoted
from converter.errors import UnsupportedCheckpointError
from converter.mapping.cast import cast, is_float
from converter.mapping.ops import Array

# the layer, the matrix, and the name of the adapter in PEFT
_MATRIX = re.compile(r"(.+)\.lora_([AB])((?:\.(?!weight$)[^.]+)?)(?:\.weight)?")
_CURE = "Load it with the package that made it, merge the adapter (PEFT: merge_and_unload()), and save the state dict."


def with_adapters_merged(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, with every adapter merged into its layer; as it is where there is none.

    Raises UnsupportedCheckpointError where the file does not say alpha and rank, or an adapter is of another kind.
    """
    parts = [name for name in checkpoint.tensors if ".lora_" in name]
    if not parts:
        return checkpoint
    layers = _layers(checkpoint, parts)
    weights = {layer: _weight(checkpoint, layer) for layer in layers}
    if not any(weights.values()):
        raise UnsupportedCheckpointError(
            f"{file_name(checkpoint.path)}: is a LoRA adapter alone, of {counted(len(layers), 'layer')}: differences, "
            "not weights. Load it with PEFT onto the model that it is for, call merge_and_unload(), and save that."
        )
    settings = _settings(checkpoint)
    computed = {}
    for layer, (a, b) in layers.items():
        if (weight := weights[layer]) is None:
            _refuse(checkpoint, f"an adapter of {quoted(layer)}, whose own weight is not there")
        shapes = {name: checkpoint.tensors[name].shape for name in (a, b, weight)}
        if not all(len(shape) == 2 for shape in shapes.values()) or (
            (shapes[b][0], shapes[a][1]) != shapes[weight] or not shapes[a][0] == shapes[b][1] == settings.rank
        ):
            shown = ", ".join(f"{quoted(name)} {shape}" for name, shape in shapes.items())
            _refuse(checkpoint, f"an adapter that is not of a linear layer, or not of rank {settings.rank}: {shown}")
        if not all(is_float(checkpoint.tensors[name].dtype) for name in shapes):
            _refuse(checkpoint, f"an adapter of {quoted(layer)} that is not of floating-point numbers")
        computed[weight] = partial(_merge, checkpoint, weight, a, b, settings.alpha / settings.rank)
    said = (
        f"a LoRA adapter of {counted(len(layers), 'layer')}: merged into their weights "
        f"(alpha {settings.alpha:g}, rank {settings.rank})"
    )
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in set(parts)}
    return replace(checkpoint, tensors=tensors, computed=computed, skipped=(said, *checkpoint.skipped))


def _layers(checkpoint: Checkpoint, parts: Iterable[str]) -> dict[str, tuple[str, str]]:
    """By layer, the names of A and B."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    adapters = set()
    for name in parts:
        match = _MATRIX.fullmatch(name)
        if match is None:
            _refuse(checkpoint, f"{quoted(name)}, which is more than the matrices A and B")
        layer, matrix, adapter = match.groups()
        adapters.add(adapter)
        if matrix in found[layer]:
            break
        found[layer][matrix] = name
    if len(adapters) > 1:
        _refuse(checkpoint, "several adapters")
    if lone := [layer for layer, matrices in found.items() if len(matrices) < 2]:
        _refuse(checkpoint, f"an adapter of {quoted(lone[0])} with one matrix of two")
    return {layer: (matrices["A"], matrices["B"]) for layer, matrices in found.items()}


def _weight(checkpoint: Checkpoint, layer: str) -> str | None:
    names = (f"{layer}.base_layer.weight", f"{layer}.weight")
    return next((name for name in names if name in checkpoint.tensors), None)


def _settings(checkpoint: Checkpoint) -> AdapterSettings:
    """What the file says, which must be one thing."""
    said = {*checkpoint.adapters, *filter(None, [adapter_settings(_numbers(checkpoint.metadata).items())])}
    if not said:
        _refuse(checkpoint, "a LoRA adapter, and does not say its alpha and rank, by which it is scaled")
    if len(said) > 1:
        _refuse(checkpoint, f"a LoRA adapter, and says {len(said)} different pairs of alpha and rank")
    (settings,) = said
    if settings.otherwise:
        _refuse(checkpoint, f"a LoRA adapter with {settings.otherwise[0]}, which is not merged here")
    if settings.rank < 1 or not math.isfinite(settings.alpha):
        _refuse(checkpoint, f"a LoRA adapter of rank {settings.rank} and alpha {settings.alpha:g}")
    return settings


def _numbers(metadata: Mapping[str, str]) -> dict[object, object]:
    """The whole numbers in the metadata of safetensors."""
    return {key: int(text) for key, text in metadata.items() if re.fullmatch("[0-9]{1,9}", text)}


def _merge(checkpoint: Checkpoint, weight: str, a: str, b: str, scale: float) -> Array:
    wide = DTYPES["float64"]
    base, first, second = (
        cast(checkpoint.read(name), checkpoint.tensors[name].dtype, wide, name) for name in (weight, a, b)
    )
    return cast(base + scale * (second @ first), wide, checkpoint.tensors[weight].dtype, weight)


def _refuse(checkpoint: Checkpoint, holds: str) -> NoReturn:
    raise UnsupportedCheckpointError(f"{file_name(checkpoint.path)}: holds {holds}. {_CURE}")
