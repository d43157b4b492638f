"""Faults need strace, and a system that lets it trace."""

from __future__ import annotations

import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def strace() -> None:
    """Skip, with the reason, where there is none."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: no system call can be made to fail")
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
