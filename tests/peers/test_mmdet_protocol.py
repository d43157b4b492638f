"""`--protocol mmdet` is what MMDetection does: its own code beside ours, from a picture's file to boxes.

Its pipeline reads the picture, its GLIP makes captions of the names and boxes of what its head gives, by the
configurations that come with it. The head itself is left out (test_mmdet.py has it): both get the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from converter.glip import GLIP, Output
from converter.glip.model.detection import level_anchors
from converter.glip.task.task import GLIPTask
from converter.parity.family import Boxes, Class
from tests.peers.comparison import needs
from tests.peers.conversion import Official
from tests.peers.mmdet_evaluation import Peer, classes_for, packed, task_of
from tests.support.small_glip import small_config, small_glip

pytestmark = needs("mmdet", "mmengine", "mmcv", "transformers", "skimage")


class Found(NamedTuple):
    """Classes (N,); x, y, width, height (N, 4); scores (N,)."""

    classes: Tensor
    boxes: Tensor
    scores: Tensor


def theirs(peer: Peer, path: Path, classes: Sequence[Class], outputs: Sequence[Output]) -> Found:
    """What MMDetection finds, as its metrics write it down: width and height are differences of corners."""
    sample = packed(peer, path, [each.name for each in classes])
    left = iter(outputs)
    with ExitStack() as replaced:
        for module, name, value in (
            (peer.net, "extract_feat", lambda images: ()),
            (peer.net.language_model, "forward", lambda captions: {}),
            (peer.net.bbox_head, "forward", lambda images, texts: tuple(map(list, next(left)))),
        ):
            replaced.enter_context(mock.patch.object(module, name, value))
        (result,) = peer.net.predict(sample["inputs"], sample["data_samples"])
    assert next(left, None) is None
    found = result.pred_instances
    ids = torch.tensor([each.id for each in classes])
    corners = found.bboxes.double()
    return Found(ids[found.labels], torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1), found.scores)


def ours(task: GLIPTask, path: Path, outputs: Sequence[Output]) -> Found:
    """What `evaluate` writes down where the head gives these numbers for each caption."""
    model = small_glip(outputs[0].box_deltas[0].dtype, vocab_size=30522)
    with (
        mock.patch.object(GLIP, "encode_images"),
        mock.patch.object(GLIP, "predict", side_effect=outputs),
    ):
        (boxes,) = task.runner(model)([task.read(path)])
    return as_found(boxes)


def as_found(boxes: Boxes) -> Found:
    return Found(*(torch.from_numpy(each) for each in (boxes.classes, boxes.boxes, boxes.scores)))


def equal(found: Found, expected: Found) -> bool:
    """The same labels in the same order, boxes to a thousandth of a pixel, scores to a millionth."""
    return (
        torch.equal(found.classes, expected.classes)
        and bool((found.boxes.double() - expected.boxes.double()).abs().max() < 1e-3)
        and bool((found.scores.double() - expected.scores.double()).abs().max() < 1e-6)
    )


def in_float64(outputs: Sequence[Output]) -> list[Output]:
    return [Output(*(tuple(level.double() for level in part) for part in out)) for out in outputs]


def predicted(size: tuple[int, int], tokens: Sequence[Sequence[int]], seed: int, shrunk: float = 0.0) -> Output:
    """A head's output for a picture of (height, width): cells that vote for some forty objects, more or less well.

    So many candidates that levels are cut off, IoUs on both sides of the threshold, boxes that reach beyond the
    picture. `shrunk`: the share of cells whose boxes are thinner than the limit.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    height, width = (-(-side // 32) * 32 for side in size)
    sides = 4 * (torch.tensor([width, height]) / 4) ** draw(40, 2)  # from 4 pixels to the whole picture
    centres = draw(40, 2) * torch.tensor([width, height])
    label = torch.randint(0, len(tokens), (40,), generator=generator)
    is_token = torch.zeros(len(tokens), 256)
    for row, at in zip(is_token, tokens, strict=True):
        row[list(at)] = 1
    maps = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]
    parts: list[list[Tensor]] = [[], [], []]
    for (rows, columns), anchors in zip(maps, level_anchors(small_config(), maps, torch.device("cpu")), strict=True):
        cells = rows * columns
        of = torch.randint(0, 40, (cells,), generator=generator)
        own = anchors[:, 2:] - anchors[:, :2] + 1
        middle = (anchors[:, 2:] + anchors[:, :2]) / 2
        move = 10 * (centres[of] + 0.2 * (draw(cells, 2) - 0.5) * sides[of] - middle) / own
        growth = 5 * (sides[of] / own * (0.8 + 0.4 * draw(cells, 2))).log()
        growth[draw(cells) < shrunk] -= 25
        logits = -6 + 6 * draw(cells, 1) * is_token[label[of]] + 0.5 * draw(cells, 256)
        parts[0].append(logits[None])
        parts[1].append(torch.cat([move, growth], 1).T.reshape(1, 4, rows, columns).contiguous())
        parts[2].append(4 * draw(1, 1, rows, columns) - 2)
    return Output(*(tuple(part) for part in parts))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "rocket.jpg"
    Image.fromarray(skimage.data.rocket()).save(path)  # 640 x 427, which becomes 1199 x 800
    return path


def outputs_for(task: GLIPTask, seed: int, shrunk: float = 0.0) -> list[Output]:
    return [
        predicted((800, 1199), list(caption.positive_map.values()), 10 * seed + number, shrunk)
        for number, caption in enumerate(task.asked)
    ]


# Where both find the same to the last decision of NMS. In float32 MMDetection decides a few otherwise: see below.
@pytest.mark.parametrize(("seed", "shrunk"), [(1, 0.1), (2, 0.0), (3, 0.1)])
def test_from_the_heads_output_to_boxes_it_is_ours(peer: Peer, picture: Path, seed: int, shrunk: float) -> None:
    classes = classes_for(peer.data)
    task = task_of(peer.data, classes)
    outputs = outputs_for(task, seed, shrunk)
    expected = theirs(peer, picture, classes, outputs)
    assert len(expected.scores) >= task.protocol.most
    assert equal(ours(task, picture, outputs), expected)
    assert not equal(ours(task_of(peer.data, classes, "official"), picture, outputs), expected)


OTHERWISE = {
    "score_threshold": "0.06", "candidates_per_level": "300", "ranked_by_centerness": "true",
    "shrinking_limited": "false", "nms_threshold": "0.61", "last_pixel_included": "true", "empty_dropped": "false",
    "most": "99", "box_extent": "0",
}  # fmt: skip


@pytest.mark.parametrize("peer", ["coco"], indirect=True, scope="module")
def test_each_of_its_rules_decides_something(peer: Peer, picture: Path) -> None:
    """So equality is of every rule, except ties, which are below.

    Where scores are faint, few reach the threshold; boxes beyond the picture are empty.
    """
    classes = classes_for("coco")
    task = task_of("coco", classes)
    outputs = outputs_for(task, 4, 0.1)
    faint = [out._replace(token_logits=tuple(level - 3 for level in out.token_logits)) for out in outputs]
    right = torch.tensor([100.0, 0, 0, 0])[:, None, None]
    beyond = [out._replace(box_deltas=tuple(level + right for level in out.box_deltas)) for out in outputs]
    cases = [(out, theirs(peer, picture, classes, out)) for out in (outputs, faint, beyond)]
    assert all(equal(ours(task, picture, out), expected) for out, expected in cases)
    for name, value in OTHERWISE.items():
        other = task_of("coco", classes, "mmdet", **{name: value})
        assert not all(equal(ours(other, picture, out), expected) for out, expected in cases), name


@pytest.mark.parametrize("peer", ["coco"], indirect=True, scope="module")
def test_of_boxes_that_tie_with_the_hundredth_it_keeps_a_hundred(peer: Peer, picture: Path) -> None:
    """Which of them is not defined there: its sort is not stable. Official: all of them."""
    classes = classes_for("coco")
    task = task_of("coco", classes)
    (out,) = outputs_for(task, 1)
    zero = Output(*(tuple(torch.zeros_like(level) for level in part) for part in out))
    for protocol, is_hundred in (("mmdet", True), ("official", False)):
        assert (len(ours(task_of("coco", classes, protocol), picture, [zero]).scores) == 100) is is_hundred
    assert len(theirs(peer, picture, classes, [zero]).scores) == 100


@pytest.mark.parametrize("peer", ["coco"], indirect=True, scope="module")
def test_in_float32_its_nms_rounds_the_boxes_that_it_compares(peer: Peer, picture: Path) -> None:
    """Boxes of class n are moved by n widths of the picture for NMS, so that classes are apart: up to 50,000 pixels.

    There float32 has steps of 1/256 of a pixel, and an IoU near the threshold may fall on the other side. In float64
    nothing is lost, and it decides as ours does in either.
    """
    classes = classes_for("coco")
    task = task_of("coco", classes)
    outputs = outputs_for(task, 5)
    found, rounded = ours(task, picture, outputs), theirs(peer, picture, classes, outputs)
    assert not equal(found, rounded)
    for exact in (found, ours(task, picture, in_float64(outputs))):
        assert equal(exact, theirs(peer, picture, classes, in_float64(outputs)))
    boxes, others = ({tuple(box) for box in each.boxes.round().tolist()} for each in (found, rounded))
    assert len(boxes & others) >= 95


@pytest.mark.parametrize("peer", ["coco"], indirect=True, scope="module")
@pytest.mark.parametrize("official", ["glip-t"], indirect=True, scope="session")
def test_of_a_full_size_model_it_finds_what_evaluate_finds(official: Official, peer: Peer, picture: Path) -> None:
    classes = classes_for("coco")
    task = task_of("coco", classes)
    outputs: list[Output] = []
    predict = GLIP.predict

    def kept(self: GLIP, *encoded: Any) -> Output:
        outputs.append(predict(self, *encoded))
        return outputs[-1]

    with mock.patch.object(GLIP, "predict", kept):
        (boxes,) = task.runner(GLIP.from_pretrained(official.path))([task.read(picture)])
    expected = theirs(peer, picture, classes, in_float64(outputs))
    assert len(expected.scores) == 100
    assert equal(as_found(boxes), expected)
    assert not equal(ours(task_of("coco", classes, "official"), picture, outputs), expected)
