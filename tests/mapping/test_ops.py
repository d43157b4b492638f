"""Ops and their chains: shapes, values, and the way back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import TableError
from converter.mapping.ops import (
    LARGEST_PROOF,
    Concat,
    Op,
    PermuteBlocks,
    Reorder,
    Reshape,
    Split,
    Transpose,
    apply_ops,
    chain_shapes,
    invert_ops,
    keep_order,
    make_op,
    prove_bijective,
)

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[Op], list[tuple[int, ...]]]:
    """A chain of ops that fit each other, and the shapes it starts from."""
    shape = draw(shapes)
    axis = draw(st.integers(0, len(shape) - 1))
    inputs = [
        (*shape[:axis], size, *shape[axis + 1 :]) for size in draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    ]
    ops: list[Op] = [Concat(axis, tuple(s[axis] for s in inputs))]
    for _ in range(draw(st.integers(0, 3))):
        (shape,) = chain_shapes(ops, inputs)
        axis = draw(st.integers(0, len(shape) - 1))
        kind = draw(st.sampled_from(["transpose", "reshape", "blocks", "reorder"]))
        if kind == "transpose":
            ops.append(Transpose(tuple(draw(st.permutations(range(len(shape)))))))
        elif kind == "reshape":
            ops.append(Reshape(shape, (math.prod(shape),)))
        elif kind == "blocks":
            factor = draw(st.sampled_from([d for d in range(1, shape[axis] + 1) if shape[axis] % d == 0]))
            ops.append(PermuteBlocks(axis, (factor, shape[axis] // factor), tuple(draw(st.permutations([0, 1])))))
        else:
            ops.append(Reorder(axis, tuple(draw(st.permutations(range(shape[axis]))))))
    return ops, inputs


@given(chains())
def test_the_inverse_gives_back_every_element(chain: tuple[list[Op], list[tuple[int, ...]]]) -> None:
    ops, inputs = chain
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in inputs]
    outputs = apply_ops(ops, arrays)
    assert [o.shape for o in outputs] == chain_shapes(ops, inputs)
    back = apply_ops(invert_ops(ops), outputs)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, back, strict=True))
    assert prove_bijective(ops, inputs) is None


def test_permute_blocks_is_what_patch_merging_needs() -> None:
    # columns sorted by (corner, channel) -> (channel, corner), written out by hand
    (result,) = PermuteBlocks(0, (4, 2), (1, 0)).apply([np.array(["0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b"])])
    assert result.tolist() == ["0a", "1a", "2a", "3a", "0b", "1b", "2b", "3b"]


class Forgetful:
    """An op that repeats the first row over the last: the proof must see it."""

    name = "forgetful"

    def shapes(self, inputs: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return inputs

    def apply(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        results = [array.copy() for array in inputs]
        for result in results:
            result[-1] = result[0]
        return results

    def inverse(self) -> Op:
        return self


class WrongInverse(Forgetful):
    """A permutation that claims to be its own inverse."""

    def apply(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [np.roll(array, 1, axis=0) for array in inputs]


@given(chains())
def test_what_keeps_the_order_can_be_streamed(chain: tuple[list[Op], list[tuple[int, ...]]]) -> None:
    ops, inputs = chain
    offsets = np.cumsum([0, *map(math.prod, inputs)])
    numbers = [np.arange(a, b).reshape(shape) for a, b, shape in zip(offsets, offsets[1:], inputs, strict=False)]
    for part, before in ((ops, numbers), (ops[:1], numbers), (ops[1:], apply_ops(ops[:1], numbers))):
        if keep_order(part):
            made = apply_ops(part, before)
            assert [x for array in made for x in array.flat] == [x for array in before for x in array.flat]


def test_what_keeps_the_order_is_limited_like_its_inverse() -> None:
    join, half = Concat(0, (LARGEST_PROOF, 1)), [(LARGEST_PROOF,), (1,)]
    assert str(prove_bijective([join], half)) == str(prove_bijective([join.inverse()], [(LARGEST_PROOF + 1,)]))


def test_the_proof_fails_for_an_op_that_loses_elements() -> None:
    assert "3 elements are lost and 3 doubled" in str(prove_bijective([Forgetful()], [(4, 3)]))


def test_the_proof_fails_for_a_wrong_inverse() -> None:
    assert "inverse" in str(prove_bijective([WrongInverse()], [(4, 3)]))


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        (Concat(0, (2, 2)), [(2, 3), (3, 3)]),
        (Concat(0, (2, 2)), [(2, 3), (2, 4)]),
        (Concat(1, (2, 2)), [(2,), (2,)]),
        (Split(0, (1, 1)), [(3, 3)]),
        (Split(0, (4, -1)), [(3, 3)]),
        (Split(0, (1, 2)), [(3, 3), (3, 3)]),
        (Transpose((0, 0)), [(2, 2)]),
        (Reshape((4,), (5,)), [(4,)]),
        (PermuteBlocks(0, (2, 3), (0, 1)), [(5,)]),
        (PermuteBlocks(0, (2, 3), (0, 0)), [(6,)]),
        (Reorder(0, (0, 0)), [(2,)]),
    ],
)
def test_an_op_that_does_not_fit_says_so(op: Op, inputs: list[tuple[int, ...]]) -> None:
    with pytest.raises(TableError, match=op.name):
        op.shapes(inputs)


def test_make_op_reads_a_table() -> None:
    assert make_op({"op": "reshape", "from": [6], "to": [2, 3]}) == Reshape((6,), (2, 3))
    assert make_op({"op": "split", "axis": 1, "sizes": [1, 2]}) == Split(1, (1, 2))
