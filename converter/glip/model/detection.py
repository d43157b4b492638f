"""From predictions to boxes: anchors, decoding, non-maximum suppression (ATSS, arXiv:1912.02424, as GLIP runs it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from converter.glip.model.config import DELTA_WEIGHTS, MAX_LOG_GROWTH, RULES, GLIPConfig, Rules
from converter.glip.model.head import Output
from converter.glip.model.precision import accumulation_dtype

NMS_BLOCK = 1024  # candidates that are compared with one another at a time


class Detections(NamedTuple):
    """Objects of one image, highest score first.

    boxes: (N, 4) float32, pixels of the unpadded image, corners x1 y1 x2 y2, the last pixel included;
    scores: (N,) in (0, 1), float32 or float64; labels: (N,) int64, the keys of the positive map.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def level_anchors(config: GLIPConfig, sizes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, ...]:
    """One square anchor per cell, (H*W, 4) float32 corners x1 y1 x2 y2 per level, cells in reading order."""
    levels = []
    for stride, side, (height, width) in zip(config.anchor_strides, config.anchor_sizes, sizes, strict=True):
        y = torch.arange(height, device=device, dtype=torch.float32) * stride + (stride - 1) / 2
        x = torch.arange(width, device=device, dtype=torch.float32) * stride + (stride - 1) / 2
        centre = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)
        reach = (side - 1) / 2
        levels.append(torch.cat([centre - reach, centre + reach], dim=-1))
    return tuple(levels)


def decode(deltas: Tensor, anchors: Tensor, *, shrinking_limited: bool = False) -> Tensor:
    """Boxes (N, 4) from deltas (N, 4) and anchors (N, 4), as corners. shrinking_limited: see `Rules`.

    Corner pixels belong to the box (the +1 convention of Fast R-CNN): a box of one pixel has equal corners, width 1.
    """
    anchors = anchors.to(deltas.dtype)
    size = anchors[:, 2:] - anchors[:, :2] + 1
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    deltas = deltas / deltas.new_tensor(DELTA_WEIGHTS)
    centre = deltas[:, :2] * size + centre
    growth = deltas[:, 2:].clamp(min=-MAX_LOG_GROWTH if shrinking_limited else None, max=MAX_LOG_GROWTH)
    reach = (growth.exp() * size - 1) / 2
    return torch.cat([centre - reach, centre + reach], dim=-1)


def detect(
    config: GLIPConfig,
    output: Output,
    image_sizes: Sequence[tuple[int, int]],
    positive_map: Mapping[int, Sequence[int]],
    rules: Rules | None = None,
) -> list[Detections]:
    """Detections of each image. The caller has checked the inputs.

    image_sizes: (height, width) before padding; positive_map: label -> token positions; rules: by default
    the reference's.
    """
    rules = rules or RULES
    sizes = [(deltas.shape[-2], deltas.shape[-1]) for deltas in output.box_deltas]
    device = output.box_deltas[0].device
    anchors = level_anchors(config, sizes, device)
    phrases = _Phrases.of(positive_map, device)
    return [_detect_image(output, image, size, anchors, phrases, rules) for image, size in enumerate(image_sizes)]


class _Phrases(NamedTuple):
    """The positive map as tensors: labels (L,); tokens (L, M), 0 after the last; used (L, M) bool."""

    labels: Tensor
    tokens: Tensor
    used: Tensor

    @classmethod
    def of(cls, positive_map: Mapping[int, Sequence[int]], device: torch.device) -> _Phrases:
        longest = max(len(tokens) for tokens in positive_map.values())
        filled = [[*tokens, *[0] * (longest - len(tokens))] for tokens in positive_map.values()]
        used = [[position < len(tokens) for position in range(longest)] for tokens in positive_map.values()]
        return cls(
            torch.tensor(list(positive_map), device=device),
            torch.tensor(filled, device=device),
            torch.tensor(used, device=device),
        )

    def scores(self, token_logits: Tensor) -> Tensor:
        """(N, T) logits -> (N, L): the mean of the sigmoids of each phrase's tokens."""
        probabilities = token_logits[:, self.tokens].sigmoid() * self.used  # (N, L, M)
        return probabilities.sum(dim=-1) / self.used.sum(dim=-1)


def _detect_image(
    output: Output, image: int, size: tuple[int, int], anchors: tuple[Tensor, ...], phrases: _Phrases, rules: Rules
) -> Detections:
    """Candidates of all levels, then suppression between them."""
    dtype = accumulation_dtype(output.box_deltas[0].dtype)
    boxes, scores, labels = [], [], []
    for level, level_boxes in enumerate(anchors):
        # float32 in the reference whatever the dtype: in float64 the last digits decide which is the hundredth
        phrase = phrases.scores(output.token_logits[level][image].to(dtype)).float().to(dtype)  # (N, L)
        centerness = output.centerness[level][image].flatten().to(dtype).sigmoid()  # (N,)
        cell, label = torch.nonzero(phrase > rules.score_threshold, as_tuple=True)
        score = phrase[cell, label] * centerness[cell]
        # a stable sort, so that ties at the limit fall the same way on every run and device
        rank = score if rules.ranked_by_centerness else phrase[cell, label]
        order = rank.argsort(descending=True, stable=True)[: rules.candidates_per_level]
        cell, label = cell[order], label[order]
        deltas = output.box_deltas[level][image].flatten(1).T.to(dtype)[cell]  # (K, 4)
        boxes.append(decode(deltas, level_boxes[cell], shrinking_limited=rules.shrinking_limited))
        scores.append(score[order].sqrt())
        labels.append(phrases.labels[label])
    return suppress(clip(torch.cat(boxes).float(), size), torch.cat(scores), torch.cat(labels), rules)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners moved into an image of (height, width): 0 to width - 1, 0 to height - 1."""
    height, width = size
    limit = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), limit)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, rules: Rules | None = None) -> Detections:
    """Greedy non-maximum suppression within each label, then the best `rules.most`.

    As the reference does, scores are compared with the hundredth one rounded to float32. In float32 this changes
    nothing; in float64 the limit is above the hundredth score half of the time, and 99 are left.

    Candidates are processed in blocks, highest score first, until enough boxes are kept. So thousands of
    candidates need neither a matrix of all pairs nor a step for each box.
    """
    rules = rules or RULES
    most = rules.most

    def enough(kept: Tensor) -> Tensor:
        return scores[kept[most - 1]].float().to(scores)

    order = scores.argsort(descending=True, stable=True)
    if rules.empty_dropped:
        order = order[(boxes[order, 2:] > boxes[order, :2]).all(dim=-1)]
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    kept = order.new_empty(0)
    for begin in range(0, len(order), NMS_BLOCK):
        block = torch.arange(begin, min(begin + NMS_BLOCK, len(order)), device=order.device)
        # one more than are wanted, since only then the limit applies
        if len(kept) > most and scores[block[0]] < enough(kept):
            break
        fallen = _overlaps(boxes, labels, kept, block, rules).any(dim=0)
        block = block[~fallen]
        kept = torch.cat([kept, block[_greedy(_overlaps(boxes, labels, block, block, rules).triu(diagonal=1))]])
    if len(kept) > most:
        kept = kept[scores[kept] >= enough(kept)] if rules.ties_kept else kept[:most]
    return Detections(boxes[kept], scores[kept], labels[kept])


def _greedy(beats: Tensor) -> Tensor:
    """Which of N candidates, best first, survive: (N,) bool. beats (N, N): row i suppresses column j > i, if it
    survives itself.

    Starts from "all survive". A candidate depends on better ones only, so each round settles at least one more, in
    order. When nothing changes, the result is the greedy one; real images take a few rounds.
    """
    before = beats.new_zeros(len(beats))
    alive = beats.new_ones(len(beats))
    while not torch.equal(before, alive):
        before, alive = alive, ~(beats & alive[:, None]).any(dim=0)
    return alive


def _overlaps(boxes: Tensor, labels: Tensor, first: Tensor, second: Tensor, rules: Rules) -> Tensor:
    """(len(first), len(second)) bool: equal label and IoU above the threshold."""
    one = int(rules.last_pixel_included)
    a, b = boxes[first][:, None], boxes[second][None]  # (N, 1, 4), (1, M, 4)
    side = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + one).clamp(min=0)
    shared = side.prod(dim=-1)
    area_a = (a[..., 2:] - a[..., :2] + one).prod(dim=-1)
    area_b = (b[..., 2:] - b[..., :2] + one).prod(dim=-1)
    iou = shared / (area_a + area_b - shared)
    return (iou > rules.nms_threshold) & (labels[first][:, None] == labels[second][None])
