"""The captures that most tests compare with: whole, and with probes only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from converter.parity.capture import Capture
from tests.support.small_capture import small_capture


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    with small_capture(tmp_path_factory.mktemp("capture")) as capture:
        yield capture


@pytest.fixture(scope="session")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    with small_capture(tmp_path_factory.mktemp("compact"), compact=True) as capture:
        yield capture
