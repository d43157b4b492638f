"""What the order of a file says where names say nothing: `norm2` stands behind the attention whose norm it is.

A state dict is in the order in which its code defines modules, and a target often calls a norm after what comes before
it: `self_attn`, then `self_attn_layer_norm`. It is a guess, so it decides which of several doubtful pairs is proposed,
and never that one is sure. Where a file is sorted or mixed its order says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import numpy as np

from converter.mapping.draft.names import Named, Unit, take_apart
from converter.mapping.draft.words import Matrix


class Order:
    """What stands before each module of the source, and what that became in the target, in an earlier round."""

    def __init__(self, sources: Sequence[Named]) -> None:
        names = [tensor.name for tensor in sources]
        self._before = {} if names == sorted(names) else _neighbours(names)
        self._became: dict[str, list[str]] = {}

    def after(self, pairs: Iterable[tuple[Unit, Unit]]) -> Order:
        """The same order, and these matches of a round."""
        other = Order(())
        other._before = self._before
        for source, target in pairs if self._before else ():
            for index, params in source.members.items():
                for parameter, tensor in params.items():
                    path = target.members[index][parameter].name.split(".")
                    for module in _modules(tensor.name):
                        known = other._became.get(module, path)
                        same = (a for a, b in zip_longest(known, path) if a == b and a is not None)
                        other._became[module] = list(same) if known is not path else path
        return other

    def matrix(self, sources: Sequence[Unit], targets: Sequence[Unit]) -> Matrix:
        """(len(sources), len(targets)): 0 to 1, how much of a target is called as what is before a source."""
        before = [self._became.get(self._before.get(_module(unit), ""), [""])[-1:] for unit in sources]
        own = [_module(target).rpartition(".")[2] for target in targets]
        hints = np.zeros((len(sources), len(targets)))
        for row, names in enumerate(before):
            for name in filter(None, names):
                hints[row] = [len(name) / len(other) if other.startswith(f"{name}_") else 0 for other in own]
        return hints


def _module(unit: Unit) -> str:
    name = min(unit.names)
    return name.removesuffix(take_apart(name)[2]).rstrip("._")


def _modules(name: str) -> list[str]:
    """`a.b.c` is in `a` and `a.b`."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _neighbours(names: Iterable[str]) -> dict[str, str]:
    """Module -> the one before it in the same module; empty if the tensors of some module do not stand together."""
    before: dict[str, str] = {}
    last: dict[str, str] = {}  # parent -> its module that was seen last
    for name in names:
        parent = ""
        for module in _modules(name):
            previous = last.get(parent)
            if previous != module:
                if module in before:
                    return {}
                before[module] = previous or ""
                last[parent] = module
            parent = module
    return before
