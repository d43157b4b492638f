"""What the tests of the peers share: when they run, how a peer is loaded, and what counts as equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

LIMIT = 1e-10  # of the relative Frobenius error in float64: right code is near 1e-15, a wrong epsilon near 1e-6


def needs(*packages: str) -> list[pytest.MarkDecorator]:
    """The marks of a test module that compares with these packages."""
    missing = [package for package in (*packages, "torchvision") if find_spec(package) is None]
    reason = f"{', '.join(missing)} not installed: scripts/peers.sh runs this in an environment of its own"
    return [pytest.mark.peers, pytest.mark.skipif(bool(missing), reason=reason)]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table that a run ends with."""

    peer: str
    model: str
    compared: str
    error: float
    dtype: str


@dataclass(frozen=True, slots=True)
class Results:
    """Every comparison of this run, judged as it is made."""

    rows: list[Row] = field(default_factory=list)

    def note(self, package: str, what: str, model: str, compared: str, error: float) -> None:
        """Keep a number that is not judged."""
        self.rows.append(Row(f"{package} {version(package)} {what}".strip(), model, compared, error, "float64"))

    def equal(
        self, package: str, what: str, model: str, compared: str, found: Iterable[Tensor], expected: Iterable[Tensor]
    ) -> None:
        """Assert that float64 tensors agree one by one, and keep the largest error."""
        errors = [relative_error(*pair) for pair in zip(found, expected, strict=True)]
        self.note(package, what, model, compared, max(errors))
        assert all(error <= LIMIT for error in errors), errors  # NaN is not


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The Frobenius norm of the difference over that of `expected`."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float64
    return float((found - expected).norm() / expected.norm())


def signature(net: nn.Module) -> list[list[object]]:
    """[key, shape, dtype] of each entry of a state dict, in its order."""
    return [[key, list(tensor.shape), str(tensor.dtype)] for key, tensor in net.state_dict().items()]


def poison(net: nn.Module) -> None:
    """Fill a model with NaN, so that nothing that is not loaded can pass for a value."""
    for tensor in net.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else -1)


def load(net: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The model with these weights, every one of them and no other, in float64 for inference."""
    poison(net)
    net.load_state_dict(weights, strict=True)
    return net.double().eval()


def images(*shape: int) -> Tensor:
    """The same normalised images each time, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
