"""Every fault in a model is seen, in the first stage that it touches."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from converter.glip import GLIP
from converter.parity.capture import Capture
from converter.parity.run import parity
from tests.support.small_glip import small_glip, subject


def scale_one_weight(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.head.blocks[1].dynamic_conv.finer.conv.weight[3, 2, 1, 0] *= 1 + 1e-6


def swap_two_biases(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    layer = model.text_encoder.layers[1].mlp.fc2
    layer.bias[[0, 1]] = layer.bias[[1, 0]]


def transpose_a_projection(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    projection = model.backbone.stages[1].blocks[0].attention.projection
    projection.weight.copy_(projection.weight.T.clone())


def swap_query_and_key(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    qkv = model.head.blocks[0].text_layer.attention.qkv
    q, k, v = qkv.weight.chunk(3)
    qkv.weight.copy_(torch.cat([k, q, v]))


def flip_a_sign(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.head.box_scale[4] *= -1


def change_an_epsilon(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.backbone.stages[0].blocks[0].norm1.eps = 1e-6


def change_berts_epsilon(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.text_encoder.layers[0].mlp.norm.eps = 1e-5


def change_a_group_norms_epsilon(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.head.blocks[0].dynamic_conv.same.norm.eps = 1e-6


def approximate_gelu(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    gelu = F.gelu
    patch.setattr(F, "gelu", lambda x: gelu(x, approximate="tanh"))


def drop_the_relu_of_p7(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("converter.glip.model.fpn.F", SimpleNamespace(interpolate=F.interpolate, relu=lambda x: x))


def resize_by_cell_areas(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    resize = F.interpolate

    def other(x: Tensor, align_corners: bool | None = None, **arguments: object) -> Tensor:
        return resize(x, align_corners=align_corners and False, **arguments)

    patch.setattr(F, "interpolate", other)


def leave_a_weight_unloaded(model: GLIP, patch: pytest.MonkeyPatch) -> None:
    model.head.log_scale.fill_(math.nan)


MUTATIONS: list[Callable[[GLIP, pytest.MonkeyPatch], None]] = [
    scale_one_weight,
    swap_two_biases,
    transpose_a_projection,
    swap_query_and_key,
    flip_a_sign,
    change_an_epsilon,
    change_berts_epsilon,
    change_a_group_norms_epsilon,
    approximate_gelu,
    drop_the_relu_of_p7,
    resize_by_cell_areas,
    leave_a_weight_unloaded,
]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_every_mutation_is_seen(
    capture: Capture,
    compact: Capture,
    mutate: Callable[[GLIP, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_glip()
    with torch.no_grad():
        mutate(model, monkeypatch)
    whole, probes = parity(subject(model), capture), parity(subject(model), compact)
    assert (whole.passed, probes.passed) == (False, False)
    assert whole.problems
    assert whole.culprits
