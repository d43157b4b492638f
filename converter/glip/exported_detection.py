"""From predictions to boxes as a part of an exported graph: what `model.detect` finds, for runtimes without PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from converter.glip.model.config import RULES, GLIPConfig
from converter.glip.model.detection import decode, level_anchors
from converter.glip.model.head import Output
from converter.glip.model.precision import accumulation_dtype
from converter.parity.graph import Axis, Graph

_NONE = -1.0  # the score of what is no candidate; of candidates it is 0 at least
_IS_ONE = -0.5
_LABELS = 5  # of the example

torch.library.define(
    "converter::non_max_suppression", "(Tensor boxes, Tensor scores, int most, float iou, float score) -> Tensor"
)


@torch.library.register_fake("converter::non_max_suppression")  # type: ignore[untyped-decorator]
def _shape(boxes: Tensor, scores: Tensor, most: int, iou: float, score: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), 3, dtype=torch.int64)


def _operator(boxes: Any, scores: Any, most: int, iou: float, score: float) -> Any:
    """ONNX's NonMaxSuppression, since opset 11: (image, class, box) of each box that is kept."""
    from onnxscript import opset18 as op

    limits: list[Any] = [op.Constant(value_int=most), op.Constant(value_float=iou), op.Constant(value_float=score)]
    return op.NonMaxSuppression(boxes, scores, *limits)


OPERATORS: Mapping[Any, Callable[..., Any]] = {torch.ops.converter.non_max_suppression.default: _operator}


def with_detection(graph: Graph, config: GLIPConfig) -> Graph:
    """The graph of a model that also gives `Boxes`."""
    images, mask = graph.inputs["images"], graph.inputs["attention_mask"]
    phrases = torch.eye(_LABELS, mask.shape[1], dtype=torch.bool)
    sizes = torch.tensor([images.shape[2:]] * len(images))
    caption, batch = dict(graph.axes["attention_mask"]), {0: graph.axes["images"][0]}
    return replace(
        graph,
        axes={**graph.axes, "image_sizes": batch, "phrases": caption | {0: Axis("labels")}},
        operators={**graph.operators, **OPERATORS},
        detection=ExportedDetection(config),
        asked={"image_sizes": sizes, "phrases": phrases},
        found=Boxes._fields,
    )


class Boxes(NamedTuple):
    """What is found in a batch of pictures: picture by picture, in each the highest score first.

    boxes: (N, 4) float32, pixels of the unpadded picture, corners x1 y1 x2 y2, the last pixel included; scores: (N,)
    float32; labels: (N,) int64, rows of `phrases` counted from 1; pictures: (N,) int64, which one of the batch, from 0.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    pictures: Tensor


class ExportedDetection(nn.Module):
    """`GLIP.detect` for a batch, by the same rules, without a shape or a branch that depends on values until the end.

    image_sizes: (B, 2) int64, height and width before padding; phrases: (L, T) bool, which tokens of the captions are
    words of which label. Of a row without tokens nothing is found.

    Only an exported graph can run it: the suppression is an operator of ONNX. What is found is what `GLIP.detect`
    finds, ties included: of equal scores the first cell is first, and all that tie with the hundredth are kept. The
    last digits of float32 are the runtime's, though, which rounds exponentials and sums in its own way, as PyTorch
    rounds those of equal logits by their place in a map. So these may differ: phrases that score 0.05 before centerness
    but for 1e-7; the order of scores that differ by less than that, and so which of them is the thousandth of its level
    or the hundredth of all; and whether a box is dropped for another where a corner that moves by 2e-4 pixels would
    decide it. Corners in whole pixels are compared exactly.
    """

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, output: Output, image_sizes: Tensor, phrases: Tensor) -> Boxes:
        sizes = [(deltas.shape[-2], deltas.shape[-1]) for deltas in output.box_deltas]
        anchors = level_anchors(self.config, sizes, image_sizes.device)
        levels = [_candidates(*level, phrases) for level in zip(*output, anchors, strict=True)]
        boxes, scores, labels = (
            torch.cat(part, dim=1) for part in zip(*levels, strict=True)
        )  # (B, K), K of all levels
        scores, order = scores.topk(scores.shape[1])  # of equal ones ONNX takes the first first
        labels = labels.gather(1, order)
        limit = (image_sizes.flip(1) - 1).repeat(1, 2)[:, None].to(boxes.dtype)  # (B, 1, 4)
        boxes = torch.minimum(boxes.gather(1, order[..., None].expand(-1, -1, 4)).clamp(min=0), limit)
        kept = _survivors(boxes, scores > _IS_ONE, labels, phrases.shape[0])
        is_last = kept & (kept.cumsum(dim=1) == RULES.most)
        # rounded as in `suppress`
        enough = torch.where(is_last, scores, _NONE).amax(dim=1, keepdim=True).float().to(scores.dtype)
        image, place = (kept & (scores >= enough)).nonzero().unbind(dim=1)
        return Boxes(boxes[image, place], scores[image, place].float(), labels[image, place] + 1, image)


def _candidates(
    token_logits: Tensor, box_deltas: Tensor, centerness: Tensor, anchors: Tensor, phrases: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The best of a level, K of each image: boxes (B, K, 4) float32, scores (B, K), rows of `phrases` (B, K).

    Where fewer are above the threshold, the rest score `_NONE`.
    """
    dtype = accumulation_dtype(box_deltas.dtype)
    count, most = phrases.shape[0], RULES.candidates_per_level
    weights = phrases.to(dtype)
    means = _sigmoid(token_logits.to(dtype)) @ weights.T / weights.sum(dim=1)  # (B, H*W, L)
    means = means.float().to(dtype)
    scores = means * _sigmoid(centerness.to(dtype)).flatten(1)[..., None]
    scores = torch.where(means > RULES.score_threshold, scores, _NONE).flatten(1)
    # so there are never fewer than `most`, whatever the size
    best, place = torch.cat([scores, scores.new_full((scores.shape[0], most), _NONE)], dim=1).topk(most)
    cell = (place // count).clamp(max=anchors.shape[0] - 1)
    deltas = box_deltas.to(dtype).flatten(2).mT.gather(1, cell[..., None].expand(-1, -1, 4))  # (B, K, 4)
    boxes = decode(deltas.flatten(0, 1), anchors[cell.flatten()]).view(*cell.shape, 4)
    roots = torch.where(best > _IS_ONE, best.clamp(min=0).sqrt(), _NONE)
    return boxes.float(), roots, place - cell * count


def _survivors(boxes: Tensor, is_one: Tensor, labels: Tensor, count: int) -> Tensor:
    """Which of the candidates, best first, are kept of those with one label: (B, K) bool.

    Their rank stands for the score, since runtimes do not agree on the order of equal scores. A far corner one pixel
    further gives the operator, which knows no last pixel, sides and areas as they are here.
    """
    most = boxes.shape[1]
    rank = torch.arange(most, 0, -1, device=boxes.device, dtype=torch.float32)
    own = labels[:, None] == torch.arange(count, device=boxes.device)[:, None]  # (B, L, K)
    ranks = torch.where(own & is_one[:, None], rank, _NONE)
    corners = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    found = torch.ops.converter.non_max_suppression(corners, ranks, most, RULES.nms_threshold, _IS_ONE)
    image, _, place = found.unbind(dim=1)
    return torch.zeros_like(is_one).index_put((image, place), torch.ones_like(image, dtype=torch.bool))


def _sigmoid(x: Tensor) -> Tensor:
    """Written out, as torch computes it: runtimes' own are some 1e-8 beside it, which is all of a score near 0."""
    return 1 / (1 + (-x).exp())
