"""A few hundred numbers that stand for a large tensor: an error anywhere in it shows in them, and how large it is.

Two kinds. Samples are single elements, one at random from each of 256 equal stretches, the first and the last element
among them. Projections are sums over the whole tensor with random signs: the mean of their squares is the squared
Frobenius norm in expectation (Johnson & Lindenstrauss 1984), here of a difference, with 64 of them to within 9 %.
Which elements and signs is a function of the tensor's name and size alone, by PCG64, whose raw output is fixed.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

SAMPLES = 256
PROJECTIONS = 64


def probe(name: str, values: Tensor) -> Tensor:
    """The probes of a tensor of any shape, (320,) float64 on the CPU; a tensor no larger than that, whole."""
    flat = values.detach().cpu().double().flatten()
    size = flat.numel()
    if size <= SAMPLES + PROJECTIONS:
        return flat
    random = np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    bounds = np.arange(SAMPLES + 1) * size // SAMPLES
    places = bounds[:-1] + (random.random_raw(SAMPLES) % np.diff(bounds).astype(np.uint64)).astype(np.int64)
    places[0], places[-1] = 0, size - 1
    words = random.random_raw(-(-PROJECTIONS * size // 64)).astype("<u8")
    bits = torch.from_numpy(np.unpackbits(words.view(np.uint8), count=PROJECTIONS * size).reshape(PROJECTIONS, size))
    sums = torch.zeros(PROJECTIONS, dtype=torch.float64)
    for begin in range(0, size, 8192):  # in float64 they take eight times the memory, and so many fit the cache
        sums += bits[:, begin : begin + 8192].double() @ flat[begin : begin + 8192]
    projections = 2 * sums - flat.sum()  # a bit b stands for the sign 2b - 1
    return torch.cat([flat[torch.from_numpy(places)], projections])


def distance(first: Tensor, second: Tensor) -> float:
    """Frobenius norm of the difference of two tensors of the same name and shape, from their probes.

    Exact for tensors that are their own probes, otherwise an estimate, and never less than what the samples show.
    NaN if anything probed is NaN.
    """
    difference = first - second
    if len(difference) < SAMPLES + PROJECTIONS:
        return float(difference.norm())
    sampled = difference[:SAMPLES].norm()
    projected = difference[SAMPLES:].square().mean().sqrt()
    return float(torch.maximum(sampled, projected))
