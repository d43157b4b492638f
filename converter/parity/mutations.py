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
from converter.mapping.transfers import transfers
from converter.parity.subject import Subject

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
    parameters = subject.parameters
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(tuple(parameter.shape), []).append(name)
    for names in groups.values():
        # each is in one pair, an odd one out in a second
        pairs = [*zip(names[::2], names[1::2], strict=False)]
        if len(names) % 2 and len(names) > 1:
            pairs.append((names[-1], names[0]))
        for pair in pairs:
            found.append(Mutation("swap", " <-> ".join(pair), partial(_replaced, subject, pair, _exchange), pair))
    heads = subject.family.heads(model)
    for name, parameter in parameters.items():
        joined = parameters.get(name.removesuffix(".bias") + ".weight", parameter)
        found += _of_tensor(subject, name, parameter, heads.get(name, 0), joined)
    found += _of_sources(subject, table or subject.family.table)
    return found


def _of_tensor(subject: Subject, name: str, parameter: Tensor, heads: int, weight: Tensor) -> Iterator[Mutation]:
    """`heads`: blocks of its rows, 0 if they are not divided; `weight`: that of its layer, itself if it has none."""

    if not parameter.numel():
        return

    def one(kind: str, change: Callable[[Tensor], Tensor], where: str = "") -> Mutation:
        make = partial(_replaced, subject, (name,), lambda values: [change(values[0])])
        return Mutation(kind, name + where, make, (name,))

    yield one("negate", torch.neg)
    yield one("drop", torch.zeros_like)
    place = random.Random(name).randrange(parameter.numel())
    yield one("element", partial(_one_element, place), f" [{place}]")
    if parameter.dim() == 2 and parameter.shape[0] == parameter.shape[1] > 1:
        yield one("transpose", lambda x: x.T)
    for axis, length in enumerate(parameter.shape):
        where = f", axis {axis}"
        if length > 1:
            yield one("roll", partial(torch.roll, shifts=1, dims=axis), where)
        if length > 3:  # of less, it is a roll
            yield one("halves", partial(_blocks_exchanged, axis, 2, 0), where)
        if axis > 1 and parameter.dim() == 4 and length > 1:
            yield one("flip", partial(torch.flip, dims=(axis,)), where)
            for index in range(length):
                yield one("zero slice", partial(_slice_zeroed, axis, index), f"{where}, {index}")
    if heads > 1:
        yield one("exchange heads", partial(_blocks_exchanged, 0, heads, random.Random(name).randrange(heads - 1)))
    if weight.dim() == 2 and weight.shape[0] == 3 * weight.shape[1]:  # query, key and value in one
        yield one("q/k/v order", partial(_blocks_exchanged, 0, 3, 0), ": query <-> key")
        yield one("q/k/v order", partial(_blocks_exchanged, 0, 3, 1), ": key <-> value")


def _one_element(place: int, x: Tensor) -> Tensor:
    """One element is larger by the RMS of all."""
    flat = x.flatten().clone()
    flat[place] += float(x.double().square().mean().sqrt()) or 1.0
    return flat.view(x.shape)


def _blocks_exchanged(axis: int, blocks: int, first: int, x: Tensor) -> Tensor:
    """Of so many blocks of an axis, `first` and the next one in each other's place; what is left over stays."""
    size = x.shape[axis] // blocks
    index = torch.arange(x.shape[axis])
    begin = first * size
    index[begin : begin + 2 * size] = index[begin : begin + 2 * size].roll(size)
    return x.index_select(axis, index)


def _slice_zeroed(axis: int, index: int, x: Tensor) -> Tensor:
    changed = x.clone()
    changed.select(axis, index).zero_()
    return changed


def _of_sources(subject: Subject, table: str) -> Iterator[Mutation]:
    """Where a rule joins several tensors of one shape: each with its neighbour exchanged."""
    loaded = load_table(table)
    for transfer in transfers(loaded, loaded.bind(subject.config), subject.config)[0]:
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
            yield Mutation("swap sources", f"{name} <-> {other}", partial(_replaced, subject, targets, change), targets)


def _attribute(path: str, name: str, value: object, model: nn.Module) -> AbstractContextManager[None]:
    return patched(model.get_submodule(path), name, value)


@contextmanager
def _replaced(
    subject: Subject, names: Sequence[str], change: Callable[[Sequence[Tensor]], list[Tensor]], model: nn.Module
) -> Iterator[None]:
    """The parameters of these names in the spec hold what `change` makes of their values."""
    named = subject.family.parameters(model)
    parameters = [named[name] for name in names]
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
    """`count` mutations, the same every time: all mistakes, if these are not more than half, and of the other kinds
    equally many."""
    chosen = [m for m in all_of_them if m.kind == "mistake"][: -(-count // 2)]
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
