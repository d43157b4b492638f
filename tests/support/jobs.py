"""Conversions of a few numbers to every form of result, and which of two sources a result on the disk is of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from tests.support.program import Program
from tests.support.tiny import expected_target, tiny_weights, write_table

Listing = dict[str, bytes | None]  # every name below a folder, hidden ones too: its bytes, or None if it is no file


@dataclass(frozen=True)
class Form:
    """A form of result: the name to write, and what else the command line says."""

    name: str
    options: tuple[str, ...] = ()


FORMS = {
    "file": Form("out.safetensors"),
    "archive": Form("out.pth", ("--to", "tiny-table.json")),
    "pair": Form("out.safetensors", ("--keep-residue",)),
    "folder": Form("out", ("--keep-residue",)),
    "shards": Form("out", ("--max-shard-size", "300")),
}
SEEDS = (0, 1)


@dataclass(frozen=True)
class Jobs:
    """Two sources and their table in a folder, and what they become: form -> seed -> listing."""

    folder: Path
    results: Mapping[str, Mapping[int, Listing]]

    def arguments(self, form: str, seed: int, *, force: bool = False) -> list[str]:
        """The command line, but for the source that it reads; to be run in the folder of the result."""
        table = str(self.folder / "tiny-table.json")
        options = [table if option == "tiny-table.json" else option for option in FORMS[form].options]
        source = str(self.folder / f"source{seed}.pth")
        rest = ["--table", table, "--dst", FORMS[form].name, *options, *(["--force"] * force)]
        return ["convert", "--src", source, *rest]

    def put(self, form: str, seed: int, folder: Path) -> None:
        """Have `folder` hold what a conversion would leave in it."""
        for name, content in self.results[form][seed].items():
            path = folder / name
            path.mkdir() if content is None else path.write_bytes(content)

    def seed(self, form: str, folder: Path) -> int | None:
        """Which source's result is all that `folder` holds; None: it is empty. AssertionError for anything else."""
        found = listing(folder)
        if not found:
            return None
        whole = [seed for seed in SEEDS if found == self.results[form][seed]]
        assert whole, f"neither nothing nor a whole result: {sorted(found)}"
        return whole[0]


def make_jobs(folder: Path, program: Program) -> Jobs:
    """Write the sources, and convert them once; the values of these results are checked."""
    write_table(folder)
    for seed in SEEDS:
        torch.save(tiny_weights(seed=seed), folder / f"source{seed}.pth")
    results: dict[str, dict[int, Listing]] = {}
    jobs = Jobs(folder, results)
    for form in FORMS:
        for seed in SEEDS:
            place = folder / f"{form}{seed}"
            place.mkdir()
            done = program(*jobs.arguments(form, seed), cwd=place)
            assert done.code == 0, done.err
            results.setdefault(form, {})[seed] = listing(place)
            _check_values(form, seed, place)
    return jobs


def listing(folder: Path) -> Listing:
    """What is in a folder, at any depth; of a link, where it leads to."""

    def content(path: Path) -> bytes | None:
        if path.is_symlink():
            return b"-> " + os.fsencode(os.readlink(path))
        return path.read_bytes() if path.is_file() else None

    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*"))}


def _check_values(form: str, seed: int, place: Path) -> None:
    weights = tiny_weights(seed=seed)
    left_out = {name: weights.pop(f"module.{name}") for name in ("position_ids", "training.weight")}
    if form == "archive":
        found = torch.load(place / "out.pth", weights_only=True)
        assert {f"module.{name}" for name in found} == weights.keys()
        assert all(torch.equal(found[n].nan_to_num(), weights[f"module.{n}"].nan_to_num()) for n in found)
        return
    wanted = expected_target(weights)
    files = (
        [place / "out.safetensors"] if form in ("file", "pair") else sorted((place / "out").glob("model*.safetensors"))
    )
    assert len(files) == {"shards": 5}.get(form, 1)
    arrays = {name: array for file in files for name, array in load_file(file).items()}
    assert arrays.keys() == wanted.keys()
    assert all(np.array_equal(arrays[name], wanted[name], equal_nan=True) for name in wanted)
    if form in ("pair", "folder"):
        (residue,) = place.rglob("*residue.safetensors")
        assert np.array_equal(load_file(residue)["module.training.weight"], left_out["training.weight"].numpy())
    if form in ("folder", "shards"):
        assert json.loads((place / "out" / "conversion.json").read_text())["sha256"]
