"""An ONNX file of a stranger: nothing in it is believed, and what is wrong is told in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import from_array, to_array

from converter.onnx.file import read_onnx
from converter.onnx.subject import same_weights
from converter.parity.capture import load_capture
from tests.onnx.conftest import Small, exported, run


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return exported(tmp_path_factory.mktemp("onnx"), "--size", "96x160", "--tokens", "13")


def saying(**changes: Any) -> Callable[[Any], None]:
    """A graph that says something else of itself."""

    def change(graph: Any) -> None:
        (entry,) = graph.metadata_props
        entry.value = json.dumps(json.loads(entry.value) | changes)

    return change


def outputs_of_nothing(graph: Any) -> None:
    """A wrong weight, and outputs whose names belong to no activation, so that nothing would be compared."""
    (bias,) = (tensor for tensor in graph.graph.initializer if tensor.name == "backbone.norms.0.bias")
    bias.CopyFrom(from_array(to_array(bias) + np.float32(1), bias.name))
    names = [node.name for node in graph.graph.output]
    saying(outputs={name: f"x{number}" for number, name in enumerate(names)})(graph)


def another_rank(graph: Any) -> None:
    del graph.graph.input[0].type.tensor_type.shape.dim[2:]


def elsewhere(graph: Any) -> None:
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def missing_output(graph: Any) -> None:
    del graph.graph.output[3]


def sparse(graph: Any) -> None:
    graph.graph.sparse_initializer.add()


WRONG: dict[str, tuple[Callable[[Any], None], int, str]] = {
    "outputs of nothing": (outputs_of_nothing, 7, "does not say just which of its outputs are the model's"),
    "no outputs": (saying(outputs={}), 7, "does not say just which of its outputs are the model's"),
    "an output that is not there": (missing_output, 7, "as it says"),
    "other sizes": (saying(config={"embed_dim": 10**9}), 7, ""),
    "another model": (saying(model="other"), 7, "is of a model that is not known here"),
    "another table": (saying(table="mmdet-glip"), 7, "does not say just which of its outputs"),
    "text as a size": (saying(size=["8", "9"]), 7, "what it says of itself is not what this version"),
    "lists of numbers": (saying(state_dicts=[1, 2]), 7, "what it says of itself is not what this version"),
    "float64": (saying(dtype="float64"), 7, "what it says of itself is not what this version"),
    "another rank": (another_rank, 7, "onnxruntime does not take it"),
    "data elsewhere": (elsewhere, 3, "which is no file of weights beside it"),
    "sparse tensors": (sparse, 7, "has sparse tensors or functions"),
    "nothing of itself": (lambda graph: graph.metadata_props.pop(), 7, "does not say what it is"),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_is_refused_in_one_sentence(what: str, small: Small, tmp_path: Path) -> None:
    change, code, said = WRONG[what]
    graph = onnx.load(small.graph)
    change(graph)
    (tmp_path / "wrong.onnx").write_bytes(graph.SerializeToString())
    result = run("parity", tmp_path / "wrong.onnx", "--reference", small.capture, "-q")
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1), result.output
    assert said in result.stderr


def test_what_is_no_file_or_no_graph_is_told(small: Small, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")
    (tmp_path / "cut.onnx").write_bytes(small.graph.read_bytes()[:-1000])
    (tmp_path / "empty.onnx").touch()
    for name in ("pipe", "zero", "cut", "empty", "absent"):
        result = run("parity", tmp_path / f"{name}.onnx", "--reference", small.capture)
        assert result.exit_code in (3, 7), (name, result.output)
        assert result.stderr.count("\n") == 1


def test_reports_do_not_replace_a_graph(small: Small, tmp_path: Path) -> None:
    graph = tmp_path / "small.onnx"
    graph.write_bytes(small.graph.read_bytes())
    for option in ("--html", "--junit", "--summary"):
        assert run("parity", graph, "--reference", small.capture, option, graph).exit_code == 6
    assert graph.read_bytes() == small.graph.read_bytes()


def test_it_says_of_which_weights_it_is(small: Small) -> None:
    file, one, other = (
        read_onnx(small.graph),
        {"dtype": "F32", "sha256": "1" * 64},
        {"dtype": "F32", "sha256": "2" * 64},
    )
    of_one = replace(file, about=replace(file.about, state_dicts=(one,)))
    with load_capture(small.capture) as capture:
        facts = capture.facts
        assert same_weights(of_one, capture) is None
        assert same_weights(of_one, replace(capture, facts={**facts, "state_dict": one})) is True
        assert same_weights(of_one, replace(capture, facts={**facts, "state_dict": other})) is False
        assert same_weights(of_one, replace(capture, facts={**facts, "state_dict": {**other, "dtype": "F16"}})) is None
