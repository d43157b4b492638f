"""What a file says of a low-rank adapter (LoRA): alpha and rank, wherever a dict or an object has both.

PEFT keeps them in its `LoraConfig`, in a dict of it, and in every layer of a pickled module, there by adapter.
Source: peft/tuners/lora/config.py and layer.py of PEFT 0.17.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from converter.checkpoint.opcodes import Dict, Instance

_ALPHA = ("lora_alpha", "alpha")
_RANK = ("r", "rank", "lora_r", "lora_rank")
# settings under which the product of both matrices is not what is added
OTHERWISE = ("use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "lora_bias")


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """`alpha / rank` scales what an adapter adds. `otherwise`: settings that are on and change what is added."""

    alpha: float
    rank: int
    otherwise: tuple[str, ...]


def adapter_settings(pairs: Iterable[tuple[object, object]]) -> AdapterSettings | None:
    """The settings among the entries of a dict, or the attributes of an object; None if it has no alpha and rank."""
    found = {key: _only(value) for key, value in pairs if isinstance(key, str)}
    alpha = next((found[key] for key in _ALPHA if isinstance(found.get(key), int | float)), None)
    rank = next((found[key] for key in _RANK if isinstance(found.get(key), int)), None)
    if not isinstance(alpha, int | float) or not isinstance(rank, int) or isinstance(alpha, bool):
        return None
    return AdapterSettings(float(alpha), rank, tuple(key for key in OTHERWISE if found.get(key)))


def _only(value: object) -> object:
    """The value; of a dict with one entry, as for each adapter's name, that of the entry; else whether it has any."""
    if isinstance(value, Dict) or (isinstance(value, Instance) and value.pairs):
        return value.pairs[0][1] if len(value.pairs) == 1 else bool(value.pairs)
    return value
