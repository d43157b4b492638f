"""NaN and infinity are found in every dtype as torch finds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from converter.checkpoint import DTYPES
from converter.checkpoint.dtypes import all_finite

ONE_BYTE = [name for name, dtype in DTYPES.items() if dtype.kind == "float" and dtype.itemsize == 1]


@pytest.mark.parametrize("name", ["bfloat16", "float16", *ONE_BYTE])
def test_every_bit_pattern(name: str) -> None:
    dtype = DTYPES[name]
    patterns = np.arange(1 << 8 * dtype.itemsize, dtype=f"<u{dtype.itemsize}")
    values = torch.from_numpy(patterns.copy()).view(getattr(torch, name)).float()
    found = [all_finite(pattern.tobytes(), dtype) for pattern in patterns]
    assert found == values.isfinite().tolist()


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", ["float64", "float32", "complex128", "complex64", "complex32", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_among_many(name: str, value: float) -> None:
    numbers = torch.ones(1000).to(getattr(torch, name))
    parts = torch.view_as_real(numbers) if numbers.is_complex() else numbers
    assert all_finite(bytes(numbers.view(torch.uint8).numpy()), DTYPES[name])
    parts.view(-1)[-1] = value
    assert not all_finite(bytes(numbers.view(torch.uint8).numpy()), DTYPES[name])


@pytest.mark.parametrize("name", ["int64", "uint8", "bool"])
def test_integers_are_always_finite(name: str) -> None:
    assert all_finite(b"\xff" * 8, DTYPES[name])
