"""What commands do with exported graphs: opening them, and knowing of which weights they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from converter.display import file_name
from converter.errors import ModelError
from converter.mapping.documents import names_of

if TYPE_CHECKING:
    from converter.onnx.file import OnnxFile
    from converter.onnx.subject import GraphSubject
    from converter.parity.capture import Capture
    from converter.parity.run import Weights

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


def open_graph(file: OnnxFile, threads: int | None = None) -> GraphSubject:
    """The graph in a file, to be compared. ModelError where nothing here can run it."""
    from converter.cli.families import family_of
    from converter.onnx.subject import Graph, GraphSubject

    if file.about.model not in names_of("spec"):
        raise ModelError(
            f"{file_name(file.path)}: is of a model that is not known here. Install the family that brings it."
        )
    return GraphSubject.of(family_of(file.about.model), Graph.open(file, threads))


def weights_of(file: OnnxFile, captures: Sequence[Capture], refusal: str | None) -> list[Weights]:
    """For each capture what is known of the weights that a graph was made of. Raises as `known_weights`."""
    from converter.onnx.subject import same_weights
    from converter.parity.run import Weights
    from converter.parity.same_weights import refuse_other_weights

    same = [same_weights(file, capture) for capture in captures]
    if refusal is not None:
        refuse_other_weights(file.path, list(zip(captures, same, strict=True)), refusal)
    return [Weights(file.path, False, is_same) for is_same in same]
