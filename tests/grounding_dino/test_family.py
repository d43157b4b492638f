"""Grounding DINO as a family: transformers' class filled, run, compared with itself and with its own mistakes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.checkpoint import open_checkpoint
from converter.errors import CaptureError, ConverterWarning, ModelError
from converter.grounding_dino import model as models
from converter.grounding_dino.family import FAMILY
from converter.grounding_dino.outputs import Output, detections_of, inputs_of
from converter.grounding_dino.switches import SWITCHES
from converter.mapping.spec import load_spec
from converter.parity.capture import Capture, load_capture, write_capture
from converter.parity.mutate import mutation_score
from converter.parity.record import record
from converter.parity.run import parity
from converter.parity.subject import Subject
from tests.support.random_grounding_dino import CONFIG, save, small_grounding_dino, subject


@pytest.fixture(scope="module")
def sound() -> Subject:
    return subject()


@pytest.fixture(scope="module")
def capture(sound: Subject, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    path = tmp_path_factory.mktemp("dino") / "small.safetensors"
    write_capture(path, *record(sound, FAMILY.sample_inputs(sound.config), "small"), compact=False)
    return load_capture(path)


def tuples(sizes: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}


def loaded(path: Path) -> torch.nn.Module:
    with open_checkpoint(path) as checkpoint:
        return models.loaded(path, checkpoint, CONFIG)


def test_sizes_and_names_are_those_of_the_spec(sound: Subject) -> None:
    assert sound.config == tuples(CONFIG)
    expected = load_spec("transformers-grounding-dino").tensors(tuples(CONFIG))
    assert {name: tuple(value.shape) for name, value in sound.parameters.items()} == expected


def test_every_number_of_a_file_is_loaded_and_nothing_else(tmp_path: Path) -> None:
    model = loaded(save(small_grounding_dino(), tmp_path))
    expected = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in FAMILY.parameters(model).items())
    known = {id(value) for value in FAMILY.parameters(model).values()}
    assert {id(value) for value in model.parameters()} == known
    built = dict(small_grounding_dino().named_buffers())
    assert all(torch.equal(value, built[name]) for name, value in model.named_buffers())


def test_a_file_that_does_not_fit_is_refused_with_all_that_is_wrong(tmp_path: Path) -> None:
    path = save(small_grounding_dino(), tmp_path)
    tensors = load_file(path)
    tensors["other"] = tensors.pop("model.level_embed")
    tensors["model.enc_output.bias"] = torch.zeros(31)
    save_file(tensors, path)
    with pytest.raises(ModelError) as raised:
        loaded(path)
    problems = "\n".join(raised.value.problems)
    assert all(f"{kind}: {name}" in problems for kind, name in (
        ("missing", "model.level_embed"), ("unexpected", "other"), ("shape", "model.enc_output.bias"),
    ))  # fmt: skip


def test_nan_in_a_file_is_told(tmp_path: Path) -> None:
    model = small_grounding_dino()
    with torch.no_grad():
        FAMILY.parameters(model)["model.enc_output.bias"][3] = math.nan
    path = save(model, tmp_path)
    with pytest.warns(ConverterWarning, match=r"model\.enc_output\.bias"):
        loaded(path)


@pytest.mark.parametrize("changes", [{"heads": 5}, {"extra": 1}, {"channels": 30}])
def test_sizes_that_no_model_can_have_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        FAMILY.build({**CONFIG, **changes})


def test_a_model_passes_beside_itself_in_float64_and_float32(sound: Subject, capture: Capture) -> None:
    assert parity(sound, capture, twice=True).passed
    assert parity(subject(torch.float32), capture).passed


# no box of the small model comes to the limits; tests/test_fullsize_dino.py has the first, as a switch
AT_FULL_SIZE = {"inverse sigmoid cut at 1e-5, not 1e-3", "inverse sigmoid not cut"}


@pytest.mark.parametrize(
    "mistake",
    [m for m in FAMILY.mistakes(SimpleNamespace()) if not m.detections and m.name not in AT_FULL_SIZE],  # type: ignore[arg-type]
    ids=lambda mistake: mistake.name,
)
def test_each_mistake_is_noticed(mistake: Any, sound: Subject, capture: Capture) -> None:
    with mistake.make(sound.model):
        report = parity(sound, capture)
    assert report.passed is False
    if mistake.where:
        assert report.culprits


def test_a_mistake_is_gone_afterwards(sound: Subject, capture: Capture) -> None:
    assert parity(sound, capture).passed


def test_a_certificate_says_which_differences_are_set_aside() -> None:
    assert FAMILY.settings()["compared_as_official_in"] == list(SWITCHES)


def test_heads_are_of_weights_that_are_divided(sound: Subject) -> None:
    heads = FAMILY.heads(sound.model)
    assert all(len(sound.parameters[name]) % count == 0 for name, count in heads.items())
    assert heads["model.encoder.layers.0.text_enhancer_layer.self_attn.query.weight"] == 2
    assert heads["model.decoder.layers.0.self_attn.query.weight"] == 4
    assert heads["model.backbone.conv_encoder.model.encoder.layers.2.blocks.0.attention.self.key.weight"] == 4


def test_detections_are_boxes_in_pixels_with_the_phrase_of_the_best_token() -> None:
    scores = torch.tensor([[[0.1, 0.6, 0.2], [0.3, 0.2, 0.9], [0.1, 0.1, 0.1]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]])
    facts = {"image_sizes_hw": [[100, 200]], "phrases_of_tokens": [[1, 1, 2]], "score_threshold": 0.35}
    (found,) = detections_of(Output(scores, scores, boxes, scores, (), ()), facts)
    assert found.labels.tolist() == [2, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])
    assert found.boxes.flatten().tolist() == pytest.approx([0, 0, 100, 100, 80, 30, 120, 70])


def test_a_capture_without_the_facts_of_detection_is_refused(capture: Capture) -> None:
    facts = {name: value for name, value in capture.facts.items() if name != "phrases_of_tokens"}
    lacking: Any = SimpleNamespace(path=capture.path, inputs=capture.inputs, facts=facts)
    with pytest.raises(CaptureError, match="phrases_of_tokens"):
        inputs_of(lacking)
    short = {**capture.facts, "phrases_of_tokens": [[1], [1]]}
    with pytest.raises(CaptureError, match="do not form a batch of 2"):
        inputs_of(SimpleNamespace(path=capture.path, inputs=capture.inputs, facts=short))  # type: ignore[arg-type]


def test_faults_in_weights_are_noticed(sound: Subject, capture: Capture) -> None:
    score = mutation_score(sound, [capture], 60)
    unnoticed = {outcome.mutation.name for outcome in score.survivors if not outcome.equivalent}
    assert unnoticed <= {*AT_FULL_SIZE, "boxes in shares of the padded picture"}
    assert score.value > 0.9
