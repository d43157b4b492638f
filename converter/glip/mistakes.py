"""Known mistakes of re-implementations of GLIP. Each is a context in which this package's model makes the mistake.

Most were measured on the official code; the others are what ports of Swin, BERT and detection get wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converter.glip.model import bert, detection, dynamic_conv, fpn, glip, swin
from converter.glip.model.dynamic_conv import DynamicConv, Offsets
from converter.glip.model.fusion import Fused, Fusion
from converter.glip.model.glip import GLIP
from converter.glip.model.head import Head, Output
from converter.glip.model.swin import PatchMerging
from converter.parity.family import Mistake
from converter.parity.mutations import patched

Context = Callable[[GLIP], AbstractContextManager[None]]
CONVOLUTION = r"head\.blocks\.\d+\.dynamic_conv"
FUSION = r"head\.blocks\.\d+\.fusion"


def _patch(target: Any, name: str, make: Callable[[Any], object]) -> Context:
    """Replace `target.name` by `make(target.name)`; the same for every model."""
    return lambda model: patched(target, name, make(getattr(target, name)))


def _hooked(find: Callable[[GLIP], list[nn.Module]], hook: Callable[..., object], *, before: bool = False) -> Context:
    """Register `hook` on every module that `find` returns: on its inputs if `before`, else on its output."""

    @contextmanager
    def context(model: GLIP) -> Iterator[None]:
        with ExitStack() as stack:
            for module in find(model):
                handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
                stack.callback(handle.remove)
            yield

    return context


def _of(kind: type[nn.Module]) -> Callable[[GLIP], list[nn.Module]]:
    return lambda model: [module for module in model.modules() if isinstance(module, kind)]


def _crop(own: Offsets, height: int, width: int) -> Offsets:
    return Offsets(own.shift[..., :height, :width], own.weight[..., :height, :width])


def _resize(own: Offsets, height: int, width: int) -> Offsets:
    size = (height, width)
    return Offsets(*(F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in own))


def _exchange_axes(original: Callable[[DynamicConv, Tensor], Offsets]) -> Callable[[DynamicConv, Tensor], Offsets]:
    def offsets(self: DynamicConv, level: Tensor) -> Offsets:
        own = original(self, level)
        batch, _, height, width = own.shift.shape
        return own._replace(shift=own.shift.view(batch, -1, 2, height, width).flip(2).flatten(1, 2))

    return offsets


def _interpolate(**changes: object) -> Callable[[Any], object]:
    """A wrapper of F.interpolate with changed arguments: `mode` in nearest calls, any other in bilinear ones."""

    def make(original: Any) -> object:
        def resize(*arguments: object, **named: object) -> object:
            applies = named.get("mode") == ("nearest" if "mode" in changes else "bilinear")
            return original(*arguments, **({**named, **changes} if applies else named))

        return resize

    return make


def _raw_residual(original: Callable[..., Fused]) -> Callable[..., Fused]:
    def forward(self: Fusion, levels: tuple[Tensor, ...], text: Tensor, attended: Tensor) -> Fused:
        out = original(self, levels, text, attended)
        raw_minus_normed = [x - self.image_norm(x.movedim(1, -1)).movedim(-1, 1) for x in levels]
        return Fused(
            tuple(x + d for x, d in zip(out.levels, raw_minus_normed, strict=True)),
            out.text - self.text_norm(text) + text,
        )

    return forward


def _bert_embedding(model: GLIP) -> AbstractContextManager[None]:
    """Logits from BERT's masked embedding, as in a model without fusion."""
    forward, alignment = Head.forward, Head._alignment
    seen: list[Tensor] = []

    def remember(self: Head, levels: Any, text: Any, attended: Tensor) -> Output:
        seen[:] = [text.embedded]
        return forward(self, levels, text, attended)

    @contextmanager
    def context() -> Iterator[None]:
        with (
            patched(Head, "forward", remember),
            patched(Head, "_alignment", lambda self, embedding: alignment(self, seen[0])),
        ):
            yield

    return context()


def _merge_rows_first(original: object) -> object:
    def forward(self: PatchMerging, x: Tensor, size: tuple[int, int]) -> Tensor:
        batch, _, dim = x.shape
        height, width = size
        x = F.pad(x.view(batch, height, width, dim), (0, 0, 0, width % 2, 0, height % 2))
        cells = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(cells, dim=-1).flatten(1, 2)))
        return out

    return forward


class _Torch:
    """torch with -10000 for the lowest number of every dtype."""

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def finfo(self, dtype: torch.dtype) -> object:
        return SimpleNamespace(min=-10000.0)


def _second_and_third_exchanged(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    a, b, c, d = output.chunk(4, dim=1)
    return torch.cat([a, c, b, d], dim=1)


def _without_plus_one(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda deltas, anchors, **how: original(deltas, anchors - anchors.new_tensor([0, 0, 1, 1]), **how)


def _with_rules(**changes: Any) -> Callable[[Any], AbstractContextManager[None]]:
    return _patch(glip, "RULES", lambda rules: replace(rules, **changes))


MISTAKES: tuple[Mistake, ...] = (
    Mistake("offsets cropped, not read flat", _patch(Offsets, "flat", lambda _: _crop), CONVOLUTION),
    Mistake("offsets resized, not read flat", _patch(Offsets, "flat", lambda _: _resize), CONVOLUTION),
    Mistake("offsets as (x, y)", _patch(DynamicConv, "_offsets", _exchange_axes), CONVOLUTION),
    Mistake(
        "upsampling without align_corners", _patch(F, "interpolate", _interpolate(align_corners=False)), CONVOLUTION
    ),
    Mistake("fusion's residual on what is not normalised", _patch(Fusion, "forward", _raw_residual), FUSION),
    Mistake(
        "no text mask where the image reads the text",
        _patch(Fusion, "forward", lambda original: lambda self, v, t, a: original(self, v, t, torch.ones_like(a))),
        FUSION,
    ),
    Mistake(
        "GELU by tanh",
        _patch(F, "gelu", lambda original: lambda x: original(x, approximate="tanh")),
        r"backbone\.stages.*|text_encoder\.layers.*|head\.blocks\.\d+\.text_layer",
    ),
    Mistake(
        "P7 without the ReLU",
        _patch(fpn, "F", lambda _: SimpleNamespace(interpolate=F.interpolate, relu=lambda x: x)), "fpn",
    ),
    Mistake(
        "dynamic ReLU split as a1, a2, b1, b2",
        _hooked(lambda model: [m.fc2 for m in model.modules() if isinstance(m, dynamic_conv.DYReLU)],
                _second_and_third_exchanged),
        CONVOLUTION,
    ),
    Mistake(
        "Swin's mask minus infinity, not -100", _patch(swin, "CROSS_REGION", lambda _: -torch.inf), r"backbone\..*",
        invisible="exp(-100) is 4e-44 of a weight; beside it a float64 sum of the others does not change",
    ),
    Mistake(
        "BERT's mask -10000, not the lowest number", _patch(bert, "torch", lambda _: _Torch()), r"text_encoder\..*",
        invisible="exp(-10000) is zero in every format, and so is exp of the lowest number",
    ),
    Mistake(
        "fusion fed the masked text",
        _hooked(_of(Head), lambda m, inputs: (inputs[0], inputs[1]._replace(hidden=inputs[1].embedded), inputs[2]),
                before=True),
        FUSION,
    ),
    Mistake("logits from BERT's embedding", _bert_embedding, ""),
    Mistake(
        "text embedding not halved",
        _hooked(lambda model: [model.head.text_projection], lambda m, inputs: (inputs[0] * 2,), before=True), "",
    ),
    Mistake("text embedding not normalised", _patch(F, "normalize", lambda _: lambda x, dim: x), ""),
    Mistake(
        "level attention by sigmoid, not the hard one",
        _patch(DynamicConv, "_weights", lambda original: _with_sigmoid(original)), CONVOLUTION,
    ),
    # the following were not measured on the official code
    Mistake("patches merged row by row", _patch(PatchMerging, "forward", _merge_rows_first), r".*\.downsample"),
    Mistake(
        "upsampling of the pyramid bilinear, not nearest", _patch(F, "interpolate", _interpolate(mode="bilinear")),
        "fpn",
    ),
    Mistake("anchors without their +1", _patch(detection, "decode", _without_plus_one), "", detections=True),
    Mistake("suppression at an IoU of 0.5", _with_rules(nms_threshold=0.5), "", detections=True),
    Mistake(
        "scores without the root",
        _patch(detection, "suppress", lambda original: lambda boxes, score, *rest: original(boxes, score**2, *rest)),
        "", detections=True,
    ),
    Mistake("no threshold of scores", _with_rules(score_threshold=0.0), "", detections=True),
    Mistake(
        "box deltas without weights", _patch(detection, "DELTA_WEIGHTS", lambda _: (1.0,) * 4), "", detections=True,
    ),
)  # fmt: skip


_NEED_FUSION = {
    "fusion's residual on what is not normalised",
    "no text mask where the image reads the text",
    "fusion fed the masked text",
    "logits from BERT's embedding",
}


def mistakes_of(model: GLIP) -> list[Mistake]:
    """The mistakes that apply to the model: those of the fusion only if it has one."""
    return [mistake for mistake in MISTAKES if model.config.fusion or mistake.name not in _NEED_FUSION]


def _with_sigmoid(original: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    def weights(self: DynamicConv, pools: list[Tensor]) -> list[Tensor]:
        with patched(dynamic_conv, "hard_sigmoid", torch.sigmoid):
            return original(self, pools)

    return weights
