"""Taps: every stage that was recorded is paired with one of the model, and paths that lead nowhere are refused."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from small_glip import random_inputs, small_config, small_glip

from converter.errors import ModelError
from converter.mapping.table import Tap, load_table
from converter.parity.recording import ANCHORS, load_recording
from converter.parity.taps import collect

RECORDINGS = list((Path(__file__).parent.parent / "data" / "recordings").glob("*.safetensors"))
COUNTS = {"glip-l": 163, "glip-t": 127, "glip-t-a": 85, "glip-t-odd": 127}  # activations with a module of their own


def test_there_is_a_recording_of_every_capture() -> None:
    assert {path.stem for path in RECORDINGS} == COUNTS.keys()


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_taps_and_recorded_stages_are_the_same_names(path: Path) -> None:
    recording = load_recording(path)
    table = load_table(recording.table)
    taps = [tap.source for tap in table.bind(table.spec.variant(recording.model).config).taps]
    stages = [stage.name for stage in recording.stages]
    anchors = [f"{ANCHORS}{level}" for level in range(5)]
    assert len(taps) == COUNTS[path.stem]
    assert sorted(stages) == sorted([*taps, *anchors])


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recordings_are_small_and_hold_their_inputs_whole(path: Path) -> None:
    recording = load_recording(path)
    assert path.stat().st_size < 1_500_000
    images = len(recording.captions)
    assert recording.images.shape[:2] == (images, 3)
    assert recording.input_ids.shape == recording.attention_mask.shape == (images, 32)
    assert len(recording.detections) == len(recording.image_sizes) == images
    assert all(len(d.boxes) == len(d.scores) == len(d.labels) > 40 for d in recording.detections)


@pytest.mark.parametrize("fusion", [True, False])
def test_every_tap_leads_to_a_tensor_of_its_own(fusion: bool) -> None:
    model = small_glip(fusion=fusion)
    taps = load_table("glip-official").bind(asdict(model.config)).taps
    with torch.no_grad():
        found = collect(model, taps, lambda: model(*random_inputs()))
    assert len(found) == len(taps)
    names: dict[int, set[str]] = {}
    for name, value in found.items():
        names.setdefault(value.data_ptr(), set()).add(name)
    # two pairs of names for one tensor, in the official code as well
    assert sorted(sorted(group) for group in names.values() if len(group) > 1) == [
        ["backbone.body.0", "backbone.body.layers.0.blocks.0"],
        ["language_backbone.body.model.encoder.layer.1", "language_backbone.hidden"],
    ]


def test_hooks_are_gone_after_an_error() -> None:
    model = small_glip()

    def fail() -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        collect(model, [Tap("x", "fpn", (0,))], fail)
    assert not model.fpn._forward_hooks


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (Tap("x", "neck", ()), "no module 'neck'"),
        (Tap("x", "fpn", (5,)), r"'fpn' has no output \[5\]"),
        (Tap("x", "text_encoder", ("pooled",)), r"'text_encoder' has no output \['pooled'\]"),
        (Tap("x", "fpn", ()), r"'fpn'\[\] is a tuple, no tensor"),
    ],
)
def test_a_tap_that_leads_nowhere_is_refused(tap: Tap, message: str) -> None:
    model = small_glip()
    with torch.no_grad(), pytest.raises(ModelError, match=message):
        collect(model, [tap], lambda: model(*random_inputs()))


def test_taps_follow_the_config() -> None:
    bound = load_table("glip-official").bind(asdict(small_config(head_blocks=1, fusion=False)))
    tower = [tap.source for tap in bound.taps if "dyhead_tower" in tap.source]
    assert tower == [f"rpn.head.dyhead_tower.0.visual.{level}" for level in range(5)]
