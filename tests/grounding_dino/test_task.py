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


def task(
    data: str = "own", classes: list[Class] = CLASSES, protocol: str = "official", **changed: str
) -> GroundingDinoTask:
    made = FAMILY.task(data, classes, Asked(protocol, changed), Path("x.pth"), SIZES, None)
    assert isinstance(made, GroundingDinoTask)
    return made


def test_every_choice_has_a_source() -> None:
    used = set()
    for parts in DATA["protocols"].values():
        assert list(parts["all"]) == NAMES == list(module._READERS)
        used |= {source for part in parts.values() for _, source in part.values()}
    assert used == set(DATA["sources"])
    assert all(" at " in text or "3.3" in text or "2.1" in text for text in DATA["sources"].values())


def test_classes_are_asked_for_as_the_official_script_does() -> None:
    asked = task("coco")
    assert asked.captions == ["person . traffic light . hot-dog ."]
    assert asked.asked[0].positive_map == {3: [1], 7: [3, 4], 11: [6, 7, 8]}
    assert (asked.protocol.most, asked.protocol.token_scores, asked.protocol.upright) == (300, "mean", False)
    assert asked.metric == "coco"


def test_mmdetection_asks_otherwise() -> None:
    classes = [Class(1, "Bow_(weapon)"), Class(2, "T-shirt")]
    asked = task("lvis", classes, "mmdet")
    assert asked.captions == ["Bow . T-shirt. "]
    assert (asked.protocol.per_caption, asked.metric) == (40, "lvis-fixed")
    official, other = (load_protocol(Asked(name), "coco").to_dict() for name in ("official", "mmdet"))
    assert {name for name in NAMES if official[name] != other[name]} == {
        "names_cleaned", "lowercase", "separator", "caption_end", "size_rounding", "upright", "boxes_cut",
    }  # fmt: skip


def test_boxes_can_be_cut_at_the_edges(tmp_path: Path) -> None:
    corners = []
    for cut in ("true", "false"):
        asked = task(protocol="mmdet", **SMALL, boxes_cut=cut)
        (found,) = asked.runner(small_model())(prepared(asked, tmp_path, 1))
        corners.append(np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1))
    inside, whole = corners
    np.testing.assert_allclose(inside, np.clip(whole, 0, [120, 90, 120, 90]), atol=1e-3)


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
    with pytest.raises(ModelError, match="has no protocol for LVIS; MMDetection has one: --protocol mmdet"):
        task("lvis")
    with pytest.raises(ModelError, match="protocol: found 'odinw', expected one of official, mmdet"):
        load_protocol(Asked("odinw"), "coco")
    with pytest.raises(ModelError, match="setting: token_scores is 'sum', expected one of mean, max"):
        task(token_scores="sum")
    with pytest.raises(ModelError, match="knows no benchmark odinw"):
        FAMILY.benchmark("odinw")


def test_sizes_are_rounded_as_the_official_code_or_as_transformers() -> None:
    assert task().size(20, 692) == (39, 1349)
    assert task(size_rounding="transformers").size(20, 692) == (39, 1333)
    assert task(size_rounding="down").size(20, 692) == (38, 1333)


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


def test_the_best_pairs_of_each_caption_are_taken(tmp_path: Path) -> None:
    divided = task(**SMALL, per_caption="2", most="20")
    assert divided.captions == ["person . traffic light .", "hot-dog ."]
    for each in divided.runner(small_model())(prepared(divided, tmp_path)):
        assert set(each.classes[:20].tolist()) <= {3, 7}
        assert each.classes[20:].tolist() == [11] * 20
        for scores in (each.scores[:20].tolist(), each.scores[20:].tolist()):
            assert scores == sorted(scores, reverse=True)


def test_a_batch_gives_what_each_picture_gives(tmp_path: Path) -> None:
    asked = task(**SMALL)
    pictures, run = prepared(asked, tmp_path), asked.runner(small_model())
    for together, picture in zip(run(pictures), pictures, strict=True):
        (alone,) = run([picture])
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-3)
