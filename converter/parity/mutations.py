"""Mutations: changes to a model as a wrong plan or re-implementation would make them, each undone afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from converter.mapping.load import load_table
from converter.mapping.ops import apply_ops, invert_ops
from converter.mapping.spec import Config
from converter.mapping.transfers import transfers
from converter.parity.family import Subject

EPSILONS = (1e-5, 1e-6, 1e-12)


@contextmanager
def patched(target: Any, name: str, value: object) -> Iterator[None]:
    """`target.name` is `value` meanwhile."""
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One fault. `targets`: the tensors or module it touches; none, if it is of code that many modules share."""

    kind: str
    name: str
    make: Callable[[Any], AbstractContextManager[None]]
    targets: tuple[str, ...] = ()
    detections: bool = False
    invisible: str | None = None


def mutations(subject: Subject, table: str | None = None) -> list[Mutation]:
    """All mutations of a model: every known mistake, another epsilon for every norm, and for every tensor the faults of
    a wrong plan or table. `table`: the one whose rules may be wrong, by default the family's."""
    model = subject.model
    found = [
        Mutation("mistake", m.name, m.make, detections=m.detections, invisible=m.invisible)
        for m in subject.family.mistakes(model)
    ]
    for path, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            other = next(epsilon for epsilon in EPSILONS if epsilon != module.eps)
            name = f"{path}: epsilon {other:g}, not {module.eps:g}"
            found.append(Mutation("epsilon", name, partial(_attribute, path, "eps", other), (path,)))
    parameters = dict(model.named_parameters())
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(tuple(parameter.shape), []).append(name)
    for names in groups.values():
        # each is in one pair, an odd one out in a second
        pairs = [*zip(names[::2], names[1::2], strict=False)]
        if len(names) % 2 and len(names) > 1:
            pairs.append((names[-1], names[0]))
        for pair in pairs:
            found.append(Mutation("swap", " <-> ".join(pair), partial(_replaced, pair, _exchange), pair))
    heads = subject.family.heads(model)
    for name, parameter in parameters.items():
        found += _of_tensor(name, parameter, heads.get(name, 0))
    found += _of_sources(subject.config, table or subject.family.table)
    return found


def _of_tensor(name: str, parameter: Tensor, heads: int) -> Iterator[Mutation]:
    def one(kind: str, change: Callable[[Tensor], Tensor]) -> Mutation:
        return Mutation(kind, name, partial(_replaced, (name,), lambda values: [change(values[0])]), (name,))

    yield one("negate", torch.neg)
    yield one("drop", torch.zeros_like)
    if len(parameter) > 1:
        yield one("off by one", lambda x: x.roll(1, 0))
    if parameter.dim() == 2 and parameter.shape[0] == parameter.shape[1] > 1:
        yield one("transpose", lambda x: x.T)
    if heads:
        yield one("permute heads", lambda x: x.roll(len(x) // heads, 0))


def _of_sources(config: Config, table: str) -> Iterator[Mutation]:
    """Where a rule joins several tensors of one shape: each with its neighbour exchanged."""
    loaded = load_table(table)
    for transfer in transfers(loaded, loaded.bind(config), config)[0]:
        back = invert_ops(transfer.ops)
        for first in range(len(transfer.sources) - 1):
            (name, shape), (other, other_shape) = transfer.sources[first : first + 2]
            if shape != other_shape:
                continue

            def change(
                values: Sequence[Tensor], back: Any = back, ops: Any = transfer.ops, first: int = first
            ) -> list[Tensor]:
                parts = apply_ops(back, [value.double().numpy() for value in values])  # numpy has no bfloat16
                parts[first], parts[first + 1] = parts[first + 1], parts[first]
                return [torch.from_numpy(array) for array in apply_ops(ops, parts)]

            targets = tuple(name for name, _ in transfer.targets)
            yield Mutation("swap sources", f"{name} <-> {other}", partial(_replaced, targets, change), targets)


def _attribute(path: str, name: str, value: object, model: nn.Module) -> AbstractContextManager[None]:
    return patched(model.get_submodule(path), name, value)


@contextmanager
def _replaced(
    names: Sequence[str], change: Callable[[Sequence[Tensor]], list[Tensor]], model: nn.Module
) -> Iterator[None]:
    """The named parameters hold what `change` makes of their values."""
    parameters = [model.get_parameter(name) for name in names]
    before = [parameter.detach().cpu().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, value in zip(parameters, change(before), strict=True):
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def _exchange(values: Sequence[Tensor]) -> list[Tensor]:
    return [values[1], values[0]]


def choose(all_of_them: Sequence[Mutation], count: int, seed: int = 0) -> list[Mutation]:
    """`count` mutations, the same every time: all mistakes, and of the other kinds equally many."""
    chosen = [m for m in all_of_them if m.kind == "mistake"][:count]
    others: dict[str, list[Mutation]] = {}
    for mutation in all_of_them:
        if mutation.kind != "mistake":
            others.setdefault(mutation.kind, []).append(mutation)
    generator = random.Random(seed)
    for of_kind in others.values():
        generator.shuffle(of_kind)
    while len(chosen) < count and any(others.values()):
        for of_kind in others.values():
            if of_kind and len(chosen) < count:
                chosen.append(of_kind.pop())
    return chosen
