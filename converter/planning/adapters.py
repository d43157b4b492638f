"""Low-rank adapters (LoRA): merged into the weights that they are for, so that a plan sees a checkpoint like any other.

A layer of weight W with an adapter of matrices A and B computes what one of weight W + alpha / rank * B A does (Hu et
al., LoRA, section 4.1). The sum is made in float64 and rounded once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn, TypeAlias

from converter.checkpoint import DTYPES, Checkpoint
from converter.checkpoint.adapters import AdapterSettings, adapter_settings
from converter.display import counted, file_name, quoted
from converter.errors import UnsupportedCheckpointError
from converter.mapping.cast import cast, is_float
from converter.mapping.ops import Array
from converter.mapping.wrappers import load_wrappers

_CURE = "Load it with the package that made it, merge the adapter (PEFT: merge_and_unload()), and save the state dict."
_BASE = "base_layer"  # how PEFT calls a layer that has an adapter
Segments: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Adapter:
    """Names of both matrices, and of the weight that they are for."""

    a: str
    b: str
    weight: str


def with_adapters_merged(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, with every adapter merged into its layer; as it is where there is none.

    Raises UnsupportedCheckpointError where the file does not say alpha and rank, or an adapter is of another kind.
    """
    parts = [name for name in checkpoint.tensors if ".lora_" in name]
    if unreadable := [name for name in (*checkpoint.unsupported, *checkpoint.objects) if ".lora_" in name]:
        _refuse(checkpoint, f"{quoted(unreadable[0])} of an adapter, which cannot be read")
    if not parts:
        return checkpoint
    if trained := [name for name in checkpoint.tensors if ".modules_to_save." in name]:
        _refuse(checkpoint, f"{quoted(trained[0])}, which was trained beside an adapter in place of another")
    adapters = _adapters(checkpoint, parts)
    settings = _settings(checkpoint)
    computed = {}
    for adapter in adapters:
        _check(checkpoint, adapter, settings)
        computed[_plain(adapter.weight)] = partial(_merge, checkpoint, adapter, settings.alpha / settings.rank)
    said = (
        f"the matrices of a LoRA adapter of {counted(len(adapters), 'layer')}, merged into their weights "
        f"(alpha {settings.alpha:g}, rank {settings.rank})"
    )
    # with their adapters gone, layers have their own names again
    kept = [tensor for name, tensor in checkpoint.tensors.items() if name not in set(parts)]
    tensors = {name: replace(tensor, name=name) for tensor in kept for name in [_plain(tensor.name)]}
    if len(tensors) < len(kept):
        _refuse(checkpoint, f"an adapter, and some names both with and without {quoted(_BASE)}")
    return replace(checkpoint, tensors=tensors, computed=computed, skipped=(said, *checkpoint.skipped))


def _adapters(checkpoint: Checkpoint, parts: list[str]) -> list[_Adapter]:
    """One for each layer. Wrappers may stand anywhere in the names of matrices and weights."""
    matrices: dict[Segments, dict[str, str]] = defaultdict(dict)
    kinds = set()
    for name in parts:
        segments = _unwrapped(name)
        at = next((i for i, segment in enumerate(segments) if segment in ("lora_A", "lora_B")), None)
        tail = segments[at + 1 :] if at is not None else ()
        kind = tail[:-1] if tail[-1:] == ("weight",) else tail
        if at is None or len(kind) > 1 or kind == ("bias",):
            _refuse(checkpoint, f"{quoted(name)}, which is more than the matrices A and B of an adapter")
        kinds.add(kind)
        if segments[at] in matrices[segments[:at]] or len(kinds) > 1:
            _refuse(checkpoint, "several adapters")
        matrices[segments[:at]][segments[at]] = name
    weights: dict[Segments, list[str]] = defaultdict(list)
    for name in checkpoint.tensors.keys() - set(parts):
        weights[_unwrapped(name)].append(name)
    if not any((*layer, "weight") in weights for layer in matrices):
        raise UnsupportedCheckpointError(
            f"{file_name(checkpoint.path)}: is a LoRA adapter alone, of {counted(len(matrices), 'layer')}: "
            "differences, not weights. Load it with PEFT onto the model that it is for, call merge_and_unload(), and "
            "save that."
        )
    found = []
    for layer, names in matrices.items():
        own = weights.get((*layer, "weight"), [])
        if len(names) < 2 or len(own) != 1:
            lacks = "one matrix of two" if len(names) < 2 else f"{len(own)} weights for it, expected one"
            _refuse(checkpoint, f"an adapter of {quoted('.'.join(layer))} with {lacks}")
        found.append(_Adapter(names["lora_A"], names["lora_B"], own[0]))
    return found


def _unwrapped(name: str) -> Segments:
    return tuple(segment for segment in name.split(".") if segment not in load_wrappers().segments)


def _plain(name: str) -> str:
    return ".".join(segment for segment in name.split(".") if segment != _BASE)


def _settings(checkpoint: Checkpoint) -> AdapterSettings:
    """What the file says, which must be one thing."""
    said = {*checkpoint.adapters, *filter(None, [adapter_settings(checkpoint.metadata.items())])}
    if not said:
        _refuse(checkpoint, "a LoRA adapter, and does not say its alpha and rank, by which it is scaled")
    if otherwise := sorted({setting for settings in said for setting in settings.otherwise}):
        _refuse(checkpoint, f"a LoRA adapter with {otherwise[0]}, which is not merged here")
    if len(said) > 1:
        _refuse(checkpoint, f"a LoRA adapter, and says {len(said)} different pairs of alpha and rank")
    return said.pop()


def _check(checkpoint: Checkpoint, adapter: _Adapter, settings: AdapterSettings) -> None:
    """Refuse an adapter that is not of a linear layer, of another rank, or not of floating-point numbers."""
    names = (adapter.a, adapter.b, adapter.weight)
    a, b, weight = (checkpoint.tensors[name] for name in names)
    rank = settings.rank
    if any(len(tensor.shape) != 2 for tensor in (a, b, weight)) or (
        (b.shape, a.shape) != ((weight.shape[0], rank), (rank, weight.shape[1]))
    ):
        shown = ", ".join(f"{quoted(tensor.name)} {tensor.shape}" for tensor in (a, b, weight))
        _refuse(checkpoint, f"an adapter that is not of a linear layer, or not of rank {rank}: {shown}")
    if not all(is_float(tensor.dtype) for tensor in (a, b, weight)):
        _refuse(checkpoint, f"an adapter of {quoted(adapter.weight)} that is not of floating-point numbers")


def _merge(checkpoint: Checkpoint, adapter: _Adapter, scale: float) -> Array:
    wide = DTYPES["float64"]
    base, a, b = (
        cast(checkpoint.read(name), checkpoint.tensors[name].dtype, wide, name)
        for name in (adapter.weight, adapter.a, adapter.b)
    )
    return cast(base + scale * (b @ a), wide, checkpoint.tensors[adapter.weight].dtype, adapter.weight)


def _refuse(checkpoint: Checkpoint, holds: str) -> NoReturn:
    raise UnsupportedCheckpointError(f"{file_name(checkpoint.path)}: holds {holds}. {_CURE}")
