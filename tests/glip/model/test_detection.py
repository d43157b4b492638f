"""From predictions to boxes: known numbers, and the same rules said in plain loops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from converter.glip import GLIP, Detections, Output
from converter.glip.model.config import Rules
from converter.glip.model.detection import clip, decode, detect, level_anchors, suppress
from tests.support.small_glip import small_config, small_glip


def test_anchors_of_the_first_and_last_level() -> None:
    anchors = level_anchors(small_config(), [(2, 3), (1, 2), (1, 1), (1, 1), (1, 1)], torch.device("cpu"))
    assert [tuple(level.shape) for level in anchors] == [(6, 4), (2, 4), (1, 4), (1, 4), (1, 4)]
    assert anchors[0][0].tolist() == [-28.0, -28.0, 35.0, 35.0]
    assert anchors[0][4].tolist() == [-20.0, -20.0, 43.0, 43.0]  # row 1, column 1
    assert anchors[0][2].tolist() == [-12.0, -28.0, 51.0, 35.0]  # row 0, column 2
    assert anchors[4][0].tolist() == [-448.0, -448.0, 575.0, 575.0]
    assert all(level.dtype == torch.float32 for level in anchors)


def test_zero_deltas_give_the_anchor_back() -> None:
    anchors = torch.tensor([[-28.0, -28.0, 35.0, 35.0], [10.0, 20.0, 29.0, 59.0]])
    torch.testing.assert_close(decode(torch.zeros(2, 4), anchors), anchors)


def test_deltas_move_by_tenths_and_grow_by_fifths() -> None:
    anchor = torch.tensor([[0.0, 0.0, 9.0, 19.0]]).double()  # 10 wide, 20 high, centre (4.5, 9.5)
    deltas = torch.tensor([[1.0, -2.0, 5 * math.log(2), 0.0]]).double()
    # centre (5.5, 5.5), 20 wide and 20 high, corners belonging to the box
    torch.testing.assert_close(decode(deltas, anchor), torch.tensor([[-4.0, -4.0, 15.0, 15.0]]).double())


def test_growth_is_limited() -> None:
    anchor = torch.tensor([[0.0, 0.0, 15.0, 15.0]]).double()
    x1, _, x2, _ = decode(torch.full((1, 4), 1e4).double(), anchor)[0].tolist()
    assert x2 - x1 + 1 == pytest.approx(16 * 1000 / 16)


def test_shrinking_is_limited_where_the_rules_say_so() -> None:
    anchor = torch.tensor([[0.0, 0.0, 63.0, 127.0]]).double()
    for limited, sides in ((True, (64 * 0.016, 128 * 0.016)), (False, (0.0, 0.0))):
        x1, y1, x2, y2 = decode(torch.full((1, 4), -1e4).double(), anchor, shrinking_limited=limited)[0].tolist()
        assert (x2 - x1 + 1, y2 - y1 + 1) == pytest.approx(sides, abs=1e-9)
    out = random_output()
    thin = torch.tensor([0.0, 0, 30, 30])[:, None, None]
    out = out._replace(box_deltas=tuple(deltas - thin for deltas in out.box_deltas))
    found = [
        detect(small_config(), out, [(48, 64)] * 2, {1: [1]}, Rules(shrinking_limited=limited, empty_dropped=True))
        for limited in (True, False)
    ]
    assert [len(each[0].scores) > 0 for each in found] == [True, False]


def test_boxes_are_clipped_to_the_last_pixel() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 200.0, 300.0], [3.0, 4.0, 5.0, 6.0], [150.0, 150.0, 160.0, 160.0]])
    expected = [[0.0, 0.0, 99.0, 49.0], [3.0, 4.0, 5.0, 6.0], [99.0, 49.0, 99.0, 49.0]]
    assert clip(boxes, (50, 100)).tolist() == expected


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - shared)


def greedy(boxes: Tensor, scores: Tensor, labels: Tensor, limit: int = 100) -> list[int]:
    """One by one, best first: what overlaps a kept box of its label falls. Ties with the last are kept."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(labels[i] != labels[k] or overlap(boxes[i].tolist(), boxes[k].tolist()) <= 0.6 for k in kept):
            kept.append(i)
    return [i for i in kept if len(kept) <= limit or scores[i] >= scores[kept[limit - 1]]]


@settings(max_examples=60)
@given(count=st.integers(0, 60), labels=st.integers(1, 3), steps=st.integers(2, 30), seed=st.integers(0, 10**6))
def test_suppression_is_greedy(count: int, labels: int, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (count, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(3, 12, (count, 2), generator=generator)], dim=1)
    scores = torch.randint(1, steps, (count,), generator=generator) / steps  # with ties
    names = torch.randint(1, labels + 1, (count,), generator=generator)
    expected = greedy(boxes, scores, names)
    found = suppress(boxes, scores, names)
    assert torch.equal(found.boxes, boxes[expected])
    assert torch.equal(found.scores, scores[expected])
    assert torch.equal(found.labels, names[expected])


def test_suppression_in_blocks_is_greedy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.glip.model.detection.NMS_BLOCK", 7)
    generator = torch.Generator().manual_seed(5)
    corner = torch.rand(400, 2, generator=generator) * 150
    boxes = torch.cat([corner, corner + 10 + torch.rand(400, 2, generator=generator) * 20], dim=1)
    scores, labels = torch.rand(400, generator=generator), torch.ones(400, dtype=torch.int64)
    assert torch.equal(suppress(boxes, scores, labels).boxes, boxes[greedy(boxes, scores, labels)])


@pytest.mark.parametrize("block", [1024, 50])  # with 50, what ties begins a block
@pytest.mark.parametrize(("tied", "kept"), [(0, 100), (3, 103)])
def test_a_hundred_are_kept_and_what_ties_with_the_last(
    tied: int, kept: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.glip.model.detection.NMS_BLOCK", block)
    x = torch.arange(130.0) * 20
    boxes = torch.stack([x, x, x + 9, x + 9], dim=1)
    scores = torch.linspace(0.9, 0.1, 130)
    scores[100 : 100 + tied] = scores[99]
    assert len(suppress(boxes, scores, torch.ones(130, dtype=torch.int64)).scores) == kept


@pytest.mark.parametrize("block", [1024, 100])  # with 100, the limit is known when a block ends with the hundredth
@pytest.mark.parametrize(
    ("hundredth", "others", "kept"),
    [
        # float32 has the numbers k * 2**-25 between 1/4 and 1/2: 1/4 + 0.75 of a step is rounded up, + 0.25 down
        (0.25 + 0.75 * 2**-25, 30, 99),
        (0.25 + 0.25 * 2**-25, 30, 130),  # the others lie between the rounded limit and the hundredth
        (0.25 + 0.75 * 2**-25, 0, 100),  # there are no more than a hundred: nothing is cut off
    ],
)
def test_in_float64_the_limit_is_the_hundredth_score_in_float32(
    hundredth: float, others: int, kept: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.glip.model.detection.NMS_BLOCK", block)
    x = torch.arange(100.0 + others) * 20
    boxes = torch.stack([x, x, x + 9, x + 9], dim=1)
    scores = torch.tensor([0.5] * 99 + [hundredth] + [0.25 + 0.125 * 2**-25] * others, dtype=torch.float64)
    assert len(suppress(boxes, scores, torch.ones(100 + others, dtype=torch.int64)).scores) == kept


def test_a_chain_of_overlaps_falls_link_by_link() -> None:
    x = torch.arange(6.0) * 2
    boxes = torch.stack([x, torch.zeros(6), x + 9, torch.full((6,), 9.0)], dim=1)  # neighbours at 2/3, others below
    found = suppress(boxes, torch.linspace(0.9, 0.4, 6), torch.ones(6, dtype=torch.int64))
    assert found.boxes[:, 0].tolist() == [0.0, 4.0, 8.0]


def test_an_overlap_of_exactly_the_limit_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0.0, 7.0, 0.0], [2.0, 0.0, 9.0, 0.0]])  # 6 of 10 pixels
    assert len(suppress(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 1])).scores) == 2


def random_output(dtype: torch.dtype = torch.float64) -> Output:
    generator = torch.Generator().manual_seed(6)
    sizes = [(6, 8), (3, 4), (2, 2), (1, 1), (1, 1)]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return Output(
        token_logits=tuple(draw(2, h * w, 9) - 2 for h, w in sizes),
        box_deltas=tuple(draw(2, 4, h, w) for h, w in sizes),
        centerness=tuple(draw(2, 1, h, w) for h, w in sizes),
    )


def detect_by_loops(
    model: GLIP, out: Output, image: int, size: tuple[int, int], phrases: Mapping[int, Sequence[int]], per_level: int
) -> tuple[Tensor, Tensor, Tensor]:
    candidates: list[tuple[float, int, Tensor]] = []
    for level, anchors in enumerate(model.anchors(out)):
        found = []
        for cell, anchor in enumerate(anchors):
            row, column = divmod(cell, out.box_deltas[level].shape[3])
            center = float(out.centerness[level][image, 0, row, column].double().sigmoid())
            delta = out.box_deltas[level][image, :, row, column].double()
            box = clip(decode(delta[None], anchor[None])[0].float(), size)
            for label, tokens in phrases.items():
                total = sum(float(out.token_logits[level][image, cell, t].double().sigmoid()) for t in tokens)
                phrase = float(np.float32(total / len(tokens)))  # as the official code holds it
                if phrase > 0.05:
                    found.append((math.sqrt(phrase * center), label, box))
        found.sort(key=lambda candidate: -candidate[0])
        candidates += found[:per_level]
    scores, labels, boxes = zip(*candidates, strict=True)
    stacked = torch.stack(boxes), torch.tensor(scores, dtype=torch.float64), torch.tensor(labels)
    kept = greedy(*stacked)
    return stacked[0][kept], stacked[1][kept], stacked[2][kept]


@pytest.mark.parametrize("per_level", [1000, 10])
def test_detections_are_those_of_plain_loops(per_level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.glip.model.glip.RULES", Rules(candidates_per_level=per_level))
    model, out = small_glip(), random_output()
    phrases = {7: [1], 3: [2, 4, 5], 12: [8, 0]}
    sizes = [(48, 64), (40, 50)]
    found = model.detect(out, sizes, phrases)
    for image, detections in enumerate(found):
        boxes, scores, labels = detect_by_loops(model, out, image, sizes[image], phrases, per_level)
        assert torch.equal(detections.labels, labels)
        torch.testing.assert_close(detections.scores, scores, rtol=1e-14, atol=0)
        torch.testing.assert_close(detections.boxes, boxes)


def test_nothing_above_the_threshold_gives_empty_tensors() -> None:
    out = random_output()
    out = out._replace(token_logits=tuple(logits - 100 for logits in out.token_logits))
    for found in small_glip().detect(out, [(48, 64), (48, 64)], {1: [1]}):
        assert isinstance(found, Detections)
        assert [tuple(value.shape) for value in found] == [(0, 4), (0,), (0,)]
        assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_predictions_are_decoded_in_float32(dtype: torch.dtype) -> None:
    out = random_output(dtype)
    wide = Output(*(tuple(value.float() for value in part) for part in out))
    arguments = ([(48, 64), (48, 64)], {1: [1], 2: [2, 3]})
    for narrow, expected in zip(
        small_glip().detect(out, *arguments), small_glip().detect(wide, *arguments), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(narrow, expected, strict=True))


def test_image_sizes_may_be_a_tensor() -> None:
    out = random_output()
    first = small_glip().detect(out, torch.tensor([[48, 64], [40, 50]]), {1: [1]})
    second = small_glip().detect(out, [(48, 64), (40, 50)], {1: [1]})
    assert torch.equal(first[1].boxes, second[1].boxes)


def test_other_rules() -> None:
    """Each in a case where it alone decides."""
    ones = torch.ones(2, dtype=torch.int64)
    apart = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 5]])  # IoU 0.6 with the last pixel, 5/9 without
    scores = torch.tensor([0.9, 0.8])
    assert len(suppress(apart, scores, ones, Rules(nms_threshold=0.58)).scores) == 1
    assert len(suppress(apart, scores, ones, Rules(nms_threshold=0.58, last_pixel_included=False)).scores) == 2
    line = torch.tensor([[0.0, 0, 9, 9], [20, 0, 20, 9]])
    assert suppress(line, scores, ones, Rules(empty_dropped=True)).scores.tolist() == scores[:1].tolist()
    ties = torch.tensor([0.9, 0.9])
    assert len(suppress(apart, ties, 1 + torch.arange(2), Rules(most=1)).scores) == 2
    assert len(suppress(apart, ties, 1 + torch.arange(2), Rules(most=1, ties_kept=False)).scores) == 1


def test_the_best_of_a_level_may_be_ranked_without_centerness() -> None:
    out = random_output()
    config = small_glip().config
    found = [
        detect(config, out, [(48, 64), (40, 50)], {1: [1]}, Rules(candidates_per_level=3, ranked_by_centerness=ranked))
        for ranked in (True, False)
    ]
    best = torch.cat([level[0].flatten().sigmoid() for level in out.centerness]).max().sqrt()
    assert not torch.equal(found[0][0].scores, found[1][0].scores)
    assert all((image.scores <= best).all() for images in found for image in images)
