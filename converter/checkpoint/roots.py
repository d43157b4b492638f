"""Which state dict of a pickled checkpoint is taken, and what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from converter.checkpoint.index import Checkpoint, Layout, TensorInfo
from converter.checkpoint.opcodes import Dict, Global, Instance, Persistent
from converter.checkpoint.source import SourceFile
from converter.checkpoint.storage import Storage
from converter.checkpoint.tensors import StorageReference, Unreadable, build_tensor, is_tensor
from converter.display import counted, file_name, plain, quoted
from converter.errors import CorruptCheckpointError, RootError

Pairs = list[tuple[object, object]]

PREFERRED = ("model", "state_dict", "", "model_ema")  # "" is the file itself
_ORDERED_DICT = Global("collections", "OrderedDict")
_NAMED = 100  # at most so many skipped entries, or state dicts to choose from, are listed by name


def take_root(
    source: SourceFile,
    layout: Layout,
    value: object,
    wanted: str | None,
    find: Callable[[StorageReference], Storage],
    globals: Iterable[Global],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Checkpoint:
    """The checkpoint in `source`: the state dict `wanted` in `value`; without it, the only one or the first preferred.

    `find` gives the storage of a tensor. Raises RootError if there is no state dict, or several without a reason to
    prefer one; CorruptCheckpointError for a tensor that contradicts its storage.
    """
    label = file_name(source.path)
    candidates = _candidates(value, label)
    root = _choose({name: count for name, (_, count) in candidates.items()}, wanted, value, label)
    tensors: dict[str, TensorInfo] = {}
    unsupported: dict[str, str] = {}
    objects: dict[str, str] = {}
    beside = _pairs(value) or () if root else ()
    skipped = [f"{_key(key)}: {_describe(item)}" for key, item in beside if key != root]
    for key, item in _unique(candidates[root][0], label):
        if not isinstance(key, str):
            skipped.append(f"{_key(key)}: not named by a string ({_describe(item)})")
        elif is_tensor(item):
            try:
                tensors[key] = build_tensor(key, item, label, find)
            except Unreadable as error:
                unsupported[key] = f"tensor {quoted(key)}: {error}"
        elif isinstance(item, Instance) and item.function != _ORDERED_DICT:
            made = f"{_describe(item)}; it was not executed"
            objects[key] = f"{quoted(key)} is not a tensor, but {made}. Save a plain tensor"
        else:
            skipped.append(f"{_key(key)}: {_describe(item)}")
    if len(skipped) > _NAMED:
        skipped[_NAMED:] = [f"and {len(skipped) - _NAMED} others"]
    return Checkpoint(
        path=source.path,
        layout=layout,
        sources=(source,),
        root=root,
        roots={name: count for name, (_, count) in candidates.items()},
        tensors=tensors,
        unsupported=unsupported,
        objects=objects,
        skipped=tuple(skipped),
        globals=tuple(sorted(map(str, globals))),
        metadata=metadata,
    )


def _candidates(value: object, label: str) -> dict[str, tuple[Pairs, int]]:
    """Everything in the file that holds tensors by name, and how many; "" is the file itself."""
    pairs = _pairs(value)
    if pairs is None:
        return {}
    # by identity: thousands of names may refer to one and the same dict, and thousands of dicts to one list of items
    known: dict[int, tuple[Pairs, int]] = {}
    candidates = {"": (pairs, own)} if (own := _tensors(pairs)) else {}
    for key, item in _unique(pairs, label):
        if isinstance(key, str) and key and (items := _items(item)):
            if id(items) not in known:
                inner = _pairs(item) or []
                known[id(items)] = inner, _tensors(inner)
            if known[id(items)][1]:
                candidates[key] = known[id(items)]
    return candidates


def _choose(counts: dict[str, int], wanted: str | None, value: object, label: str) -> str:
    shown = [f"{quoted(name) if name else 'the file itself'} ({counted(n, 'tensor')})" for name, n in counts.items()]
    present = ", ".join(shown[:_NAMED]) or "none"
    if wanted is not None:
        if wanted in counts:
            return wanted
        raise RootError(f"{label}: there is no state dict {quoted(wanted)}. Present: {present}. Choose one of them")
    for name in PREFERRED if len(counts) > 1 else counts:
        if name in counts:
            return name
    if counts:
        raise RootError(f"{label}: there are several state dicts: {present}. Choose one with --root")
    raise RootError(
        f"{label}: there is no state dict in it, but {_describe(value)}. Save model.state_dict() with torch.save"
    )


def _items(value: object) -> list[Any] | None:
    """The items of a dict, or of an object filled like one, as the list that holds them; None for anything else."""
    if isinstance(value, Dict):
        return value.pairs
    if not isinstance(value, Instance):
        return None
    if value.function == _ORDERED_DICT:
        # Python 2 hands an OrderedDict its items as a list of lists, newer ones fill it afterwards
        match value.arguments:
            case (list(given),) if not value.pairs:
                return given
        return value.pairs
    return value.pairs or None


def _pairs(value: object) -> Pairs | None:
    """`_items` as pairs; an item that is not a pair is skipped."""
    items = _items(value)
    if items is None or (isinstance(value, Dict | Instance) and items is value.pairs):
        return items
    return [(item[0], item[1]) for item in items if isinstance(item, list | tuple) and len(item) == 2]


def _tensors(pairs: Sequence[tuple[object, object]]) -> int:
    return sum(isinstance(key, str) and is_tensor(item) for key, item in pairs)


def _unique(pairs: Pairs, label: str) -> Pairs:
    """`pairs`, after a check that no name is there twice."""
    seen = set()
    for key, _ in pairs:
        if isinstance(key, str):
            if key in seen:
                raise CorruptCheckpointError(
                    f"{label}: {quoted(key)} is there twice. The file is damaged or crafted; get it again."
                )
            seen.add(key)
    return pairs


def _key(key: object) -> str:
    return plain(key) if isinstance(key, str) else f"a key that is {_describe(key)}"


def _describe(value: object) -> str:
    """What a value is, in a few words; its contents are not looked at."""
    if isinstance(value, Dict) or (isinstance(value, Instance) and value.function == _ORDERED_DICT):
        return f"a dict of {counted(len(value.pairs), 'entry', 'entries')}"
    if isinstance(value, Instance):
        function = value.function if isinstance(value.function, Global) else "a computed function"
        return f"an object made by {function}"
    if isinstance(value, Global):
        return f"the name {value}"
    if isinstance(value, Persistent):
        return "a storage without a tensor"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {counted(len(value), 'entry', 'entries')}"
    return "None" if value is None else f"a value of type {type(value).__name__}"
