"""Buffers, which the config implies, and copies: checked where they are left out, made where they are rebuilt."""

from __future__ import annotations

import math
from collections.abc import Callable

from converter.checkpoint import DTYPES, Checkpoint
from converter.checkpoint.arrays import np
from converter.errors import PlanError, TableError
from converter.mapping.cast import can_hold, cast, is_float
from converter.mapping.ops import Array
from converter.mapping.rebuild import LARGEST_BUFFER
from converter.planning.plan import Plan, Tensor


def verify_left_out(checkpoint: Checkpoint, plan: Plan) -> None:
    """Check that buffers which are left out hold what the config implies, and copies what their originals hold, so that
    leaving them out loses nothing.

    Raises PlanError naming all that do not.
    """
    problems = []
    for out in plan.left_out:
        if out.copy_of is not None:
            if not _are_equal(checkpoint, out.tensor, out.copy_of):
                problems.append(
                    f"{out.tensor.name!r} {out.tensor.shape} does not hold the numbers of {out.copy_of.name!r}: "
                    f"{out.reason}, but here they were trained apart"
                )
            continue
        if out.accepts is not None:
            is_right = _is_accepted(checkpoint, out.tensor, out.accepts)
        else:
            is_right = out.rebuild is None or _holds(checkpoint, out.tensor, out.rebuild)
        if not is_right:
            problems.append(
                f"{out.tensor.name!r} {out.tensor.shape} does not hold what {plan.variant.name} computes; the "
                "checkpoint belongs to a model with other settings"
            )
    if problems:
        raise PlanError(f"{plan.table}: {len(problems)} tensors contradict {plan.variant.name}", problems)


def _are_equal(checkpoint: Checkpoint, one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(a == b for a, b in zip(checkpoint.chunks(one.name), checkpoint.chunks(other.name), strict=True))


def _holds(checkpoint: Checkpoint, tensor: Tensor, rebuild: Callable[[], Array]) -> bool:
    try:
        implied = rebuild()
    except TableError:  # a level or size that the config does not have
        return False
    if tensor.shape != implied.shape or not can_hold(implied, tensor.dtype):
        return False
    return np.array_equal(checkpoint.read(tensor.name), implied_value(implied, tensor))


def _is_accepted(checkpoint: Checkpoint, tensor: Tensor, accepts: Callable[[Array], bool]) -> bool:
    dtype = tensor.dtype
    if math.prod(tensor.shape) > LARGEST_BUFFER or not (is_float(dtype) or dtype.kind == "int"):
        return False
    values = checkpoint.read(tensor.name)
    if dtype.name == "bfloat16":  # whose bits it carries
        values = cast(values, dtype, DTYPES["float32"], tensor.name)
    try:
        return accepts(values)
    except TableError:  # a layer that the config does not have
        return False


def implied_value(value: Array, tensor: Tensor) -> Array:
    """A rebuilt value in the dtype of `tensor`, which a cast of the whole model may have changed."""
    if tensor.dtype.name == "bfloat16":
        value = cast(value.astype(np.float32), DTYPES["float32"], tensor.dtype, tensor.name)
    return value.astype(tensor.dtype.carrier)
