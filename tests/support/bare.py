"""An environment in which converter is installed with what it always needs, and with nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def bare_environment(folder: Path, wheel: Path) -> Path:
    """Its Python. What converter needs is linked to the packages that run the tests: nothing is downloaded."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    (metadata,) = site.glob("converter-*.dist-info/METADATA")
    wanted = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata.read_text(encoding="utf-8").splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    for name in _with_their_own(wanted):
        for top in {file.parts[0] for file in distribution(name).files or () if file.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return folder / "bin" / "python"


def _with_their_own(requirements: list[str]) -> set[str]:
    names: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = re.split(r"[^\w.-]", requirement)[0]
        if name not in names and "extra ==" not in requirement:
            with suppress(PackageNotFoundError):  # what only other systems or older Pythons need
                waiting += requires(name) or []
                names.add(name)
    return names
