"""GLIP as a graph: the same computation where the model's own is written for one machine or guards against sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from converter.errors import ModelError
from converter.glip.model.config import GLIPConfig
from converter.glip.model.dynamic_conv import TAPS, DeformableConv, DynamicConv, Offsets, sampling
from converter.glip.model.glip import GLIP
from converter.glip.model.precision import accumulation_dtype
from converter.parity.graph import Axis, Graph
from converter.parity.mutations import patched

MULTIPLE = 32  # what sides of pictures are padded to; of others a graph for any size would need far more formulas
TRACED = (160, 224)  # a size whose maps are no single row or column, down to 2x2 cells, as no length is taken for 1
TOKENS = 40
LONGEST = 4096  # pixels of a side: no detector is run on longer ones

torch.library.define(
    "converter::deform_conv", "(Tensor x, Tensor weight, Tensor offset, Tensor bias, Tensor mask, int stride) -> Tensor"
)


def _shape(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor, mask: Tensor, stride: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])


torch.library.register_fake("converter::deform_conv", _shape)


def graph_of(model: GLIP, size: tuple[int, int] | None, tokens: int | None, gathers: bool) -> Graph:
    """See `Family.graph`."""
    limit = _limit(model.config)
    if tokens is not None and not 0 < tokens <= limit:
        raise ModelError(f"tokens: found {tokens}, expected 1 to {limit}, what the model has positions for.")
    if size is not None and not 1 <= min(size) <= max(size) <= LONGEST:
        raise ModelError(f"size: found {size[0]}x{size[1]}, expected height and width in pixels, at most {LONGEST}.")
    height, width = size or TRACED
    count = tokens or min(TOKENS, limit)
    ids = torch.ones(2, count, dtype=torch.int64)
    batch, text = Axis("batch"), Axis("tokens", most=limit)
    sides = {} if size else {2: Axis("height", MULTIPLE), 3: Axis("width", MULTIPLE)}
    caption = {0: batch} | ({} if tokens else {1: text})
    dtype = next(model.parameters()).dtype
    return Graph(
        {"images": torch.zeros(2, 3, height, width, dtype=dtype), "input_ids": ids, "attention_mask": ids.clone()},
        {"images": {0: batch, **sides}, "input_ids": caption, "attention_mask": caption},
        _exporting(gathers),
        {} if gathers else {torch.ops.converter.deform_conv.default: _operator},
    )


def _limit(config: GLIPConfig) -> int:
    """The most tokens that a caption may have."""
    return min(config.max_positions, config.prompt_length or config.max_positions)


@contextmanager
def _exporting(gathers: bool) -> Iterator[None]:
    """In it a model is exported, and cannot run unless `gathers`: the operator has no kernel."""
    with ExitStack() as stack:
        stack.enter_context(patched(Offsets, "flat", _flat))
        stack.enter_context(patched(DynamicConv, "_offsets", _offsets))
        stack.enter_context(patched(DeformableConv, "_convolved", _gathered if gathers else _operated))
        yield


def _operator(x: Any, weight: Any, offset: Any, bias: Any, mask: Any, stride: int) -> Any:
    """ONNX's DeformConv, since opset 19: offsets are (y, x) pairs for each cell of the kernel, as here."""
    from onnxscript import opset19

    return opset19.DeformConv(
        x, weight, offset, bias, mask, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride]
    )


def _operated(self: DeformableConv, x: Tensor, offsets: Offsets, stride: int, kernel: Tensor) -> Tensor:
    wide = offsets.shift.dtype
    arguments = (x.to(wide), self.weight.to(wide), offsets.shift, self.bias.to(wide), offsets.weight)
    out: Tensor = torch.ops.converter.deform_conv(*arguments, stride)
    return out.to(x.dtype)


def _gathered(self: DeformableConv, x: Tensor, offsets: Offsets, stride: int, kernel: Tensor) -> Tensor:
    """As the model's own, with an addition for each of the four corners in place of an embedding bag."""
    batch, channels, height, width = x.shape
    corners, shares = sampling(offsets, stride, (height, width))
    rows = x.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    samples = sum(rows[corners[:, i]] * shares[:, i : i + 1].to(x.dtype) for i in range(4))
    assert isinstance(samples, Tensor)
    out = torch.addmm(self.bias, samples.reshape(-1, TAPS * channels), kernel)
    return out.reshape(batch, *offsets.shift.shape[-2:], -1).permute(0, 3, 1, 2)


def _flat(self: Offsets, height: int, width: int) -> Offsets:
    """As the model's own, whatever the size: where it is the same, this changes nothing."""
    batch, cells = self.shift.shape[0], height * width
    return Offsets(
        self.shift.flatten(1)[:, : 2 * TAPS * cells].reshape(batch, 2 * TAPS, height, width),
        self.weight.flatten(1)[:, : TAPS * cells].reshape(batch, TAPS, height, width),
    )


def _offsets(self: DynamicConv, level: Tensor) -> Offsets:
    """As the convolution that it is."""
    wide = accumulation_dtype(level.dtype)
    bias = self.offset.get_parameter("bias")
    predicted = F.conv2d(level.to(wide), self.offset.weight.to(wide), bias.to(wide), padding=1)
    return Offsets(shift=predicted[:, : 2 * TAPS], weight=predicted[:, 2 * TAPS :].sigmoid())
