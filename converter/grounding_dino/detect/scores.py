"""From probabilities of tokens to scores of phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

HOWS = ("max", "mean")


def phrase_scores(tokens: Tensor, phrases: Mapping[int, Sequence[int]], how: str) -> Tensor:
    """(..., K) scores of the K phrases, from (..., T) probabilities of tokens, each from the positions of its tokens.

    'max' is the largest of them, by which `predict` of the official groundingdino/util/inference.py keeps a box;
    'mean' is that of its evaluation, which divides by a millionth more than there are tokens (demo/test_ap_on_coco.py
    and groundingdino/util/vl_utils.py: create_positive_map_from_span).
    """
    if how == "max":
        return torch.stack([tokens[..., at].amax(dim=-1) for at in map(list, phrases.values())], dim=-1)
    weights = tokens.new_zeros(len(phrases), tokens.shape[-1])
    for row, at in enumerate(phrases.values()):
        weights[row, list(at)] = 1
    return tokens @ (weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)).T


def corners(boxes: Tensor, width: int, height: int) -> Tensor:
    """(..., 4) x1 y1 x2 y2 in pixels of boxes as centre, width and height, in shares of the picture."""
    centre, sides = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=-1) * boxes.new_tensor([width, height] * 2)
