"""Probes: fixed by name and size, and telling of any error how large it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from converter.parity.probes import PROJECTIONS, SAMPLES, distance, probe


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_small_tensors_are_their_own_probes() -> None:
    x = random(4, 80)
    assert torch.equal(probe("x", x), x.flatten())


def test_large_tensors_have_samples_with_both_ends_and_projections() -> None:
    x = random(7, 1001)
    probes = probe("x", x)
    assert len(probes) == SAMPLES + PROJECTIONS
    assert probes[0] == x[0, 0]
    assert probes[SAMPLES - 1] == x[-1, -1]
    assert set(probes[:SAMPLES].tolist()) <= set(x.flatten().tolist())
    assert len(set(probes[:SAMPLES].tolist())) == SAMPLES


def test_probes_are_the_same_on_every_machine() -> None:
    probes = probe("backbone.0", torch.arange(1000.0))
    assert probes[1:4].tolist() == [3.0, 7.0, 13.0]
    assert probes[SAMPLES : SAMPLES + 3].tolist() == [18318.0, 26662.0, -19242.0]


def test_names_choose_the_probes() -> None:
    x = random(1000)
    assert not torch.equal(probe("a", x), probe("b", x))


@pytest.mark.parametrize("size", [1000, 70000])
def test_the_distance_is_that_of_the_whole_tensors(size: int) -> None:
    x, error = random(size), 1e-9 * random(size, seed=1)
    assert distance(probe("x", x), probe("x", x + error)) == pytest.approx(float(error.norm()), rel=0.3)


@pytest.mark.parametrize("place", [0, 1, 34567, 69999])
def test_an_error_of_one_element_is_seen_wherever_it_is(place: int) -> None:
    x = random(70000)
    changed = x.clone()
    changed[place] += 1e-6
    assert distance(probe("x", x), probe("x", changed)) == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("size", [10, 1000])
def test_nan_anywhere_makes_the_distance_nan(size: int) -> None:
    x = random(size)
    changed = x.clone()
    changed[size // 2] = math.nan
    assert math.isnan(distance(probe("x", x), probe("x", changed)))


def test_other_formats_are_widened() -> None:
    x = random(3, 400).bfloat16()
    assert torch.equal(probe("x", x), probe("x", x.double()))
