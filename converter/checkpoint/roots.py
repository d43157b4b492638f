"""Which state dict of a pickled checkpoint is taken, and what is not. Its name is the path to it, with dots."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias, TypeVar

from converter.checkpoint.describe import describe, describe_key, without_weights
from converter.checkpoint.index import Checkpoint, Layout, TensorInfo
from converter.checkpoint.modules import ORDERED_DICT, Pairs
from converter.checkpoint.opcodes import Global, Instance
from converter.checkpoint.source import SourceFile
from converter.checkpoint.state_dicts import StateDict, find_state_dicts, unique
from converter.checkpoint.storage import Storage
from converter.checkpoint.tensors import StorageReference, Unreadable, build_tensor, is_tensor
from converter.display import counted, file_name, listed, quoted
from converter.errors import RootError, UnsupportedCheckpointError

Item = TypeVar("Item")
# how many of the names a known format has
Knows: TypeAlias = Callable[[Collection[str]], int]

# names that trainers give to the weights, best first; "" is the dict itself
PREFERRED = (
    "model",
    "state_dict",
    "model_state_dict",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "",
    "model_ema",
)
_NAMED = 100  # at most so many skipped entries, or state dicts to choose from, are listed by name
_ASKED = 64  # state dicts, the largest ones, that are compared with known formats
_MANY = 0.1  # of the weights of the largest state dict: one with fewer is something else


def take_root(
    source: SourceFile,
    layout: Layout,
    value: object,
    wanted: str | None,
    find: Callable[[StorageReference], Storage],
    globals: Iterable[Global],
    metadata: Mapping[str, str] = MappingProxyType({}),
    knows: Knows | None = None,
) -> Checkpoint:
    """The checkpoint in `source`: the state dict `wanted` in `value`; without it, the one that is known or preferred.

    `find` gives the storage of a tensor; `knows` tells state dicts of a known format from others. Raises RootError if
    there is no state dict, or several without a reason to prefer one; CorruptCheckpointError for a tensor that
    contradicts its storage; UnsupportedCheckpointError for weights in a form that is not read.
    """
    label = file_name(source.path)
    found, adapters = find_state_dicts(value, label)
    if not found:
        raise RootError(f"{label}: {without_weights(value)}")
    chosen, prefix = _wanted(found, wanted, label) if wanted is not None else (_choose(found, knows, label), "")
    _refuse_other_forms(chosen, found, label)
    sorted_out = _SortedOut(label, find, prefix, [*chosen.aside, *chosen.beside()])
    sorted_out.add(unique(chosen.pairs, label))
    skipped = sorted_out.skipped
    if len(skipped) > _NAMED:
        skipped[_NAMED:] = [f"and {len(skipped) - _NAMED} others"]
    return Checkpoint(
        path=source.path,
        layout=layout,
        sources=(source,),
        root=".".join([*chosen.path, *([prefix.removesuffix(".")] if prefix else [])]),
        roots={candidate.name: candidate.tensors for candidate in found if candidate.tensors},
        tensors=sorted_out.tensors,
        unsupported=sorted_out.unsupported,
        objects=sorted_out.objects,
        skipped=tuple(skipped),
        globals=tuple(sorted(map(str, globals))),
        metadata=metadata,
        adapters=adapters,
    )


def named(checkpoint: Checkpoint, root: str | None) -> Checkpoint:
    """Of a checkpoint that is one state dict without a name: all, or those tensors whose names begin with `root`.

    Raises RootError if there are none.
    """
    if not root:
        return checkpoint
    prefix = f"{root}."

    def inside(items: Mapping[str, Item]) -> dict[str, Item]:
        return {name.removeprefix(prefix): item for name, item in items.items() if name.startswith(prefix)}

    tensors, unsupported = inside(checkpoint.tensors), inside(checkpoint.unsupported)
    if not tensors and not unsupported:
        raise RootError(
            f"{file_name(checkpoint.path)}: holds one state dict, without a name, and no name in it begins with "
            f"{quoted(prefix)}. Leave out --root"
        )
    others = len(checkpoint.tensors) - len(tensors)
    said = (f"{counted(others, 'tensor')} whose names do not begin with {quoted(prefix)}",) if others else ()
    return replace(
        checkpoint,
        root=root,
        tensors={name: replace(tensor, name=name) for name, tensor in tensors.items()},
        unsupported=unsupported,
        objects=inside(checkpoint.objects),
        skipped=(*said, *checkpoint.skipped),
    )


@dataclass(slots=True)
class _SortedOut:
    """The entries of a state dict whose names begin with `prefix`, which is taken off, by what they are."""

    label: str
    find: Callable[[StorageReference], Storage]
    prefix: str
    skipped: list[str]
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)

    def add(self, pairs: Pairs) -> None:
        outside = 0
        for key, item in pairs:
            if not isinstance(key, str):
                if is_tensor(item):
                    raise UnsupportedCheckpointError(
                        f"{self.label}: a tensor in the state dict has {describe_key(key)} for its name. Save it by a "
                        "name."
                    )
                self.skipped.append(f"{describe_key(key)}: not named by a string ({describe(item)})")
            elif not key.startswith(self.prefix):
                outside += is_tensor(item)
            elif is_tensor(item):
                self._add_tensor(key.removeprefix(self.prefix), item)
            elif isinstance(item, list | tuple) or (isinstance(item, Instance) and item.function != ORDERED_DICT):
                made = f"{describe(item)}" + ("; it was not executed" if isinstance(item, Instance) else "")
                said = f"{quoted(key)} is not a tensor, but {made}. Save a plain tensor"
                self.objects[key.removeprefix(self.prefix)] = said
            else:
                self.skipped.append(f"{describe_key(key)}: {describe(item)}")
        if outside:
            found = f"{counted(outside, 'tensor')} whose names do not begin with {quoted(self.prefix)}"
            self.skipped.insert(0, found)

    def _add_tensor(self, name: str, item: object) -> None:
        try:
            self.tensors[name] = build_tensor(name, item, self.label, self.find)
        except Unreadable as error:
            self.unsupported[name] = f"tensor {quoted(name)}: {error}"


def _refuse_other_forms(chosen: StateDict, found: Sequence[StateDict], label: str) -> None:
    """Refuse weights that are there, but not as tensors by their own names."""
    names = chosen.names()
    if not chosen.tensors:
        raise RootError(
            f"{label}: holds {counted(chosen.arrays, 'numpy array')} by name, and no tensors. Load it where you trust "
            "it, and save {name: torch.from_numpy(array)} with torch.save"
        )
    if any(name.rpartition(".")[2] in ("_flat_param", "flat_param") for name in names):
        raise UnsupportedCheckpointError(
            f"{label}: holds parameters that FullyShardedDataParallel has flattened and cut in parts. Load it in the "
            "run that made it, and save the full state dict (torch.distributed.checkpoint.state_dict)."
        )
    has_layers = any(".base_layer." in name for name in names) and not any(".lora_" in name for name in names)
    if has_layers and any(".lora_" in name for other in found if other is not chosen for name in other.names()):
        raise UnsupportedCheckpointError(
            f"{label}: holds an adapter (LoRA) apart from the layers that it is for. Load it with PEFT, call "
            "merge_and_unload(), and save the state dict."
        )


def _choose(found: Sequence[StateDict], knows: Knows | None, label: str) -> StateDict:
    """The one of which a known format knows most; of several that are close, the one whose name is preferred."""
    candidates = [candidate for candidate in found if candidate.is_weights]
    if not candidates:
        raise RootError(
            f"{label}: there is no state dict in it but those of an optimizer, by their names: {_present(found)}. Give "
            "the checkpoint of the model; if one is that, choose it with --root"
        )
    largest = sorted(candidates, key=lambda candidate: -candidate.size)
    known = [(knows(c.names()), c) for c in largest[:_ASKED]] if knows and len(candidates) > 1 else []
    if most := max((count for count, _ in known), default=0):
        close = {id(candidate) for count, candidate in known if 2 * count >= most}
        fitting = [candidate for candidate in candidates if id(candidate) in close]
    else:
        # the file itself, if it is no state dict, may hold a loss or two
        fitting = [c for c in candidates if c.size >= (_MANY if c.path else 1) * largest[0].size]
    chosen = _preferred(fitting)
    if chosen is None:
        raise RootError(f"{label}: there are several state dicts: {_present(fitting)}. Choose one with --root")
    for other in candidates:
        if other not in fitting and 2 * other.size >= chosen.size and _preferred([chosen, other]) is other:
            raise RootError(
                f"{label}: {_present([other])} has the better name, but is in no known format; {_present([chosen])} is "
                "in one. Choose one with --root"
            )
    return chosen


def _preferred(candidates: Sequence[StateDict], depth: int = 0) -> StateDict | None:
    """The one that its name prefers to all others where their paths part; None if no name does."""
    if len(candidates) == 1:
        return candidates[0]
    at: dict[str, list[StateDict]] = {}
    for candidate in candidates:
        at.setdefault(candidate.path[depth] if len(candidate.path) > depth else "", []).append(candidate)
    best = min(at, key=lambda key: PREFERRED.index(key) if key in PREFERRED else len(PREFERRED))
    if len(at) == 1:
        return _preferred(at[best], depth + 1)
    if best not in PREFERRED:
        return None
    chosen = _preferred(at[best], depth + 1)
    return chosen if chosen and all(key in PREFERRED for key in chosen.path[depth:]) else None


def _wanted(found: Sequence[StateDict], wanted: str, label: str) -> tuple[StateDict, str]:
    """The state dict of that name; or one that holds names which begin so, and the prefix."""
    for candidate in found:
        if wanted == candidate.name or wanted in candidate.others:
            return candidate, ""
    starts: dict[int, str] = {}
    holding = []
    for candidate in found:
        prefix = f"{wanted}." if wanted else ""
        inside = prefix.removeprefix(f"{candidate.name}.") if candidate.name else prefix
        for start in (inside, prefix):
            if start and any(name.startswith(start) for name in candidate.names()):
                starts[id(candidate)] = start
                holding.append(candidate)
                break
    if not holding:
        raise RootError(
            f"{label}: there is no state dict {quoted(wanted)}. Present: {_present(found)}. Choose one of them"
        )
    if (chosen := _preferred(holding)) is None:
        raise RootError(
            f"{label}: names that begin with {quoted(wanted)} are in several state dicts: {_present(holding)}. Choose "
            "one with --root"
        )
    return chosen, starts[id(chosen)]


def _present(candidates: Sequence[StateDict]) -> str:
    shown = [f"{quoted(c.name) if c.name else 'the file itself'} ({counted(c.size, 'tensor')})" for c in candidates]
    return listed(shown, _NAMED)
