"""A user without PyTorch: docs/onnx.md, its program as it stands there, finds what the detector finds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from PIL import Image

from converter.cli import main
from converter.glip import Detector
from converter.parity.capture import write_capture
from converter.parity.family import Inputs
from converter.parity.record import record
from tests import ROOT
from tests.support.saved_glip import save
from tests.support.small_glip import random_inputs, small_glip, subject

TEXT = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8").split("## Without PyTorch")[1]
EXPORT, START = re.findall(r"^\$ (.*)$", TEXT, re.MULTILINE)
PROGRAM = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[0]
WORDS = "person. traffic light. red umbrella."
# of a caption at most 256 tokens
MANY = ". ".join(Detector(small_glip(torch.float32, vocab_size=30522)).tokenizer.pieces[2000:2150]) + "."


def run(folder: Path, words: Sequence[str], first: Path = ROOT) -> str:
    """What a program prints."""
    environment = {**os.environ, "PYTHONPATH": f"{first}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document's files: a small model that knows BERT's words, exported, a picture, and the program."""
    folder = tmp_path_factory.mktemp("onnx")
    model = small_glip(torch.float32, vocab_size=30522, depths=[1, 1, 1, 1], head_blocks=1, text_layers=1, fusion=False)
    save(model, folder / "glip-t.safetensors")
    Image.fromarray(skimage.data.rocket()).resize((1000, 150)).save(folder / "street.jpg")
    (folder / "boxes.py").write_text(PROGRAM, encoding="utf-8")
    without = folder / "without"
    without.mkdir()
    (without / "torch.py").write_text("raise ImportError('there is no PyTorch')", encoding="utf-8")
    program, *words = shlex.split(EXPORT)
    run(folder, ["-m", program, *words])
    return folder


@pytest.mark.parametrize("prompt", [WORDS, MANY], ids=["three", "more than fit one caption"])
def test_the_documents_program_finds_what_the_detector_finds(folder: Path, prompt: str) -> None:
    code = f"""if True:
        import json, sys, boxes, onnxruntime
        found = boxes.detect(onnxruntime.InferenceSession("glip-t.onnx"), "street.jpg", {prompt!r}, 0.0)
        print(json.dumps([found, any(name.partition(".")[0] == "torch" for name in sys.modules)]))
    """
    found, has_torch = json.loads(run(folder, ["-c", code], folder / "without"))
    detector = Detector.from_pretrained(folder / "glip-t.safetensors")
    expected = detector.detect(folder / "street.jpg", prompt, 0.0)
    assert len(found) == len(expected) * len(detector.captions(prompt))  # of each caption the best hundred
    found = found[: len(expected)]
    assert not has_torch
    assert [phrase for phrase, _, _ in found] == list(expected.phrases)
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose([box for _, _, box in found], expected.boxes, rtol=0, atol=1e-3)


def test_the_documents_command_prints_it(folder: Path) -> None:
    printed = run(folder, shlex.split(START)[1:], folder / "without").splitlines()
    assert printed
    assert all(re.fullmatch(r"(person|traffic light) 0\.\d{3}( \d+\.\d){4}", line) for line in printed)


def test_the_program_is_short() -> None:
    assert len(PROGRAM.splitlines()) <= 50


@pytest.fixture(scope="module")
def capture(folder: Path) -> Path:
    """What the model itself finds in two pictures, in float64."""
    model = Detector.from_pretrained(folder / "glip-t.safetensors", dtype="float64").model
    images, ids, mask = random_inputs(2, 96, 160, 13)
    words = {"1": [1], "2": [3, 4]}
    facts = {"captions": ["", ""], "image_sizes_hw": [[96, 160], [87, 140]], "positive_map_label_to_token": words}
    inputs = Inputs({"images": images, "input_ids": ids, "attention_mask": mask}, facts)
    write_capture(folder / "capture.safetensors", *record(subject(model), inputs, "capture"), compact=False)
    return folder / "capture.safetensors"


def test_parity_compares_the_boxes_that_a_file_gives_itself(folder: Path, capture: Path) -> None:
    def told(name: str, code: int) -> str:
        result = CliRunner().invoke(main, ["parity", str(folder / name), "--reference", str(capture), "--json"])
        assert result.exit_code == code, result.output
        return result.stdout

    for image in json.loads(told("glip-t.onnx", 0))["detections"]:
        assert image["same_order"]
        assert image["expected"] > 50
        assert image["pixels"] < 1e-3
        assert image["scores"] < 1e-5
    graph = onnx.load(folder / "glip-t.onnx")
    (suppression,) = (node for node in graph.graph.node if node.op_type == "NonMaxSuppression")
    (limit,) = (node for node in graph.graph.node if suppression.input[3] in node.output)
    limit.attribute[0].f = 0.3  # the overlap above which boxes are dropped
    onnx.save(graph, folder / "changed.onnx")
    assert "its boxes are not what its own outputs give" in told("changed.onnx", 8)
