"""A full-size GLIP in the official format, and what the command line makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

from converter.cli import main
from converter.glip import GLIP


def convert(source: Path, destination: Path, *options: str) -> Path:
    """What the command line makes of `source`."""
    result = CliRunner().invoke(main, ["convert", "--src", str(source), "--dst", str(destination), *options])
    assert result.exit_code == 0, result.output
    return destination


@dataclass(frozen=True)
class Official:
    """A checkpoint in the official format with synthetic weights."""

    name: str
    path: Path

    @cached_property
    def glip(self) -> GLIP:
        """The in-house model in float64."""
        return GLIP.from_pretrained(self._convert("own.safetensors")).double()

    def converted(self, to: str) -> dict[str, Tensor]:
        """What `convert --to` makes of it."""
        return load_file(self._convert(f"{to}.safetensors", "--to", to))

    def converted_pth(self, to: str) -> Path:
        """The same as PyTorch itself saves it."""
        return self._convert(f"{to}.pth", "--to", to)

    def _convert(self, name: str, *options: str) -> Path:
        path = self.path.with_name(name)
        return path if path.exists() else convert(self.path, path, *options)
