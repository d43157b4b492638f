"""No test reaches the real Hub: whenever huggingface_hub is imported, it is set up for the one on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from server import HubServer

# before any import of huggingface_hub, which reads its settings then
_HUB = HubServer()
_HOME = TemporaryDirectory(prefix="hf_home")
os.environ |= {
    "HF_ENDPOINT": _HUB.url,
    "HF_HOME": _HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@pytest.fixture(scope="session", autouse=True)
def running() -> Iterator[HubServer]:
    """The stand-in of the Hub, empty: what asks it for anything is told that it is not there."""
    with TemporaryDirectory(prefix="hub") as folder:
        _HUB.reset(Path(folder))
        _HUB.start()
        yield _HUB
        _HUB.stop()
    _HOME.cleanup()
