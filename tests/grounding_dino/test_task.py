"""A data set asked about as the official evaluation asks: captions, scores of classes, boxes in pixels."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from converter.errors import ModelError
from converter.grounding_dino.family import FAMILY
from converter.grounding_dino.task import protocol as module
from converter.grounding_dino.task.protocol import Protocol, load_protocol
from converter.grounding_dino.task.task import GroundingDinoTask
from converter.parity.family import Asked, Class
from tests.support.small_grounding_dino import SIZES, small_model

DATA = json.loads(Path(module.__file__).with_name("protocols.json").read_text())
NAMES = [field.name for field in fields(Protocol)]
CLASSES = [Class(7, "Traffic Light"), Class(3, "person"), Class(11, "hot-dog")]
SMALL = {"shorter_side": "96", "longer_side": "160"}


def task(data: str = "own", classes: list[Class] = CLASSES, **changed: str) -> GroundingDinoTask:
    made = FAMILY.task(data, classes, Asked("official", changed), Path("x.pth"), SIZES, None)
    assert isinstance(made, GroundingDinoTask)
    return made


def test_every_choice_has_a_source() -> None:
    parts = DATA["protocols"]["official"]
    assert list(parts) == ["all"]
    assert list(parts["all"]) == NAMES == list(module._READERS)
    assert {source for _, source in parts["all"].values()} == set(DATA["sources"])
    assert all(" at " in text for text in DATA["sources"].values())


def test_classes_are_asked_for_as_the_official_script_does() -> None:
    asked = task("coco")
    assert asked.captions == ["person . traffic light . hot-dog ."]
    assert asked.asked[0].positive_map == {3: [1], 7: [3, 4], 11: [6, 7, 8]}
    assert (asked.protocol.most, asked.protocol.token_scores, asked.protocol.upright) == (300, "mean", False)
    assert asked.metric == "coco"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, "official"),
        ({"most": "100"}, "official with most=100"),
        ({"token_scores": "max"}, "official with token_scores=max"),
    ],
)
def test_what_was_changed_is_part_of_the_name(changed: dict[str, str], told: str) -> None:
    assert task("coco", **changed).facts["name"] == told


def test_what_it_has_no_protocol_for_is_told() -> None:
    with pytest.raises(ModelError, match="has no protocol for LVIS"):
        task("lvis")
    with pytest.raises(ModelError, match="protocol: found 'mmdet', expected one of official"):
        load_protocol(Asked("mmdet"), "coco")
    with pytest.raises(ModelError, match="setting: token_scores is 'sum', expected one of mean, max"):
        task(token_scores="sum")
    with pytest.raises(ModelError, match="knows no benchmark odinw"):
        FAMILY.benchmark("odinw")


def test_sizes_are_rounded_as_the_official_code_or_as_transformers() -> None:
    assert task().size(20, 692) == (39, 1349)
    assert task(size_rounding="transformers").size(20, 692) == (39, 1333)


def prepared(asked: GroundingDinoTask, folder: Path, count: int = 2) -> list[Any]:
    paths = []
    for number, name in enumerate(("coffee", "astronaut")[:count]):
        paths.append(folder / f"{number}.png")
        Image.fromarray(getattr(skimage.data, name)()).resize((120, 90)).save(paths[-1])
    return [asked.read(path) for path in paths]


def test_scores_are_means_over_the_tokens_of_a_class(tmp_path: Path) -> None:
    """Beside another computation of the same, from the model's own output."""
    asked = task(**SMALL)
    (picture,) = prepared(asked, tmp_path, 1)
    (boxes,) = asked.runner(small_model())([picture])
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((torch.from_numpy(picture.pixels).permute(2, 0, 1) / 255 - mean) / std)[None]
    (caption,) = asked.asked
    with torch.inference_mode():
        out = small_model()(pixel_values=pixels, input_ids=torch.tensor([caption.ids]))
    rows = [
        (float(out.logits[0, query, at].sigmoid().mean()), label, out.pred_boxes[0, query].tolist())
        for query in range(SIZES["queries"])
        for label, at in caption.positive_map.items()
    ]
    rows.sort(key=lambda row: -row[0])
    assert len(boxes.scores) == len(rows) == 3 * SIZES["queries"]
    np.testing.assert_allclose(boxes.scores, [score for score, _, _ in rows], rtol=1e-4)
    assert boxes.classes[:10].tolist() == [label for _, label, _ in rows[:10]]
    for (x, y, width, height), (_, _, (cx, cy, w, h)) in zip(boxes.boxes[:10].tolist(), rows, strict=False):
        expected = ((cx - w / 2) * 120, (cy - h / 2) * 90, w * 120, h * 90)
        assert (x, y, width, height) == pytest.approx(expected, abs=1e-2)


def test_the_best_pairs_of_all_captions_are_taken(tmp_path: Path) -> None:
    divided = task(**SMALL, per_caption="2", most="20")
    assert divided.captions == ["person . traffic light .", "hot-dog ."]
    found = divided.runner(small_model())(prepared(divided, tmp_path))
    assert [len(each.scores) for each in found] == [20, 20]
    for each in found:
        assert each.scores.tolist() == sorted(each.scores.tolist(), reverse=True)


def test_a_batch_gives_what_each_picture_gives(tmp_path: Path) -> None:
    asked = task(**SMALL)
    pictures, run = prepared(asked, tmp_path), asked.runner(small_model())
    for together, picture in zip(run(pictures), pictures, strict=True):
        (alone,) = run([picture])
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-3)
