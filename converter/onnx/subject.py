"""An exported graph, run by onnxruntime, as parity compares it with a capture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import onnxruntime
import torch
from torch import Tensor

from converter.display import file_name, listed, plain
from converter.errors import CaptureError, ModelError
from converter.mapping.entries import Tap
from converter.mapping.load import load_table
from converter.onnx.file import OnnxFile
from converter.parity.capture import Capture, Detections
from converter.parity.detections import compare_detections
from converter.parity.family import Family
from converter.parity.graph import output_name
from converter.parity.subject import Subject
from converter.parity.taps import OnValue

_FATAL = 4  # of onnxruntime's severities: what it logs of errors is not made plain, and is in its exceptions
_TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)", "tensor(int64)", "tensor(bool)")
_MOST = 1 << 28  # numbers of an input that nobody asked for
# how far boxes of a graph may be from those that its own outputs give: rounding, near ties, a hundredth that ties
_PIXELS, _SCORES, _OTHERS = 1e-2, 1e-4, 50  # the last: one in so many may be another


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A file that onnxruntime has opened, on the CPU."""

    file: OnnxFile
    session: onnxruntime.InferenceSession

    @classmethod
    def open(cls, file: OnnxFile, threads: int | None = None) -> Graph:
        """ModelError if onnxruntime does not take it."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            session = onnxruntime.InferenceSession(file.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime, which has no class above its own
            raise ModelError(
                f"{file_name(file.path)}: onnxruntime does not take it: {plain(str(error), 300)}"
            ) from None
        return cls(file, session)

    def run(self, inputs: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs by their names. ModelError if the inputs do not fit it."""
        given = {}
        nodes = self.session.get_inputs()
        lengths: dict[Any, int] = {}
        for node in nodes:
            if node.name in inputs:
                lengths |= dict(zip(node.shape or (), inputs[node.name].shape, strict=False))
        for node in nodes:
            if node.name not in inputs and node.name not in self.file.about.asked:
                raise ModelError(f"{file_name(self.file.path)}: needs the input {plain(node.name)}, which is not here.")
            value = inputs[node.name] if node.name in inputs else _nothing_asked(node, lengths)
            given[node.name] = (value.to(self.dtype) if value.is_floating_point() else value).numpy(force=True)
        try:
            found = self.session.run(list(names), given)
        except Exception as error:
            raise ModelError(
                f"{file_name(self.file.path)}: onnxruntime does not run it on these inputs: {plain(str(error), 300)}"
            ) from None
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""
        found = {"float32": torch.float32, "float16": torch.float16}.get(self.file.about.dtype)
        if found is None:
            raise ModelError(f"{file_name(self.file.path)}: says that it computes in {plain(self.file.about.dtype)}.")
        return found


@dataclass(frozen=True, eq=False)
class GraphSubject(Subject):
    """A graph as it is compared. `model`: of its sizes, without numbers; what is computed of outputs needs it."""

    is_whole: ClassVar[bool] = True
    graph: Graph = field(kw_only=True)

    @classmethod
    def of(cls, family: Family[Any], graph: Graph) -> GraphSubject:
        """ModelError if its sizes are none of the family's, or it does not give what it says."""
        with torch.device("meta"):
            model = family.build(graph.file.about.config)
        subject = cls(family, model.to(graph.dtype), graph=graph)
        subject.check()
        return subject

    def check(self) -> None:
        """ModelError unless the outputs are those of the model, each under its name, and there as numbers.

        Otherwise nothing might be compared: what it says of itself anybody can write.
        """
        about, where = self.graph.file.about, file_name(self.graph.file.path)
        taps = load_table(self.family.table).bind(self.config).taps
        known = {output_name(tap): tap.source for tap in taps}
        raw = {output_name(tap) for tap in taps if not tap.target}
        stated = about.outputs.items()
        if about.table != self.family.table or not stated <= known.items() or not raw <= about.outputs.keys():
            raise ModelError(f"{where}: does not say just which of its outputs are the model's. Export it again.")
        there = {node.name: node.type for node in self.graph.session.get_outputs()}
        for name in (*about.outputs, *about.found):
            if there.get(name) not in _TYPES:
                raise ModelError(f"{where}: does not give {plain(name)} as numbers, as it says. Export it again.")

    @cached_property
    def outputs(self) -> Mapping[str, str]:
        """Of each activation that the graph gives its output's name."""
        return {tap: name for name, tap in self.graph.file.about.outputs.items()}

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        about = self.graph.file.about
        return {
            **super().settings,
            "threads": self.graph.session.get_session_options().intra_op_num_threads,
            "onnxruntime": onnxruntime.__version__,
            "opset": about.opset,
            "exported_by": about.torch,
        }

    def computes(self, tap: Tap) -> bool:
        return tap.source in self.outputs

    def observed(self, inputs: Mapping[str, Tensor], taps: Sequence[Tap], on_value: OnValue) -> Any:
        for name, value in inputs.items():
            self._check(name, value)
        found = self.graph.run(inputs, list(self.outputs.values()))
        for tap in taps:
            if on_value(tap, found[self.outputs[tap.source]]) is not None:
                raise CaptureError("an exported graph runs as a whole: no activation of it can be replaced")
        return self.family.output(found)

    def detected(self, inputs: Mapping[str, Tensor], out: Any, facts: Mapping[str, Any]) -> Sequence[Detections]:
        if not self.graph.file.about.found:
            return super().detected(inputs, out, facts)
        own = super().detected(inputs, out, facts)
        named = self.graph.run({**inputs, **self.family.asked(inputs, facts)}, self.graph.file.about.found)
        try:
            found = self.family.objects(named, len(own))
        except (KeyError, IndexError, RuntimeError) as error:
            where = file_name(self.graph.file.path)
            raise ModelError(f"{where}: what it finds is not as it says: {plain(str(error), 200)}") from None
        for number, pair in enumerate(zip(own, found, strict=True)):
            self._check_boxes(number, *pair)
        return found

    def _check_boxes(self, number: int, own: Detections, found: Detections) -> None:
        """CaptureError unless a picture's boxes are those that the graph's own outputs, which are compared, give."""
        result = compare_detections(own, found, "float64")
        far = result.same_order and (result.pixels > _PIXELS or result.scores > _SCORES)
        others = max(result.expected, result.found) - result.matched
        if far or others > max(result.expected, result.found) // _OTHERS:
            where = file_name(self.graph.file.path)
            raise CaptureError(
                f"{where}: image {number}: its boxes are not what its own outputs give: {result.matched} of "
                f"{result.expected} are. It finds by other rules, or the file was changed. Export it again."
            )

    def run(self, inputs: Mapping[str, Tensor]) -> Any:
        return self.observed(inputs, (), lambda tap, value: None)

    def _check(self, name: str, value: Tensor) -> None:
        """ModelError, with what to do, where an input is of a length that the graph is not made for."""
        node = next((node for node in self.graph.session.get_inputs() if node.name == name), None)
        if node is None:
            return
        about, where = self.graph.file.about, file_name(self.graph.file.path)
        if value.dim() == 4 and about.size is None and any(side % about.multiple for side in value.shape[2:]):
            sides = "x".join(map(str, value.shape[2:]))
            said = f"takes pictures whose sides are multiples of {about.multiple}, and these are of {sides}"
            raise ModelError(f"{where}: {said}. Export with --size {sides}.")
        wanted = [length if isinstance(length, int) else None for length in node.shape or ()]
        here = list(value.shape)
        if len(wanted) == len(here) and all(w in (None, length) for w, length in zip(wanted, here, strict=True)):
            return
        option = f"--size {'x'.join(map(str, here[2:]))}" if len(here) > 2 else f"--tokens {here[-1]}"
        takes = f"takes {plain(name)} of {listed(plain(str(length)) for length in node.shape or ())}"
        raise ModelError(f"{where}: {takes}, and these are of {listed(map(str, here))}. Export with {option}.")


def _nothing_asked(node: Any, lengths: Mapping[Any, int]) -> Tensor:
    """Zeros for an input of detection where its results are not wanted: onnxruntime insists on it, and computes all."""
    shape = [length if isinstance(length, int) else lengths.get(length, 1) for length in node.shape or ()]
    if math.prod(shape) > _MOST:
        raise ModelError(f"its input {plain(node.name)} has {math.prod(shape)} numbers, which is none of detection.")
    return torch.zeros(shape, dtype=torch.bool if node.type == "tensor(bool)" else torch.int64)


def same_weights(file: OnnxFile, capture: Capture) -> bool | None:
    """Whether the capture was made of the weights that a file was exported from; None where nothing says so."""
    captured = capture.facts.get("state_dict")
    if capture.table not in (None, file.about.table):
        return None
    if captured is None or not file.about.state_dicts:
        return None
    if captured in file.about.state_dicts:
        return True
    return False if any(known.get("dtype") == captured["dtype"] for known in file.about.state_dicts) else None
