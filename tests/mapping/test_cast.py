"""A cast rounds as torch does, and refuses what would become infinite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from converter.checkpoint import DTYPES
from converter.errors import PlanError
from converter.mapping.cast import FLOAT_DTYPES, cast, is_lossless

AWKWARD = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    1 + 2**-8,
    1 + 3 * 2**-8,
    1 + 2**-24,
    6e-8,
    1e-45,
    60000.0,
    3.14159265,
    float("nan"),
    float("inf"),
]


@pytest.mark.parametrize("source", FLOAT_DTYPES)
@pytest.mark.parametrize("target", FLOAT_DTYPES)
def test_casts_as_torch_does(source: str, target: str) -> None:
    rng = np.random.default_rng(0)
    values = torch.tensor(np.concatenate([AWKWARD, rng.standard_normal(10_000) * 10 ** rng.uniform(-6, 4, 10_000)]))
    values = values.to(getattr(torch, source)).clamp(-60000, 60000)
    expected = values.to(getattr(torch, target))
    bits = values.view(torch.uint16).numpy() if source == "bfloat16" else values.numpy()
    result = cast(bits, DTYPES[source], DTYPES[target], "x")
    got = torch.from_numpy(result.copy())
    got = got.view(torch.bfloat16) if target == "bfloat16" else got
    assert got.dtype == expected.dtype
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())
    assert torch.equal(torch.signbit(got[:2]), torch.signbit(expected[:2]))


def test_refuses_to_make_infinity_of_a_number() -> None:
    values = np.array([1.0, 70000.0], dtype=np.float32)
    with pytest.raises(PlanError, match=r"w\.x: the value 70000\.0 at flat index 1 does not fit float16 \(1 such"):
        cast(values, DTYPES["float32"], DTYPES["float16"], "w.x")


def test_keeps_an_infinity_that_was_there() -> None:
    values = np.array([np.inf], dtype=np.float32)
    assert np.isinf(cast(values, DTYPES["float32"], DTYPES["float16"], "x")).all()


def test_lossless_is_about_every_value() -> None:
    lossless = {(a, b) for a in FLOAT_DTYPES for b in FLOAT_DTYPES if a != b and is_lossless(DTYPES[a], DTYPES[b])}
    assert lossless == {
        ("float16", "float32"),
        ("float16", "float64"),
        ("bfloat16", "float32"),
        ("bfloat16", "float64"),
        ("float32", "float64"),
    }
