"""An exported graph has the model's weights, computes what it computes for any size, and is compared with captures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.numpy_helper import to_array
from safetensors.torch import load_file

from tests import ROOT
from tests.onnx.conftest import SMALLER, Small, capture, exported, run
from tests.support.small_glip import random_inputs, small_glip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """For any size, with all that captures have."""
    return exported(tmp_path_factory.mktemp("onnx"), "--taps")


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # one of these tests makes it fail
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_every_weight_is_in_it_with_its_bits(small: Small) -> None:
    found = {tensor.name: to_array(tensor) for tensor in onnx.load(small.graph).graph.initializer}
    for name, weight in load_file(small.weights).items():
        assert np.array_equal(found[name].view(np.uint32), weight.numpy().view(np.uint32)), name
    assert small.said["unused"] == []


def test_inputs_and_outputs_have_the_names_of_the_documents(small: Small) -> None:
    graph = session(small.graph)
    assert {node.name: (node.type, node.shape) for node in graph.get_inputs()} == {
        "images": ("tensor(float)", ["batch", 3, "height", "width"]),
        "input_ids": ("tensor(int64)", ["batch", "tokens"]),
        "attention_mask": ("tensor(int64)", ["batch", "tokens"]),
    }
    raw = [f"{part}.{level}" for part in ("token_logits", "box_deltas", "centerness") for level in range(5)]
    outputs = {node.name: node.shape for node in graph.get_outputs()}
    assert set(raw) <= outputs.keys()
    assert outputs["box_deltas.1"] == ["batch", 4, "2*(height/32)", "2*(width/32)"]
    assert set(small.said["outputs"].values()) == set(small.taps)
    onnx.checker.check_model(onnx.load(small.graph))


def test_nothing_in_it_names_this_machine(small: Small) -> None:
    content = small.graph.read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize(
    ("batch", "height", "width", "tokens"),
    [(2, 96, 160, 40), (1, 160, 224, 13), (3, 288, 32, 1), (1, 32, 32, 256), (2, 64, 608, 7)],
)
def test_one_file_serves_every_size(batch: int, height: int, width: int, tokens: int, small: Small) -> None:
    images, ids, mask = random_inputs(batch, height, width, tokens, padding=3 if tokens > 3 else 0)
    with torch.inference_mode():
        out = small_glip(torch.float32, **SMALLER)(images, ids, mask)
    names = {f"{part}.{level}": value for part, maps in out._asdict().items() for level, value in enumerate(maps)}
    given = {"images": images.numpy(), "input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    for expected, found in zip(names.values(), session(small.graph).run(list(names), given), strict=True):
        torch.testing.assert_close(torch.from_numpy(found)[..., : expected.shape[-1]], expected, rtol=2e-4, atol=2e-4)


def test_a_size_that_it_is_not_made_for_is_no_result(small: Small) -> None:
    images, ids, mask = random_inputs(1, 75, 101, 13)
    with pytest.raises(Exception, match=r"(?i)reshape"):
        session(small.graph).run(
            None, {"images": images.numpy(), "input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        )


def test_it_is_compared_with_a_capture_tap_by_tap(small: Small, tmp_path: Path) -> None:
    page, xml = tmp_path / "page.html", tmp_path / "parity.xml"
    result = run("parity", small.graph, "--reference", small.capture, "--json", "--html", page, "--junit", xml)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["verdict"], report["dtype"], report["device"]) == ("pass", "float32", "cpu")
    assert {tap["name"] for tap in report["modes"]["propagated"]} > set(small.taps)  # and anchors, which are derived
    assert report["settings"]["onnxruntime"] == onnxruntime.__version__
    assert [image["found"] for image in report["detections"]] == [image["expected"] for image in report["detections"]]
    assert page.exists()
    assert xml.exists()


def test_a_weight_that_was_changed_in_it_is_found(small: Small, tmp_path: Path) -> None:
    graph = onnx.load(small.graph)
    (bias,) = (tensor for tensor in graph.graph.initializer if tensor.name == "backbone.norms.0.bias")
    changed = to_array(bias) + np.float32(0.01)
    bias.CopyFrom(onnx.numpy_helper.from_array(changed, bias.name))
    onnx.save(graph, tmp_path / "changed.onnx")
    result = run("parity", tmp_path / "changed.onnx", "--reference", small.capture, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["first"] == "backbone.body.1"  # what that norm gives


def test_a_capture_of_other_weights_is_refused(small: Small, tmp_path: Path) -> None:
    official = ROOT / "tests" / "data" / "captures" / "glip-t.safetensors"
    assert run("parity", small.graph, "--reference", official).exit_code == 8
    model = small_glip(**SMALLER)
    with torch.no_grad():
        model.head.bias += 1
    result = run("parity", small.graph, "--reference", capture(model, tmp_path / "other.safetensors", 96, 160, 13))
    assert result.exit_code == 1


@pytest.mark.parametrize(
    "options", [["--dtype", "float64"], ["--device", "cuda"], ["--coverage"], ["--mutate", "3"], ["--tf32"]]
)
def test_what_is_of_models_is_refused_for_a_graph(options: list[str], small: Small) -> None:
    result = run("parity", small.graph, "--reference", small.capture, *options)
    assert result.exit_code == 2
    assert "an exported graph runs as it is" in result.stderr


def test_a_size_in_pixels_weights_beside_it_and_the_same_bytes_again(small: Small, tmp_path: Path) -> None:
    graph, odd = tmp_path / "fixed.onnx", tmp_path / "odd.safetensors"
    capture(small_glip(**SMALLER), odd, 75, 101, 13)
    options = ["--size", "75x101", "--tokens", "13", "--external-data", "-q", "--json"]
    made = run("export", small.weights, graph, *options)
    assert made.exit_code == 0, made.output
    assert set(json.loads(made.stdout)["files"]) == {"fixed.onnx", "fixed.onnx.data"}
    again = tmp_path / "again" / "fixed.onnx"
    again.parent.mkdir()
    assert run("export", small.weights, again, *options).exit_code == 0
    for name in ("fixed.onnx", "fixed.onnx.data"):
        assert again.with_name(name).read_bytes() == graph.with_name(name).read_bytes()
    assert run("parity", graph, "--reference", odd).exit_code == 0
    other = run("parity", graph, "--reference", small.capture)
    assert other.exit_code == 7
    assert "Export with --size 96x160" in other.stderr
    (tmp_path / "fixed.onnx.data").rename(tmp_path / "elsewhere")
    assert run("parity", graph, "--reference", odd).exit_code == 3
    assert run("export", small.weights, graph).exit_code == 6  # it exists


@pytest.mark.parametrize("options", [["--gathers"], ["--dtype", "float16"]])
def test_without_the_operator_and_in_sixteen_bits(options: list[str], small: Small, tmp_path: Path) -> None:
    graph = tmp_path / "other.onnx"
    made = run("export", small.weights, graph, "--size", "96x160", "--tokens", "13", *options, "-q")
    assert made.exit_code == 0, made.output
    content = onnx.load(graph)
    operators = {node.op_type for node in content.graph.node}
    assert ("DeformConv" in operators) is ("--gathers" not in options)
    assert content.opset_import[0].version == (18 if "--gathers" in options else 20)
    gate = [] if "--gathers" in options else ["--gate", "0.05"]  # the capture has no error of 16 bits
    result = run("parity", graph, "--reference", small.capture, *gate)
    assert result.exit_code == 0, result.output


def test_what_cannot_be_exported_is_refused_before_any_work(small: Small, tmp_path: Path) -> None:
    assert run("export", small.weights, tmp_path / "graph.pt").exit_code == 6
    assert run("export", small.weights, tmp_path / "graph.onnx", "--opset", "18").exit_code == 2
    assert run("export", small.weights, tmp_path / "graph.onnx", "--size", "800").exit_code == 2
    assert run("export", small.weights, tmp_path / "graph.onnx", "--tokens", "257").exit_code == 7
    dry = run("export", small.weights, tmp_path / "graph.onnx", "--dry-run", "--json")
    assert (dry.exit_code, json.loads(dry.stdout)["written"]) == (0, False)
    assert list(tmp_path.iterdir()) == []
