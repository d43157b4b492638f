"""Exported graphs in a certificate: each with the hashes of its files and what it was compared with. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converter.checkpoint.hashes import file_sha256
from converter.display import plain

if TYPE_CHECKING:
    from converter.parity.evidence import Run


@dataclass(frozen=True, slots=True)
class Exported:
    """A graph that was certified with the weights: the SHA-256 of its files by their names, and its comparisons."""

    files: Mapping[str, str]
    dtype: str
    opset: int
    runs: tuple[Run, ...]


def files_of(exports: Sequence[Exported]) -> dict[str, str]:
    """The SHA-256 of every file that belongs to a graph, by its name beside the weights."""
    return {name: sha256 for entry in exports for name, sha256 in entry.files.items()}


def beside(weights: Path, name: str) -> Path:
    """Where a file of that name is, beside a file of weights or in their folder."""
    return (weights if weights.is_dir() else weights.parent) / name


def changed(exports: Sequence[Exported], weights: Path) -> Iterator[str]:
    """A line for each file beside `weights` that is not as it was certified; one that is not there is none."""
    for name, sha256 in files_of(exports).items():
        if (path := beside(weights, name)).is_file() and file_sha256(path) != sha256:
            yield f"{plain(name)}: other content than certified"
