"""Exported graphs in a certificate: each with the hashes of its files and what it was compared with. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converter.checkpoint.hashes import file_sha256
from converter.display import plain

if TYPE_CHECKING:
    from converter.parity.evidence import Run

# names of a graph's files that a certificate may have, as its schema says
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.onnx(\.data)?")


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


def held(exports: Sequence[Exported], weights: Path) -> tuple[list[str], list[str]]:
    """A line for each file beside `weights` that is not as it was certified, and the files of graphs that are.

    A graph of which no file is there is none: it need not be fetched with the weights.
    """
    problems: list[str] = []
    same: list[str] = []
    for entry in exports:
        there = {name for name in entry.files if beside(weights, name).is_file()}
        for name, sha256 in entry.files.items() if there else ():
            if name not in there:
                problems.append(f"{plain(name)}: certified, and not here")
            elif file_sha256(beside(weights, name)) != sha256:
                problems.append(f"{plain(name)}: other content than certified")
            else:
                same.append(name)
    return problems, same
