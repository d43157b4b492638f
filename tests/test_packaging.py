"""The wheel, installed elsewhere and run from another folder, brings everything it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import ROOT


def test_the_wheel_works_from_another_folder(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "wheel")],
        check=True,
    )
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # the installed copy, not the checkout that an editable install would offer
    script = """import converter; print(converter.__file__)
from converter.cli import main; main(['lint'], standalone_mode=False); main(['schema', 'lint'])"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, *said = done.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert "glip-official: 60 rules, sound for every variant" in said
    assert '  "$id": "urn:converter:json:lint:1",' in said
    assert {path.name for path in (site / "bin").iterdir()} == {"convert", "converter"}
