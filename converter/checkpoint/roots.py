"""Which state dict of a pickled checkpoint is taken, and what is not.

A root is any dict, or pickled module, that holds tensors by name, at any depth; its name is the path to it, with dots.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

from converter.checkpoint.adapters import AdapterSettings, adapter_settings
from converter.checkpoint.index import Checkpoint, Layout, TensorInfo
from converter.checkpoint.modules import (
    ORDERED_DICT,
    Budget,
    Pairs,
    attributes_of,
    is_module,
    items_of,
    module_state_dict,
    pairs_of,
)
from converter.checkpoint.opcodes import Dict, Global, Instance, Persistent
from converter.checkpoint.source import SourceFile
from converter.checkpoint.storage import Storage
from converter.checkpoint.tensors import StorageReference, Unreadable, build_tensor, is_tensor
from converter.display import counted, file_name, plain, quoted
from converter.errors import CorruptCheckpointError, RootError

# the share of names that a known format has
Knows: TypeAlias = Callable[[Collection[str]], float]

# names that trainers give to the weights, best first; "" is the file itself
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
# keys of what trainers keep for each weight under its own name and in its own shape
_NO_WEIGHTS = re.compile(r"optim(?!al)|exp_avg|momentum_buffer|(?:^|_)grads?(?:$|_)|gradient", re.IGNORECASE)
_NAMED = 100  # at most so many skipped entries, or state dicts to choose from, are listed by name
_DEEPEST = 32  # dicts in dicts
_LONGEST_KEY = 200  # of a dict on the way to a root
_ASKED = 64  # state dicts, the largest ones, that are compared with known formats
_MANY = 0.1  # of the tensors of the largest state dict: one with fewer is something else


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A state dict at `path`. `trail` are the dicts on the way to it, `aside` sentences on what it is not.

    `others`: names under which the same dict lies elsewhere.
    """

    path: tuple[str, ...]
    trail: tuple[Pairs, ...]
    pairs: Pairs
    tensors: int
    aside: tuple[str, ...]
    others: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def rank(self) -> tuple[int, ...]:
        """The lower, the more its path says that it is the weights; `len(PREFERRED)` for a key that says nothing."""
        return tuple(PREFERRED.index(key) if key in PREFERRED else len(PREFERRED) for key in self.path or ("",))

    @property
    def is_weights(self) -> bool:
        """Whether no key on its path says that it is something else."""
        return not any(map(_NO_WEIGHTS.search, self.path))

    def names(self) -> list[str]:
        """Names of the tensors."""
        return [key for key, item in self.pairs if isinstance(key, str) and is_tensor(item)]

    def beside(self) -> list[str]:
        """What lies beside it and beside the dicts that it is in."""
        return [
            f"{_key('.'.join([*self.path[:depth], key]) if isinstance(key, str) else key)}: {_describe(item)}"
            for depth, pairs in enumerate(self.trail)
            for key, item in pairs
            if key != self.path[depth]
        ]


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
    contradicts its storage; UnsupportedCheckpointError for modules beyond what a model can be.
    """
    label = file_name(source.path)
    candidates, adapters = _candidates(value, label)
    if not candidates:
        raise RootError(f"{label}: {_without_weights(value)}")
    chosen, prefix = (
        _wanted(candidates, wanted, label) if wanted is not None else (_choose(candidates, knows, label), "")
    )
    sorted_out = _SortedOut(label, find, prefix, [*chosen.aside, *chosen.beside()])
    sorted_out.add(_unique(chosen.pairs, label))
    skipped = sorted_out.skipped
    if len(skipped) > _NAMED:
        skipped[_NAMED:] = [f"and {len(skipped) - _NAMED} others"]
    return Checkpoint(
        path=source.path,
        layout=layout,
        sources=(source,),
        root=".".join([*chosen.path, *([prefix.removesuffix(".")] if prefix else [])]),
        roots={candidate.name: candidate.tensors for candidate in candidates},
        tensors=sorted_out.tensors,
        unsupported=sorted_out.unsupported,
        objects=sorted_out.objects,
        skipped=tuple(skipped),
        globals=tuple(sorted(map(str, globals))),
        metadata=metadata,
        adapters=tuple(adapters),
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
                self.skipped.append(f"{_key(key)}: not named by a string ({_describe(item)})")
            elif not key.startswith(self.prefix):
                outside += is_tensor(item)
            elif is_tensor(item):
                self._add_tensor(key.removeprefix(self.prefix), item)
            elif isinstance(item, Instance) and item.function != ORDERED_DICT:
                made = f"{_describe(item)}; it was not executed"
                objects = f"{quoted(key)} is not a tensor, but {made}. Save a plain tensor"
                self.objects[key.removeprefix(self.prefix)] = objects
            else:
                self.skipped.append(f"{_key(key)}: {_describe(item)}")
        if outside:
            found = f"{counted(outside, 'tensor')} whose names do not begin with {quoted(self.prefix)}"
            self.skipped.insert(0, found)

    def _add_tensor(self, name: str, item: object) -> None:
        try:
            self.tensors[name] = build_tensor(name, item, self.label, self.find)
        except Unreadable as error:
            self.unsupported[name] = f"tensor {quoted(name)}: {error}"


def named(checkpoint: Checkpoint, root: str | None) -> Checkpoint:
    """Of a checkpoint that is one state dict without a name: all, or those tensors whose names begin with `root`.

    Raises RootError if there are none.
    """
    if not root:
        return checkpoint
    prefix = f"{root}."
    if not any(name.startswith(prefix) for name in checkpoint.tensors):
        raise RootError(
            f"{file_name(checkpoint.path)}: holds one state dict, without a name, and no name in it begins with "
            f"{quoted(prefix)}. Leave out --root"
        )
    tensors = {
        name.removeprefix(prefix): replace(tensor, name=name.removeprefix(prefix))
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    }
    others = len(checkpoint.tensors) - len(tensors)
    said = (f"{counted(others, 'tensor')} whose names do not begin with {quoted(prefix)}",) if others else ()
    return replace(checkpoint, root=root, tensors=tensors, skipped=(*said, *checkpoint.skipped))


def _candidates(value: object, label: str) -> tuple[list[_Candidate], dict[AdapterSettings, None]]:
    """Everything in the file that holds tensors by name, from the outside to the inside; and settings of adapters."""
    found: list[_Candidate] = []
    adapters: dict[AdapterSettings, None] = {}
    # by identity: thousands of names may refer to one and the same dict, and thousands of dicts to one list of items
    seen: dict[int, _Candidate | None] = {}
    budget = Budget()
    waiting: deque[tuple[tuple[str, ...], tuple[Pairs, ...], object]] = deque([((), (), value)])
    while waiting:
        path, trail, item = waiting.popleft()
        items = items_of(item)
        identity = id(item if items is None else items)
        if identity in seen:
            if (known := seen[identity]) is not None and len(known.others) < _NAMED:
                known.others.append(".".join(path))
            continue
        seen[identity] = None
        aside: tuple[str, ...] = ()
        if is_tensor(item):  # alone in the file; what it is said to carry is no state dict
            continue
        if isinstance(item, Instance) and is_module(item):
            read = module_state_dict(item, label, budget)
            pairs, aside = read.pairs, read.aside
            adapters |= dict.fromkeys(read.adapters)
        else:
            pairs = attributes_of(item) if items is None else pairs_of(item) or []
            if settings := adapter_settings(pairs):
                adapters[settings] = None
        if count := sum(isinstance(key, str) and is_tensor(tensor) for key, tensor in pairs):
            candidate = seen[identity] = _Candidate(path, trail, pairs, count, aside)
            found.append(candidate)
        if aside or len(path) == _DEEPEST:
            continue
        for key, below in _unique(pairs, label):
            is_short = isinstance(key, str) and 0 < len(key) <= _LONGEST_KEY
            if is_short and isinstance(below, Dict | Instance) and not is_tensor(below):
                waiting.append(((*path, str(key)), (*trail, pairs), below))
    if len({candidate.name for candidate in found}) < len(found):
        raise RootError(f"{label}: two state dicts in it have the same path. Save one of them alone.")
    return found, adapters


def _choose(found: Sequence[_Candidate], knows: Knows | None, label: str) -> _Candidate:
    """The one that a known format fits best, by far; of several, the one with the name that is preferred."""
    candidates = [candidate for candidate in found if candidate.is_weights]
    if not candidates:
        raise RootError(
            f"{label}: there is no state dict in it but those of an optimizer, by their names: {_present(found)}. Give "
            "the checkpoint of the model; if one is that, choose it with --root"
        )
    if len(candidates) == 1:
        return candidates[0]
    largest = sorted(candidates, key=lambda candidate: -candidate.tensors)
    shares = {c.name: knows(c.names()) for c in largest[:_ASKED]} if knows else {}
    if best := max(shares.values(), default=0.0):
        fitting = [c for c in candidates if shares.get(c.name, 0.0) >= best / 2]
    else:
        # the file itself, if it is no state dict, may hold a loss or two
        fitting = [c for c in candidates if c.tensors >= (_MANY if c.path else 1) * largest[0].tensors]
    fitting.sort(key=lambda candidate: candidate.rank)
    named = min(fitting[0].rank) < len(PREFERRED)
    if len(fitting) == 1 or (named and fitting[0].rank < fitting[1].rank):
        return fitting[0]
    raise RootError(f"{label}: there are several state dicts: {_present(fitting)}. Choose one with --root")


def _wanted(candidates: Sequence[_Candidate], wanted: str, label: str) -> tuple[_Candidate, str]:
    """The state dict of that name; or one that holds names which begin so, and the prefix."""
    for candidate in candidates:
        if wanted == candidate.name or wanted in candidate.others:
            return candidate, ""
    found = []
    for candidate in candidates:
        prefix = f"{wanted}." if wanted else ""
        inside = prefix.removeprefix(f"{candidate.name}.") if candidate.name else prefix
        for start in dict.fromkeys((inside, prefix)):
            if start and any(name.startswith(start) for name in candidate.names()):
                found.append((candidate, start))
    found.sort(key=lambda item: item[0].rank)
    if len(found) == 1 or (found and found[0][0].rank < found[1][0].rank):
        return found[0]
    if found:
        raise RootError(
            f"{label}: names that begin with {quoted(wanted)} are in several state dicts: "
            f"{_present([candidate for candidate, _ in found])}. Choose one with --root"
        )
    raise RootError(
        f"{label}: there is no state dict {quoted(wanted)}. Present: {_present(candidates)}. Choose one of them"
    )


def _present(candidates: Sequence[_Candidate]) -> str:
    shown = [f"{quoted(c.name) if c.name else 'the file itself'} ({counted(c.tensors, 'tensor')})" for c in candidates]
    return ", ".join(shown[:_NAMED]) + (f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else "")


def _without_weights(value: object) -> str:
    """What a file is in which no tensor has a name, and what to do."""
    save = "Save model.state_dict() with torch.save"
    if is_tensor(value):
        return f"holds a tensor alone, without a name. {save}"
    if isinstance(value, list | tuple):
        within = [
            i for i, item in enumerate(value[:_NAMED]) if any(is_tensor(below) for _, below in pairs_of(item) or ())
        ]
        hint = f"; entry {within[0]} holds tensors by name: save that alone" if within else ""
        return f"there is no state dict in it, but {_describe(value)}{hint}. {save}"
    if _is_optimizer(value) or any(_is_optimizer(item) for _, item in pairs_of(value) or ()):
        return f"holds the state of an optimizer and no weights. Give the checkpoint of the model. {save}"
    return f"there is no state dict in it, but {_describe(value)}. {save}"


def _is_optimizer(value: object) -> bool:
    """Whether it has the keys of the state of a torch.optim.Optimizer."""
    return {"state", "param_groups"} <= {key for key, _ in pairs_of(value) or () if isinstance(key, str)}


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
    if is_tensor(value):
        return "a tensor"
    if isinstance(value, Dict) or (isinstance(value, Instance) and value.function == ORDERED_DICT):
        return f"a dict of {counted(len(value.pairs), 'entry', 'entries')}"
    if isinstance(value, Instance):
        function = value.function if isinstance(value.function, Global) else "a computed function"
        is_private = isinstance(function, Global) and function.module.startswith("torch") and function.name[0:1] == "_"
        return "an object of torch" if is_private else f"an object made by {function}"
    if isinstance(value, Global):
        return f"the name {value}"
    if isinstance(value, Persistent):
        return "a storage without a tensor"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {counted(len(value), 'entry', 'entries')}"
    return "None" if value is None else f"a value of type {type(value).__name__}"
