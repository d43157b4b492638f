"""The dtypes that torch writes: their size, their safetensors tag and the numpy dtype that carries their bits.

numpy has no bfloat16, float8 or complex32; their bits travel in an unsigned integer of the same size, so that
nothing is ever converted on the way. Multi-byte carriers are little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from converter.checkpoint.arrays import np

Kind = Literal["float", "complex", "int", "bool", "bits"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Args:
        name: torch's name without the `torch.` prefix, e.g. `bfloat16`.
        kind: what the bits mean; `bits` have no arithmetic.
        itemsize: bytes of one element.
        safetensors: tag in a safetensors header, or None if that format cannot hold it.
        bits: numpy's name for the dtype that holds the bits.
        storage: name of torch's typed storage class, or None where torch stores it untyped.
    """

    name: str
    kind: Kind
    itemsize: int
    safetensors: str | None
    bits: str
    storage: str | None

    @property
    def carrier(self) -> np.dtype[Any]:
        """The numpy dtype that holds the bits."""
        return np.dtype(self.bits)

    @property
    def components(self) -> int:
        """Numbers in one element: 2 for complex, otherwise 1."""
        return 2 if self.kind == "complex" else 1

    def __str__(self) -> str:
        return self.name


# name, kind, itemsize, safetensors tag, bits, torch storage class
_TABLE: tuple[tuple[str, Kind, int, str | None, str, str | None], ...] = (
    ("float64", "float", 8, "F64", "<f8", "DoubleStorage"),
    ("float32", "float", 4, "F32", "<f4", "FloatStorage"),
    ("float16", "float", 2, "F16", "<f2", "HalfStorage"),
    ("bfloat16", "float", 2, "BF16", "<u2", "BFloat16Storage"),
    ("float8_e4m3fn", "float", 1, "F8_E4M3", "u1", None),
    ("float8_e5m2", "float", 1, "F8_E5M2", "u1", None),
    ("float8_e4m3fnuz", "float", 1, "F8_E4M3FNUZ", "u1", None),
    ("float8_e5m2fnuz", "float", 1, "F8_E5M2FNUZ", "u1", None),
    ("float8_e8m0fnu", "float", 1, "F8_E8M0", "u1", None),
    # two 4-bit numbers per element; safetensors counts 4-bit elements in the shape, torch counts pairs
    ("float4_e2m1fn_x2", "bits", 1, None, "u1", None),
    ("complex128", "complex", 16, None, "<c16", "ComplexDoubleStorage"),
    ("complex64", "complex", 8, "C64", "<c8", "ComplexFloatStorage"),
    ("complex32", "complex", 4, None, "<u4", "ComplexHalfStorage"),
    ("int64", "int", 8, "I64", "<i8", "LongStorage"),
    ("int32", "int", 4, "I32", "<i4", "IntStorage"),
    ("int16", "int", 2, "I16", "<i2", "ShortStorage"),
    ("int8", "int", 1, "I8", "i1", "CharStorage"),
    ("uint64", "int", 8, "U64", "<u8", None),
    ("uint32", "int", 4, "U32", "<u4", None),
    ("uint16", "int", 2, "U16", "<u2", None),
    ("uint8", "int", 1, "U8", "u1", "ByteStorage"),
    ("bool", "bool", 1, "BOOL", "?", "BoolStorage"),
    ("bits16", "bits", 2, None, "<u2", None),
    ("bits8", "bits", 1, None, "u1", None),
    ("bits4x2", "bits", 1, None, "u1", None),
    ("bits2x4", "bits", 1, None, "u1", None),
    ("bits1x8", "bits", 1, None, "u1", None),
)

DTYPES: Mapping[str, DType] = MappingProxyType({row[0]: DType(*row) for row in _TABLE})
BY_SAFETENSORS_TAG: Mapping[str, DType] = MappingProxyType(
    {dtype.safetensors: dtype for dtype in DTYPES.values() if dtype.safetensors is not None}
)
BY_STORAGE_CLASS: Mapping[str, DType] = MappingProxyType(
    {dtype.storage: dtype for dtype in DTYPES.values() if dtype.storage is not None}
)

# numpy cannot say of these what is NaN or infinite: the bits to look at, and what they are then
_NOT_FINITE: Mapping[str, tuple[str, int, int]] = {
    "bfloat16": ("<u2", 0x7F80, 0x7F80),
    "complex32": ("<u2", 0x7C00, 0x7C00),
    "float8_e4m3fn": ("u1", 0x7F, 0x7F),
    "float8_e5m2": ("u1", 0x7C, 0x7C),
    "float8_e4m3fnuz": ("u1", 0xFF, 0x80),
    "float8_e5m2fnuz": ("u1", 0xFF, 0x80),
    "float8_e8m0fnu": ("u1", 0xFF, 0xFF),
}


def all_finite(data: memoryview | bytes, dtype: DType) -> bool:
    """Whether no number among whole elements is NaN or infinite; integers and bits never are."""
    if dtype.name in _NOT_FINITE:
        carrier, mask, value = _NOT_FINITE[dtype.name]
        return not (np.frombuffer(data, carrier) & mask == value).any()
    return dtype.kind not in ("float", "complex") or bool(np.isfinite(np.frombuffer(data, dtype.carrier)).all())
