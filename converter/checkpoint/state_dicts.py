"""State dicts in a pickle: every dict or pickled module that holds tensors by name, at any depth."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from converter.checkpoint.adapters import AdapterSettings, adapter_settings
from converter.checkpoint.describe import describe, describe_key, is_array, is_optimizer
from converter.checkpoint.index import refuse_long_name
from converter.checkpoint.modules import (
    Budget,
    Pairs,
    attributes_of,
    is_module,
    module_state_dict,
    pairs_of,
)
from converter.checkpoint.opcodes import Dict, Instance
from converter.checkpoint.tensors import is_tensor
from converter.display import quoted
from converter.errors import RootError, damaged

# keys of what trainers keep for each weight under its own name and in its own shape
_NO_WEIGHTS = re.compile(
    r"(?:^|_)(?:optim(?:izer)?s?|(?:max_)?exp_avg(?:_sq)?|momentum(?:_buffer)?|fisher|grads?|gradients?)"
    r"(?:$|_state|_buffer|_ema)",
    re.IGNORECASE,
)
_DEEPEST = 32  # dicts in dicts
_LONGEST_KEY = 200  # of a dict on the way to a state dict; mappings/schema.json has it for what is written
_OTHERS = 100  # other names of one dict that are kept
_ARGUMENTS = 8  # of a call that are looked at


@dataclass(frozen=True, slots=True, eq=False)
class StateDict:
    """A state dict at `path`. `trail` are the dicts on the way to it, `aside` sentences on what it is not.

    `tensors`, `arrays`: how many it has by name. `others`: names under which the same dict lies elsewhere.
    """

    path: tuple[str, ...]
    trail: tuple[Pairs, ...]
    pairs: Pairs
    tensors: int
    arrays: int
    aside: tuple[str, ...]
    others: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The path with dots; "" for the file itself."""
        return ".".join(self.path)

    @property
    def size(self) -> int:
        """How many weights it has, whether they are tensors or not."""
        return self.tensors + self.arrays

    @property
    def is_weights(self) -> bool:
        """Whether no key on its path says that it is something else."""
        return not any(map(_NO_WEIGHTS.search, self.path))

    def names(self) -> list[str]:
        """Names of the weights."""
        return [key for key, item in self.pairs if isinstance(key, str) and (is_tensor(item) or is_array(item))]

    def beside(self) -> list[str]:
        """What lies beside it and beside the dicts that it is in."""
        return [
            f"{describe_key('.'.join([*self.path[:depth], key]) if isinstance(key, str) else key)}: {describe(item)}"
            for depth, pairs in enumerate(self.trail)
            for key, item in pairs
            if key != self.path[depth]
        ]


def find_state_dicts(value: object, label: str) -> tuple[list[StateDict], tuple[AdapterSettings, ...]]:
    """Everything in a file that holds tensors or arrays by name, from the outside in; and what it says of adapters.

    `label` begins messages. Raises RootError for two of the same path, UnsupportedCheckpointError for modules beyond
    what a model can be.
    """
    finder = _Finder(label)
    finder.find(value)
    if len({found.name for found in finder.found}) < len(finder.found):
        raise RootError(f"{label}: two state dicts in it have the same path. Save one of them alone.")
    return finder.found, tuple(finder.adapters)


@dataclass(slots=True)
class _Finder:
    label: str
    found: list[StateDict] = field(default_factory=list)
    adapters: dict[AdapterSettings, None] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    # by identity: thousands of names may refer to one and the same dict
    seen: dict[int, StateDict | None] = field(default_factory=dict)

    def find(self, value: object) -> None:
        waiting: deque[tuple[tuple[str, ...], tuple[Pairs, ...], object]] = deque([((), (), value)])
        while waiting:
            path, trail, item = waiting.popleft()
            if is_tensor(item):  # what it is said to carry is no state dict
                continue
            pairs = pairs_of(item)
            attributes = attributes_of(item) if pairs is None else []
            identity = id(pairs) if pairs is not None else id(attributes or item)
            if identity in self.seen:
                if (known := self.seen[identity]) is not None and len(known.others) < _OTHERS:
                    known.others.append(".".join(path))
                continue
            self.seen[identity] = None
            if isinstance(item, Instance) and is_module(item):
                self._add_module(path, trail, item, identity)
                continue
            pairs = attributes if pairs is None else pairs
            if settings := adapter_settings(pairs, path):
                self.adapters[settings] = None
            self._add(path, trail, pairs, (), identity)
            if is_optimizer(item) or len(path) == _DEEPEST:
                continue
            if isinstance(item, Instance) and isinstance(item.arguments, tuple) and not pairs:
                # torch.compile pickles a call with the module that it was given
                waiting += ((path, trail, argument) for argument in item.arguments[:_ARGUMENTS] if is_module(argument))
            for key, below in unique(pairs, self.label):
                is_short = isinstance(key, str) and 0 < len(key) <= _LONGEST_KEY
                if is_short and isinstance(below, Dict | Instance):
                    waiting.append(((*path, str(key)), (*trail, pairs), below))

    def _add_module(self, path: tuple[str, ...], trail: tuple[Pairs, ...], module: Instance, identity: int) -> None:
        read = module_state_dict(module, self.label, self.budget)
        self.adapters |= dict.fromkeys(read.adapters)
        self._add(path, trail, read.pairs, read.aside, identity)

    def _add(
        self, path: tuple[str, ...], trail: tuple[Pairs, ...], pairs: Pairs, aside: tuple[str, ...], identity: int
    ) -> None:
        named = [(key, item) for key, item in pairs if isinstance(key, str)]
        weights = [(key, is_tensor(item)) for key, item in named if is_tensor(item) or is_array(item)]
        for key, _ in weights:
            refuse_long_name(key, self.label)
        tensors = sum(is_one for _, is_one in weights)
        arrays = len(weights) - tensors
        if tensors or arrays:
            found = self.seen[identity] = StateDict(path, trail, pairs, tensors, arrays, aside)
            self.found.append(found)


def unique(pairs: Pairs, label: str) -> Pairs:
    """`pairs`, after a check that no name is there twice."""
    seen = set()
    for key, _ in pairs:
        if isinstance(key, str):
            if key in seen:
                raise damaged(label, f"{quoted(key)} is there twice")
            seen.add(key)
    return pairs
