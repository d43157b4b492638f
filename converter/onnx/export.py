"""A model as an ONNX graph, by torch.export. Its outputs are activations that taps name, so that it can be compared."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, InlinePass, RemoveUnusedNodesPass
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic

from converter.display import counted, listed
from converter.errors import ModelError
from converter.mapping.entries import Tap
from converter.parity.graph import Axis, Graph, output_name
from converter.parity.subject import Subject
from converter.parity.taps import observe


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """A graph, with its weights in memory.

    model    of onnx_ir; initializers that are weights have their names in the spec
    outputs  by the name of each output the tap whose activation it is, by its source-side name
    unused   weights that no output depends on, which are not in it
    """

    model: ir.Model
    outputs: Mapping[str, str]
    unused: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        tensors = (value.const_value for value in self.model.graph.initializers.values())
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class _Traced(nn.Module):
    """The model, returning what `taps` name, in their order, and then what its detection finds."""

    def __init__(self, model: nn.Module, taps: Sequence[Tap], graph: Graph) -> None:
        super().__init__()
        self.model = model
        self.taps = taps
        self.detection = graph.detection
        self.own = len(graph.inputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found: dict[str, Tensor] = {}

        def keep(tap: Tap, value: Tensor) -> None:
            found[output_name(tap)] = value

        with observe(self.model, self.taps, keep):
            out = self.model(*inputs[: self.own])
        activations = tuple(found[output_name(tap)] for tap in self.taps)
        if self.detection is None:
            return activations
        return (*activations, *self.detection(out, *inputs[self.own :]))


def export(
    subject: Subject,
    graph: Graph,
    taps: Sequence[Tap],
    opset: int,
    on_step: Callable[[str], object] = lambda step: None,
) -> Exported:
    """The model of `subject` as a graph whose outputs are `taps`, in the dtype and with the weights that it has.

    `on_step` is told what is begun. ModelError if a weight would not be in the graph as it is in the model.
    """
    traced = _Traced(subject.model, taps, graph)
    on_step("tracing the model")
    with torch.no_grad(), graph.context, _quiet():
        program = torch.export.export(
            traced,
            tuple(graph.all_inputs.values()),
            dynamic_shapes=(tuple(_dims(graph).values()),),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        on_step("translating it to ONNX")
        translated = torch.onnx.export(
            program, (), dynamo=True, opset_version=opset, optimize=False, verbose=False,
            custom_translation_table=dict(graph.operators),
        )  # fmt: skip
    assert translated is not None
    model = translated.model
    # not torch's own optimizer: its patterns take most of an hour for a large graph, and runtimes have theirs
    for tidy in (InlinePass(), CommonSubexpressionEliminationPass(), RemoveUnusedNodesPass()):
        tidy(model)
    _rename(model, graph, [*map(output_name, taps), *graph.found])
    return Exported(
        model,
        {output_name(tap): tap.source for tap in taps},
        _check_weights(model, {name: subject.paths[name] for name in subject.parameters}, subject.parameters),
    )


def _dims(graph: Graph) -> dict[str, dict[int, Any]]:
    """What torch.export is told of the axes: one of the same name is the same everywhere."""
    dims: dict[Axis, Any] = {}

    def dim(axis: Axis) -> Any:
        if axis not in dims:
            own = torch.export.Dim(axis.name, min=1, max=axis.most)
            dims[axis] = own if axis.multiple == 1 else axis.multiple * own
        return dims[axis]

    return {name: {number: dim(axis) for number, axis in graph.axes.get(name, {}).items()} for name in graph.all_inputs}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of itself meanwhile; and no length is taken for 1 because the example's is."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), symbolic.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _rename(model: ir.Model, graph: Graph, outputs: Sequence[str]) -> None:
    """Give inputs, outputs and lengths the names that documents have, and take away those of this machine's files."""
    for value, name in zip(model.graph.inputs, graph.all_inputs, strict=True):
        value.name = name
    symbols: dict[str, str] = {}
    for value in model.graph.inputs:
        for number, axis in graph.axes.get(str(value.name), {}).items():
            assert value.shape is not None
            for symbol in re.findall(r"s\d+", str(value.shape[number])):
                symbols[symbol] = axis.name if axis.multiple == 1 else f"({axis.name}/{axis.multiple})"
            value.shape[number] = axis.name
    for number, name in enumerate(outputs):
        if (value := model.graph.outputs[number]) in model.graph.outputs[:number]:  # one activation under two names
            model.graph.append(again := ir.Node("", "Identity", [value]))
            again.outputs[0].shape, again.outputs[0].type = value.shape, value.type
            value = model.graph.outputs[number] = again.outputs[0]
        value.name = name
        assert value.shape is not None
        symbols |= dict.fromkeys(re.findall(r"u\d+", str(value.shape[0])), "found")  # known by its values alone
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            _rename_lengths(value, symbols)
    for values in (model.graph.inputs, model.graph.outputs, model.graph.initializers.values()):
        for value in values:
            value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _rename_lengths(value: ir.Value, symbols: Mapping[str, str]) -> None:
    if value.shape is None:
        return
    for number, length in enumerate(value.shape):
        if not isinstance(length, int) and length.value is not None:
            value.shape[number] = re.sub(r"[su]\d+", lambda m: symbols.get(m[0], m[0]), length.value)


def _check_weights(
    model: ir.Model, paths: Mapping[str, str], parameters: Mapping[str, nn.Parameter]
) -> tuple[str, ...]:
    """Names of the weights that are not in the graph; those that are have every bit of the model's, and their names."""
    unused = []
    initializers = model.graph.initializers
    for name, parameter in parameters.items():
        value = initializers.get(f"model.{paths[name]}")
        if value is None:
            unused.append(name)
            continue
        value.name = name
        content = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        assert value.const_value is not None
        if not np.array_equal(np.frombuffer(value.const_value.tobytes(), np.uint8), content):
            raise ModelError(f"{name}: is not in the graph as it is in the model. Report it: this must not happen.")
    if len(unused) > len(parameters) // 2:
        raise ModelError(
            f"{counted(len(unused), 'weight')} of {len(parameters)} are not in the graph: {listed(unused, 5)}. "
            "Another version of torch may name them otherwise: report it, with that version."
        )
    return tuple(unused)
