"""Grounding DINO of full size: what transformers' class computes of a converted file is what the official code did.

Everything that is expected is from recordings of the official code (scripts/capture_grounding_dino.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from converter.checkpoint import open_checkpoint
from converter.cli import main
from converter.grounding_dino.family import FAMILY
from converter.grounding_dino.outputs import SELECTED
from converter.grounding_dino.switches import SWITCHES, as_official, selecting
from converter.parity.capture import Capture, load_capture
from converter.parity.device import deterministic
from converter.parity.gates import find_gate
from converter.parity.run import Report, Run, parity
from converter.parity.subject import Subject
from converter.parity.taps import collect
from scripts.synthetic_checkpoint import write_checkpoint
from tests import DATA

pytestmark = pytest.mark.fullsize
TEXT, FIRST, LAST = "transformer.encoder.text_layers.0", "transformer.decoder.references.1", "pred_boxes"
# by switch, how far activations of Swin-T are off without it
SIZES = {
    "inverse sigmoid": {FIRST: 8.0e-4, "pred_logits": 7.2e-4, LAST: 9.4e-4},
    "text masks": {TEXT: 0.21, "pred_logits": 0.19, LAST: 0.49},
}
MODELS = {"groundingdino-swint": "grounding-dino-tiny", "groundingdino-swinb": "grounding-dino-base"}


@dataclass(frozen=True)
class Converted:
    """In float32."""

    name: str
    subject: Subject
    capture: Capture


@pytest.fixture(scope="module", params=MODELS)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    """What `convert` makes of the file that was recorded."""
    folder, name = tmp_path_factory.mktemp(request.param), MODELS[request.param]
    write_checkpoint(request.param, folder / "official.pth", weights_only=True)
    said = CliRunner().invoke(main, ["convert", "--src", str(folder / "official.pth"), "--dst", str(folder / name)])
    assert said.exit_code == 0, said.output
    with open_checkpoint(folder / name) as checkpoint:
        model = FAMILY.load(folder / name, checkpoint)
    shutil.rmtree(folder)
    with load_capture(DATA / "captures" / f"{name}.safetensors") as capture:
        yield Converted(name, Subject(FAMILY, model), capture)


@pytest.fixture(scope="module")
def exact(converted: Converted) -> Iterator[Subject]:
    """The same in float64."""
    yield Subject(FAMILY, converted.subject.model.double())
    converted.subject.model.float()


def compared(subject: Subject, capture: Capture) -> Report:
    return parity(subject, capture, modes=("propagated",))


def test_in_float32_it_is_as_near_as_the_official_code_is_to_itself(converted: Converted) -> None:
    report = compared(converted.subject, converted.capture)
    assert report.problems == []
    assert report.passed


def test_in_float64_every_activation_and_detection_is_the_official_one(converted: Converted, exact: Subject) -> None:
    with selecting() as selected:
        report = compared(exact, converted.capture)
        with torch.inference_mode():
            out = exact.run(FAMILY.inputs(converted.capture))
    assert report.problems == []
    assert len(report.modes["propagated"]) == {"grounding-dino-tiny": 88, "grounding-dino-base": 100}[converted.name]
    assert max(result.relative for result in report.modes["propagated"]) < 1e-12
    assert all(found.passed and found.expected >= 3 for found in report.detections)
    assert_same_selection(converted.capture, out.proposals, selected[0])


def assert_same_selection(capture: Capture, proposals: torch.Tensor, found: torch.Tensor) -> None:
    """Proposals that are not valid have the same features and scores: which of them is taken does not matter."""
    theirs, attended = capture.inputs[SELECTED], capture.inputs["attention_mask"].bool()
    scores = proposals.masked_fill(~attended[:, None], -torch.inf).amax(dim=2)
    torch.testing.assert_close(scores.gather(1, found), scores.gather(1, theirs), rtol=1e-10, atol=0)
    # none is twice, and of those that score as no other does it is the same one
    for row, mine, official in zip(scores, found, theirs, strict=True):
        assert len(set(mine.tolist())) == len(mine)
        alone = (row[mine, None] - row).abs().lt(1e-9).sum(dim=1) == 1
        assert alone.sum() > 100
        assert torch.equal(mine[alone], official[alone])


@pytest.mark.parametrize("converted", ["groundingdino-swint"], indirect=True)
@pytest.mark.parametrize(("switch", "sizes"), SIZES.items(), ids=SIZES)
def test_without_its_switch_each_difference_is_there(
    switch: str, sizes: dict[str, float], converted: Converted, exact: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large as docs/families/grounding-dino.md says."""
    monkeypatch.setattr(type(FAMILY), "comparing", lambda self, model: as_official(model, without=switch))
    assert switch in SWITCHES
    assert off(exact, converted.capture, sizes) == {name: pytest.approx(size, rel=0.05) for name, size in sizes.items()}


def off(subject: Subject, capture: Capture, names: Collection[str]) -> dict[str, float]:
    """Relative errors of these activations."""
    run = Run.of(subject, capture, find_gate("cpu", "float64", None))
    outputs: list[Any] = []
    with torch.inference_mode(), deterministic():
        taps = [tap for tap in run.taps if tap.source in names]
        found = collect(subject.model, taps, lambda: outputs.append(run.again()))
        found |= {name: entry.compute(outputs[0]) for name, entry in run.derived.items() if name in names}
    return {name: run.comparison.measure(name, "", value, "propagated").relative for name, value in found.items()}


@pytest.mark.parametrize("converted", ["groundingdino-swint"], indirect=True)
def test_mistakes_in_detecting_are_noticed(converted: Converted, exact: Subject) -> None:
    capture = converted.capture
    with torch.inference_mode():
        out = exact.run(FAMILY.inputs(capture))
    expected = capture.detections
    for mistake in FAMILY.mistakes(exact.model):
        if mistake.detections:
            with mistake.make(exact.model):
                found = FAMILY.detect(exact.model, out, capture.facts)
            same = [
                len(a.labels) == len(b.labels)
                and torch.equal(a.labels, b.labels)
                and torch.allclose(a.boxes, b.boxes, atol=1e-3)
                for a, b in zip(expected, found, strict=True)
            ]
            assert not all(same), mistake.name
