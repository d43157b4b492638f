"""The closed set of operations between source and target tensors.

An op is a value that knows the shapes it makes (`shapes`), how to make them (`apply`) and the op that undoes it
(`inverse`). It carries everything that its inverse needs (concat its sizes, reshape both shapes), so that a table
reads backwards without any checkpoint at hand. Ops work on lists of tensors: concat and split are each other's
inverse. They only move elements, and that is proved, not believed: see `prove_bijective`. Changing the dtype is the
one exception; it lives in `cast.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

from converter.checkpoint.arrays import np
from converter.errors import TableError

if TYPE_CHECKING:
    import numpy.typing as npt

Shape: TypeAlias = tuple[int, ...]
Array: TypeAlias = "npt.NDArray[Any]"
_T = TypeVar("_T")

# elements of the tensors of one rule: five times BERT's word embedding, 2 GB while it is proved
LARGEST_PROOF = 1 << 27


class Op(Protocol):
    """An operation with an inverse. `shapes` raises TableError where the op does not fit."""

    @property
    def name(self) -> str: ...
    def shapes(self, inputs: Sequence[Shape]) -> list[Shape]: ...
    def apply(self, inputs: Sequence[Array]) -> list[Array]: ...
    def inverse(self) -> Op: ...


@dataclass(frozen=True, slots=True)
class Concat:
    """n tensors of the given `sizes` along `axis` -> one."""

    name: ClassVar[str] = "concat"
    axis: int
    sizes: tuple[int, ...]

    def shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        for shape in inputs:
            _check_axis(self, self.axis, shape)
        sizes = tuple(shape[self.axis] for shape in inputs)
        if sizes != self.sizes or len({_replace(shape, self.axis, ()) for shape in inputs}) != 1:
            raise TableError(f"{describe(self)} does not fit tensors {', '.join(map(str, inputs))}")
        return [_replace(inputs[0], self.axis, (sum(sizes),))]

    def apply(self, inputs: Sequence[Array]) -> list[Array]:
        return [np.concatenate(inputs, axis=self.axis)]

    def inverse(self) -> Op:
        return Split(self.axis, self.sizes)


@dataclass(frozen=True, slots=True)
class Split:
    """One tensor -> n of the given `sizes` along `axis`."""

    name: ClassVar[str] = "split"
    axis: int
    sizes: tuple[int, ...]

    def shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        shape = _only(self, inputs)
        _check_axis(self, self.axis, shape)
        if sum(self.sizes) != shape[self.axis] or min(self.sizes, default=-1) < 0:
            raise TableError(f"{describe(self)} does not fit a tensor {shape}")
        return [_replace(shape, self.axis, (size,)) for size in self.sizes]

    def apply(self, inputs: Sequence[Array]) -> list[Array]:
        return np.split(_only(self, inputs), np.cumsum(self.sizes)[:-1].tolist(), axis=self.axis)

    def inverse(self) -> Op:
        return Concat(self.axis, self.sizes)


class Elementwise(ABC):
    """An op that does the same to every tensor, each by itself."""

    __slots__ = ()

    def shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        return [self._shape(shape) for shape in inputs]

    def apply(self, inputs: Sequence[Array]) -> list[Array]:
        return [self._move(array) for array in inputs]

    @abstractmethod
    def _shape(self, shape: Shape) -> Shape: ...

    @abstractmethod
    def _move(self, array: Array) -> Array: ...


@dataclass(frozen=True, slots=True)
class Transpose(Elementwise):
    """Permute the axes of every tensor."""

    name: ClassVar[str] = "transpose"
    axes: tuple[int, ...]

    def _shape(self, shape: Shape) -> Shape:
        if sorted(self.axes) != list(range(len(shape))):
            raise TableError(f"{describe(self)} does not fit a tensor {shape}")
        return tuple(shape[axis] for axis in self.axes)

    def _move(self, array: Array) -> Array:
        return np.transpose(array, self.axes)

    def inverse(self) -> Op:
        return Transpose(_inverse_permutation(self.axes))


@dataclass(frozen=True, slots=True)
class Reshape(Elementwise):
    """Every tensor of shape `old` -> shape `new`, in C order."""

    name: ClassVar[str] = "reshape"
    old: Shape
    new: Shape

    def _shape(self, shape: Shape) -> Shape:
        if shape != self.old or math.prod(self.old) != math.prod(self.new) or min(self.new, default=0) < 0:
            raise TableError(f"{describe(self)} does not fit a tensor {shape}")
        return self.new

    def _move(self, array: Array) -> Array:
        return array.reshape(self.new)

    def inverse(self) -> Op:
        return Reshape(self.new, self.old)


@dataclass(frozen=True, slots=True)
class PermuteBlocks(Elementwise):
    """See `axis` as `blocks`, permute these by `order`, flatten again.

    `PermuteBlocks(1, (4, 96), (1, 0))` turns columns sorted by (corner, channel) into (channel, corner).
    """

    name: ClassVar[str] = "permute_blocks"
    axis: int
    blocks: tuple[int, ...]
    order: tuple[int, ...]

    def _shape(self, shape: Shape) -> Shape:
        _check_axis(self, self.axis, shape)
        sizes = math.prod(self.blocks) if min(self.blocks, default=0) >= 0 else None
        if sizes != shape[self.axis] or sorted(self.order) != list(range(len(self.blocks))):
            raise TableError(f"{describe(self)} does not fit a tensor {shape}")
        return shape

    def _move(self, array: Array) -> Array:
        blocked = array.reshape(_replace(array.shape, self.axis, self.blocks))
        axes = list(range(blocked.ndim))
        axes[self.axis : self.axis + len(self.order)] = [self.axis + i for i in self.order]
        return blocked.transpose(axes).reshape(array.shape)

    def inverse(self) -> Op:
        order = _inverse_permutation(self.order)
        if len(order) != len(self.blocks):
            raise TableError(f"{describe(self)}: an order of {len(order)} for {len(self.blocks)} blocks")
        return PermuteBlocks(self.axis, tuple(self.blocks[i] for i in self.order), order)


@dataclass(frozen=True, slots=True)
class Reorder(Elementwise):
    """Take the slices along `axis` in the order of `index`, a permutation."""

    name: ClassVar[str] = "reorder"
    axis: int
    index: tuple[int, ...]

    def _shape(self, shape: Shape) -> Shape:
        _check_axis(self, self.axis, shape)
        if len(self.index) != shape[self.axis] or sorted(self.index) != list(range(len(self.index))):
            raise TableError(f"{describe(self)} is not a permutation of axis {self.axis} of a tensor {shape}")
        return shape

    def _move(self, array: Array) -> Array:
        return np.take(array, self.index, axis=self.axis)

    def inverse(self) -> Op:
        return Reorder(self.axis, _inverse_permutation(self.index))


@dataclass(frozen=True, slots=True)
class Branches:
    """Several chains side by side, each of (tensors in, tensors out, ops). Made by composition, never by a table."""

    name: ClassVar[str] = "side_by_side"
    branches: tuple[tuple[int, int, tuple[Op, ...]], ...]

    def shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        return [shape for ops, part in self._parts(inputs) for shape in chain_shapes(ops, part)]

    def apply(self, inputs: Sequence[Array]) -> list[Array]:
        return [array for ops, part in self._parts(inputs) for array in apply_ops(ops, part)]

    def inverse(self) -> Op:
        return Branches(tuple((made, taken, invert_ops(ops)) for taken, made, ops in self.branches))

    def _parts(self, inputs: Sequence[_T]) -> Iterator[tuple[tuple[Op, ...], Sequence[_T]]]:
        start = 0
        for taken, _, ops in self.branches:
            yield ops, inputs[start : start + taken]
            start += taken
        if start != len(inputs):
            raise TableError(f"{describe(self)} takes {start} tensors, not {len(inputs)}")


@dataclass(frozen=True, slots=True)
class Arrange:
    """Put whole tensors into another order. Made by composition, never by a table."""

    name: ClassVar[str] = "arrange"
    order: tuple[int, ...]

    def shapes(self, inputs: Sequence[Shape]) -> list[Shape]:
        return [inputs[i] for i in self.order]

    def apply(self, inputs: Sequence[Array]) -> list[Array]:
        return [inputs[i] for i in self.order]

    def inverse(self) -> Op:
        return Arrange(_inverse_permutation(self.order))


# name in a table -> constructor from the op's JSON object, whose expressions are already evaluated
_OPS: Mapping[str, Callable[[Mapping[str, Any]], Op]] = {
    "concat": lambda o: Concat(o["axis"], tuple(o["sizes"])),
    "split": lambda o: Split(o["axis"], tuple(o["sizes"])),
    "transpose": lambda o: Transpose(tuple(o["axes"])),
    "reshape": lambda o: Reshape(tuple(o["from"]), tuple(o["to"])),
    "permute_blocks": lambda o: PermuteBlocks(o["axis"], tuple(o["blocks"]), tuple(o["order"])),
    "reorder": lambda o: Reorder(o["axis"], tuple(o["index"])),
}


def make_op(description: Mapping[str, Any]) -> Op:
    """The op of a table's JSON object, whose numbers are already evaluated."""
    return _OPS[description["op"]](description)


def describe(op: Op) -> str:
    """`concat(axis=0, sizes=(768, 768, 768))`."""
    if isinstance(op, Branches):
        chains = (", then ".join(map(describe, ops)) or "as is" for _, _, ops in op.branches)
        return f"{op.name}({'; '.join(chains)})"
    fields: dict[str, Any] = asdict(op)  # type: ignore[call-overload]
    return f"{op.name}({', '.join(f'{key}={value}' for key, value in fields.items())})"


def chain_shapes(ops: Sequence[Op], inputs: Sequence[Shape]) -> list[Shape]:
    """Shapes after `ops`."""
    shapes = list(inputs)
    for op in ops:
        shapes = op.shapes(shapes)
    return shapes


def apply_ops(ops: Sequence[Op], inputs: Sequence[Array]) -> list[Array]:
    """Run `ops` over `inputs`."""
    arrays = list(inputs)
    for op in ops:
        arrays = op.apply(arrays)
    return arrays


def invert_ops(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The chain that undoes `ops`."""
    return tuple(op.inverse() for op in reversed(ops))


def keep_order(ops: Sequence[Op]) -> bool:
    """Whether what is made has the elements of what is given, in C order, one tensor after the other."""
    return all(isinstance(op, Reshape) for op in ops) or (
        len(ops) == 1 and isinstance(ops[0], Concat) and ops[0].axis == 0
    )


def prove_bijective(ops: Sequence[Op], inputs: Sequence[Shape]) -> str | None:
    """Run `ops` on tensors whose elements are numbered; what is wrong, or None.

    Every number must come out exactly once, and the inverse chain must put it back where it was. Of ops that keep the
    order there is nothing to prove once the shapes fit.
    """
    total = sum(map(math.prod, inputs))
    if total > LARGEST_PROOF:
        return (
            f"ops on {total} elements, and {LARGEST_PROOF} is the limit for proving that none is lost; "
            "check the shapes, or write the rule without ops"
        )
    if keep_order(ops):
        return None
    numbers = np.arange(total, dtype=np.int32)
    offsets = np.cumsum([math.prod(shape) for shape in inputs])[:-1]
    numbered = [part.reshape(shape) for part, shape in zip(np.split(numbers, offsets), inputs, strict=True)]
    outputs = apply_ops(ops, numbered)
    found = np.concatenate([output.ravel() for output in outputs])
    if not np.array_equal(found, numbers):  # they do not even move
        counts = np.bincount(found, minlength=total)
        if not (counts == 1).all():
            return f"{np.count_nonzero(counts == 0)} elements are lost and {np.count_nonzero(counts > 1)} doubled"
    back = apply_ops(invert_ops(ops), outputs)
    if not all(np.array_equal(a, b) for a, b in zip(back, numbered, strict=True)):
        return "the inverse does not put the elements back"
    return None


def _check_axis(op: Op, axis: int, shape: Shape) -> None:
    if not 0 <= axis < len(shape):
        raise TableError(f"{describe(op)} does not fit a tensor {shape}: it has no axis {axis}")


def _only(op: Op, inputs: Sequence[_T]) -> _T:
    if len(inputs) != 1:
        raise TableError(f"{describe(op)} takes one tensor, not {len(inputs)}")
    return inputs[0]


def _replace(shape: Shape, axis: int, new: tuple[int, ...]) -> Shape:
    return shape[:axis] + new + shape[axis + 1 :]


def _inverse_permutation(order: tuple[int, ...]) -> tuple[int, ...]:
    if sorted(order) != list(range(len(order))):
        raise TableError(f"{order} is not a permutation")
    return tuple(sorted(range(len(order)), key=order.__getitem__))
