"""What a file says of a low-rank adapter (LoRA): alpha and rank, wherever a dict or an object has both.

PEFT keeps them in its `LoraConfig`, in a dict of it, and in every layer of a pickled module, there by adapter.
Source: peft/tuners/lora/config.py and layer.py of PEFT 0.17.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from converter.checkpoint.opcodes import Dict, Instance
from converter.display import plain

# `alpha` alone may be that of a loss, `rank` that of a process: they count where something says that it is an adapter
_ALPHA, _ANY_ALPHA = "lora_alpha", "alpha"
_RANKS = ("lora_r", "lora_rank", "r", "rank")
_OF_ADAPTERS = re.compile("lora|peft|adapter", re.IGNORECASE)
# settings under which something else is added than alpha / rank times the product, or was added already
_OTHERWISE = (
    "use_rslora", "use_dora", "use_qalora", "rslora", "fan_in_fan_out", "lora_bias", "alora_invocation_tokens",
    "merged_adapters", "merged", "_disable_adapters",
)  # fmt: skip
_PATTERNS = ("rank_pattern", "alpha_pattern")
_OFF = ("", "0", "false", "none", "no", "{}", "[]")  # as texts
_LARGEST = 1 << 30


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """`alpha / rank` scales what an adapter adds. `otherwise`: settings that are on and change what is added."""

    alpha: float
    rank: int
    otherwise: tuple[str, ...]


def adapter_settings(pairs: Iterable[tuple[object, object]], path: Sequence[str] = ()) -> AdapterSettings | None:
    """The settings among the entries of the dict at `path`, or among the attributes of an object there.

    None if it has no alpha and rank, or none that are known to be an adapter's.
    """
    given = {key: value for key, value in pairs if isinstance(key, str)}
    found = {key: _only(value) for key, value in given.items()}
    is_named = not path or any(map(_OF_ADAPTERS.search, path))
    alpha = _number(found.get(_ALPHA, found.get(_ANY_ALPHA) if is_named else None))
    rank = _number(next((found[key] for key in _RANKS if key in found), None))
    if alpha is None or rank is None or rank < 1 or rank != int(rank):
        return None
    otherwise = [key for key in _OTHERWISE if _is_on(found.get(key))]
    otherwise += [key for key in _PATTERNS if isinstance(entries := given.get(key), Dict | Instance) and entries.pairs]
    if "scaling" in found and (scale := _number(found["scaling"])) != alpha / rank:
        otherwise.append("scaling" if scale is None else f"scaling {scale:g}")
    if found.get("_active_adapter") == []:
        otherwise.append("_active_adapter")
    if (kind := _text(found.get("peft_type"))) not in ("", "LORA"):
        otherwise.append(f"peft_type {kind}")
    return AdapterSettings(alpha, int(rank), tuple(otherwise))


def _only(value: object) -> object:
    """The value; of a dict with one entry, as for each adapter's name, that of the entry; else whether it has any."""
    if isinstance(value, Dict) or (isinstance(value, Instance) and value.pairs):
        return value.pairs[0][1] if len(value.pairs) == 1 else bool(value.pairs)
    return value


def _is_on(value: object) -> bool:
    return value.lower() not in _OFF if isinstance(value, str) else bool(value)


def _text(value: object) -> str:
    """A text, or that of a member of an enumeration of texts."""
    if isinstance(value, Instance) and isinstance(value.arguments, tuple):
        value = next(iter(value.arguments), "")
    return plain(value).upper() if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    """A finite number of a sensible size, or a text that is one."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        return None
    return float(value) if math.isfinite(value) else None
