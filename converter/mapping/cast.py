"""Changing the dtype of floating-point tensors, as torch does it, in numpy.

bfloat16 travels as its bits in uint16, since numpy has no such type. Rounding is to nearest, ties to even.
"""

from __future__ import annotations

from converter.checkpoint import DType
from converter.checkpoint.arrays import np
from converter.errors import PlanError
from converter.mapping.ops import Array

# significand bits, exponent bits: what fits exactly into what
_FLOATS = {"float64": (52, 11), "float32": (23, 8), "float16": (10, 5), "bfloat16": (7, 8)}
FLOAT_DTYPES = tuple(_FLOATS)


def is_float(dtype: DType) -> bool:
    """Whether `dtype` is one of the four floating-point types that `cast` knows."""
    return dtype.name in _FLOATS


def is_lossless(source: DType, target: DType) -> bool:
    """Whether every value of `source` has an equal in `target`."""
    return source == target or all(a <= b for a, b in zip(_FLOATS[source.name], _FLOATS[target.name], strict=True))


def can_hold(value: Array, dtype: DType) -> bool:
    """Whether a buffer may be stored as `dtype`: any float, as after a cast of the model, or an int that holds it."""
    return is_float(dtype) or (dtype.kind == "int" and np.array_equal(value.astype(dtype.carrier), value))


def cast(array: Array, source: DType, target: DType, name: str) -> Array:
    """`array` (the carrier of `source`) as a carrier of `target`.

    Raises PlanError naming the tensor if a finite value becomes infinite: silently converting it would lose it.
    """
    if source == target:
        return array
    values = as_float(array, source)
    with np.errstate(over="ignore"):
        if target.name == "bfloat16":
            result = _to_bfloat16(values.astype(np.float32))
            after = as_float(result, target)
        else:
            after = result = values.astype(target.carrier)
    overflown = np.isinf(after) & np.isfinite(values)
    if overflown.any():
        at = np.argmax(overflown)
        raise PlanError(
            f"{name}: the value {values.flat[at]!s} at flat index {at} does not fit {target.name} "
            f"({np.count_nonzero(overflown)} such values). Choose a dtype with more range: bfloat16 or float32."
        )
    return result


def as_float(array: Array, dtype: DType) -> Array:
    """The numbers of an array as it travels: bfloat16 as float32, all others as they are."""
    if dtype.name != "bfloat16":
        return array
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _to_bfloat16(values: Array) -> Array:
    bits = np.ascontiguousarray(values).view(np.uint32)
    lowest_kept = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + lowest_kept) >> np.uint32(16)).astype(np.uint16)
    # rounding could carry a NaN's payload into infinity or into the sign; torch writes this quiet NaN
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
