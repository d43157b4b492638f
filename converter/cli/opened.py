"""What is compared, opened: weights, or a graph that `converter export` made of some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from converter.cli.output import note
from converter.display import file_name
from converter.errors import ModelError
from converter.mapping.documents import names_of

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.onnx.file import OnnxFile
    from converter.parity.capture import Capture
    from converter.parity.run import Report, Weights
    from converter.parity.subject import Subject

_OF_MODELS = ("root", "device", "dtype", "tf32", "cover", "mutate")  # parameters that a graph has no use for


def is_exported(path: Path) -> bool:
    """Whether a command was given an exported graph, by the name of its file."""
    return path.suffix == ".onnx" and not path.is_dir()


def refuse_options() -> None:
    """click.UsageError for an option that says how a model runs: a graph was made for one dtype, and runs as it is."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") not in (None, ParameterSource.DEFAULT)
        if parameter.name in _OF_MODELS and given:
            raise click.UsageError(
                f"{parameter.opts[0]} is of a model; an exported graph runs as it is, in its own dtype, on the CPU"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What is compared: weights, of which `checkpoint` is opened, or an exported graph."""

    path: Path
    checkpoint: Checkpoint | None = None
    graph: OnnxFile | None = None

    @property
    def files(self) -> Sequence[Path]:
        """All that it is read from."""
        return self.checkpoint.files if self.checkpoint else self.graph.paths if self.graph else ()

    def weights(self, captures: Sequence[Capture], refusal: str | None = "") -> list[Weights]:
        """For each capture what is known of the weights; OtherWeightsError, with `refusal` at its end, if it is of
        others. None refuses nothing."""
        if self.checkpoint is not None:
            return known_weights(self.path, self.checkpoint, captures, refusal)
        from converter.onnx.subject import same_weights

        assert self.graph is not None
        return _known(self.path, captures, [same_weights(self.graph, capture) for capture in captures], False, refusal)

    def load(self, device: str, dtype: str, tf32: bool, threads: int | None) -> Subject:
        """Where and as it is to run; a graph runs as it was exported. Raises as `load_subject`."""
        from converter.cli.families import family_of, load_subject

        if self.checkpoint is not None:
            return load_subject(self.path, self.checkpoint, device, dtype, tf32, threads)
        from converter.onnx.subject import Graph, GraphSubject

        assert self.graph is not None
        if self.graph.about.model not in names_of("spec"):
            where = file_name(self.path)
            raise ModelError(f"{where}: is of a model that is not known here. Install the family that brings it.")
        if all(name != tap for name, tap in self.graph.about.outputs.items()):
            note(f"{file_name(self.path)}: has the outputs alone to compare; --taps of export adds what is between")
        return GraphSubject.of(family_of(self.graph.about.model), Graph.open(self.graph, threads))

    def suspected(self, reports: list[Report]) -> list[Report]:
        """The reports with what the record of the weights tells of them."""
        from converter.parity.suspects import with_suspects

        return with_suspects(reports, self.checkpoint, self.path) if self.checkpoint else reports


@contextmanager
def open_compared(path: Path, root: str | None = None) -> Iterator[Opened]:
    """What is at `path`. Raises as `open_weights`, and as `read_onnx`."""
    from converter.cli.families import open_weights

    if not is_exported(path):
        with open_weights(path, root) as checkpoint:
            yield Opened(path, checkpoint)
        return
    from converter.onnx.file import read_onnx

    yield Opened(path, graph=read_onnx(path))


def known_weights(
    model: Path, checkpoint: Checkpoint, captures: Sequence[Capture], refusal: str | None = ""
) -> list[Weights]:
    """As `Opened.weights`, of a model."""
    from converter.cli.families import family_of_weights
    from converter.parity.same_weights import same_weights

    family = family_of_weights(model, checkpoint)
    same = [same_weights(capture, model, checkpoint, family) for capture in captures]
    return _known(model, captures, same, checkpoint.layout == "in-memory", refusal)


def _known(
    path: Path, captures: Sequence[Capture], same: Sequence[bool | None], converted: bool, refusal: str | None
) -> list[Weights]:
    from converter.parity.run import Weights
    from converter.parity.same_weights import refuse_other_weights

    if refusal is not None:
        refuse_other_weights(path, list(zip(captures, same, strict=True)), refusal)
    return [Weights(path, converted, is_same) for is_same in same]
