"""Taps: every activation that was captured is paired with one of the model, and paths that lead nowhere are refused."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from converter.errors import ModelError
from converter.glip.family import ANCHORS
from converter.mapping.entries import Tap
from converter.mapping.load import load_table
from converter.parity.capture import load_capture
from converter.parity.taps import collect, observe
from tests import DATA
from tests.support.small_glip import random_inputs, small_config, small_glip

CAPTURES = list((DATA / "captures").glob("*.safetensors"))
COUNTS = {"glip-l": 163, "glip-t": 127, "glip-t-a": 85}  # activations with a module of their own
DINO = {"grounding-dino-tiny": 72, "grounding-dino-base": 84}
OF_GLIP = [path for path in CAPTURES if path.stem.startswith("glip-")]


def test_every_official_capture_is_there() -> None:
    larger = {f"{model}-{kind}" for model in COUNTS for kind in ("large", "five")}
    assert {path.stem for path in CAPTURES} == {*COUNTS, *larger, "glip-t-odd", *DINO}


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_taps_and_captured_activations_are_the_same_names(path: Path) -> None:
    capture = load_capture(path)
    table = load_table(capture.table or "")
    bound = table.bind(table.spec.variant(capture.model).config)
    assert len(bound.taps) == {**COUNTS, **DINO}[capture.model]
    assert sorted(capture.activations) == sorted(tap.name for tap in bound.source_taps)


@pytest.mark.parametrize("path", OF_GLIP, ids=lambda path: path.stem)
def test_what_no_module_computes_are_the_anchors(path: Path) -> None:
    capture = load_capture(path)
    table = load_table(capture.table or "")
    taps = {tap.source for tap in table.bind(table.spec.variant(capture.model).config).taps}
    assert {*capture.activations} - taps == {f"{ANCHORS}{level}" for level in range(5)}


@pytest.mark.parametrize("path", OF_GLIP, ids=lambda path: path.stem)
def test_captures_are_small_and_hold_their_inputs_whole(path: Path) -> None:
    capture = load_capture(path)
    large = path.stem.endswith(("-large", "-five"))
    assert path.stat().st_size < (6_000_000 if large else 1_500_000)
    images = len(capture.facts["captions"])
    assert capture.inputs["images"].shape[:2] == (images, 3)
    tokens = {"glip-t-a-large": 256}.get(path.stem, 64 if large else 32)
    assert capture.inputs["input_ids"].shape == capture.inputs["attention_mask"].shape == (images, tokens)
    assert len(capture.detections) == len(capture.facts["image_sizes_hw"]) == images
    assert all(len(d.boxes) == len(d.scores) == len(d.labels) > 40 for d in capture.detections)


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


def test_what_is_given_back_takes_the_place_of_an_activation() -> None:
    model = small_glip()
    with torch.no_grad():
        seen = collect(model, [Tap("x", "fpn", (2,))], lambda: model(*random_inputs()))["x"]
        outputs = []
        with observe(model, [Tap("x", "fpn", (2,))], lambda tap, value: torch.full_like(value, 7)):
            model.fpn.register_forward_hook(lambda module, inputs, output: outputs.append(output))
            model(*random_inputs())
    assert not (seen == 7).any()
    assert [bool((level == 7).all()) for level in outputs[0]] == [False, False, True, False, False]


def test_taps_follow_the_config() -> None:
    bound = load_table("glip-official").bind(asdict(small_config(head_blocks=1, fusion=False)))
    tower = [tap.source for tap in bound.taps if "dyhead_tower" in tap.source]
    assert tower == [f"rpn.head.dyhead_tower.0.visual.{level}" for level in range(5)]
