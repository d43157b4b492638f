"""What is converted, over what, and how: the layouts of a result, each new and over an earlier conversion.

The weights are those of `tests.support.tiny`, a few kilobytes, so that a run takes milliseconds. The earlier conversion
is of other weights, of a model with one layer more.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.support.tiny import tiny_weights, write_table

TABLE = "in/tiny-table.json"
BYSTANDER = "of-the-user.txt"


@dataclass(frozen=True, slots=True)
class Layout:
    """A form that a result has. `source` and `options` of the command; `keeps`: it holds every tensor of the source."""

    name: str
    destination: str
    source: str
    options: tuple[str, ...]
    keeps: bool

    @property
    def is_archive(self) -> bool:
        """Whether it is what torch.load reads, in the naming of the checkpoint that everything comes from."""
        return self.destination.endswith(".pth")


_FROM = ("--table", TABLE)
LAYOUTS = (
    Layout("file .safetensors", "d/out.safetensors", "{}.pth", _FROM, False),
    Layout("file .pth", "d/out.pth", "{}.safetensors", ("--to", TABLE), True),
    Layout("pair", "d/out.safetensors", "{}.pth", (*_FROM, "--keep-residue"), True),
    Layout("folder", "d/out", "{}.pth", _FROM, False),
    Layout("folder with residue", "d/out", "{}.pth", (*_FROM, "--keep-residue"), True),
    Layout("shards", "d/out", "{}.pth", (*_FROM, "--max-shard-size", "500"), False),
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A layout, new or, by --force, over an earlier conversion of other weights.

    `old`: the checkpoint of the earlier one; with that of `twin` the residues alone differ.
    """

    layout: Layout
    force: bool
    old: str = "old"

    @property
    def name(self) -> str:
        """As the table shows it."""
        over = " over its twin" if self.old == "twin" else ""
        return f"{self.layout.name}, {'--force' if self.force else 'new'}{over}"

    def command(self, source: str = "new") -> list[str]:
        """The arguments of `converter`, to be run in a workplace."""
        layout = self.layout
        files = ["--src", f"in/{layout.source.format(source)}", "--dst", layout.destination]
        return ["convert", *files, *layout.options, *(["--force"] if self.force else [])]

    def back(self, destination: str) -> list[str]:
        """Read what lies at the destination, as a user would: all of it becomes what torch.load reads."""
        return ["convert", "--src", self.layout.destination, "--to", TABLE, "--dst", destination, "--force"]


SOURCES = ("new", "old", "twin")
SCENARIOS = (
    *(Scenario(layout, force) for layout in LAYOUTS for force in (False, True)),
    *(Scenario(layout, True, "twin") for layout in LAYOUTS if layout.name == "pair"),
)


def make_sources(folder: Path) -> None:
    """`in/` of a workplace: the checkpoints of `SOURCES`, and the table. `d/` is where results go."""
    (folder / "in").mkdir(parents=True)
    write_table(folder / "in")
    torch.save(tiny_weights(layers=2, seed=1), folder / "in" / "new.pth")
    torch.save(tiny_weights(layers=3, seed=2), folder / "in" / "old.pth")
    twin = tiny_weights(layers=2, seed=1)
    twin["module.training.weight"] += 1
    torch.save(twin, folder / "in" / "twin.pth")
    empty_destination(folder)


def empty_destination(folder: Path) -> None:
    """The folder in which results are put holds a file of somebody else, and nothing more."""
    shutil.rmtree(folder / "d", ignore_errors=True)
    (folder / "d").mkdir()
    (folder / "d" / BYSTANDER).write_text("not ours\n")
