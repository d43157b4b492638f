"""The program as a process of its own, in which nothing is imported yet, with an environment that the test decides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import ROOT


def alone(*arguments: object, cwd: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `converter` to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "converter", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
    )
