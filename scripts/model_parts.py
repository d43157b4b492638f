"""The parts of GLIP as benchmark_model.py and model_growth.py measure them: weights, inputs, calls, and FLOP needed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from converter.glip.model.config import GLIPConfig
from converter.glip.model.glip import GLIP

ROOT = Path(__file__).resolve().parent.parent
CLS, SEP = 101, 102  # of BERT base uncased
PARTS = ("backbone", "fpn", "text_encoder", "fusion", "text_layer", "dynamic_conv", "forward")
IN_HEAD = ("fusion", "text_layer", "dynamic_conv")  # of the second block: its input comes from a block, as of most
OF_TEXT = ("text_encoder", "fusion", "text_layer", "forward")  # what depends on the number of tokens
Call = Callable[[], object]

# Random weights that keep activations and offsets in range, as those of the captures: gain / sqrt(fan in) by ending
_GAINS = {
    "dyrelu.fc1.weight": 4.0, "dyrelu.fc2.weight": 2.0, "level_attention.weight": 4.0, "offset.weight": 1.5,
    "qkv.weight": 1.4, "projection.weight": 0.7, "fc2.weight": 0.7, "image_query.weight": 1.8, "text_key.weight": 1.8,
}  # fmt: skip


def make_model(source: str, device: torch.device, dtype: torch.dtype) -> GLIP:
    """GLIP by the name of a variant, with weights from a seed, or from a path; for inference."""
    spec = json.loads((ROOT / "mappings" / "glip.json").read_text(encoding="utf-8"))
    if source not in spec["variants"]:
        if not Path(source).exists():
            raise SystemExit(f"{source}: no such file, and none of the models {', '.join(spec['variants'])}")
        return GLIP.from_pretrained(source, device=device, dtype=dtype).requires_grad_(False)
    config = GLIPConfig.from_dict({**spec["common"], **spec["variants"][source]["config"], "prompt_length": 0})
    with torch.device(device):
        model = GLIP(config).eval().requires_grad_(False)
    seed(model)
    return model.to(dtype)


def seed(model: GLIP) -> None:
    """Fill the model with random weights, the same each time on one device."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embeddings" not in name and "bias_table" not in name:
            gain = next((gain for end, gain in _GAINS.items() if name.endswith(end)), 1.0)
            parameter.normal_(std=gain * parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith("layer_scale"):
            parameter.fill_(0.3)
        else:
            norm = parameter.dim() == 1 and "norm" in name and name.endswith("weight")
            parameter.normal_(float(norm), 0.1 if parameter.dim() == 1 else 0.5, generator=generator)


class Parts:
    """Calls of each part of `model` on pictures (B, 3, H, W) and captions of some numbers of tokens, without padding.

    Of the head it is the second block that is called, on what the first one gives. `alone`: only the forward will be.
    """

    def __init__(
        self, model: GLIP, size: tuple[int, int], batch: int, tokens: Sequence[int], *, alone: bool = False
    ) -> None:
        like = next(model.parameters())
        generator = torch.Generator().manual_seed(1)
        self.model = model
        self.images = torch.randn(batch, 3, *size, generator=generator).to(like.device, like.dtype)
        most = max(tokens)
        ids = torch.randint(
            min(999, model.config.vocab_size - 1), model.config.vocab_size, (batch, most), generator=generator
        )
        ids[:, 0] = min(CLS, model.config.vocab_size - 1)
        self.ids = ids.to(like.device)
        self.tokens = tuple(tokens)
        self.block = model.head.blocks[min(1, len(model.head.blocks) - 1)]
        if not alone:
            with torch.inference_mode():
                self.maps = model.backbone(self.images)[1:]
                levels = model.fpn(self.maps)
                self.given = {count: self._to_block(levels, count) for count in self.tokens}

    def caption(self, tokens: int) -> tuple[Tensor, Tensor]:
        """ids (B, T) and attended (B, T) bool."""
        ids = self.ids[:, :tokens].clone()
        ids[:, -1] = min(SEP, self.model.config.vocab_size - 1)
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def _to_block(
        self, levels: tuple[Tensor, ...], tokens: int
    ) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
        """What the measured block is given, levels and text, and what its dynamic convolution is given."""
        ids, attended = self.caption(tokens)
        text = self.model.text_encoder(ids, attended).hidden
        if self.block is not self.model.head.blocks[0]:
            levels, text = self.model.head.blocks[0](levels, text, attended)
        fused = levels if self.block.fusion is None else self.block.fusion(levels, text, attended)[0]
        return levels, text, fused

    def names(self) -> list[str]:
        """Parts that this model has."""
        return [part for part in PARTS if part not in ("fusion", "text_layer") or self.block.fusion is not None]

    def call(self, part: str, tokens: int) -> Call:
        """Our part; without arguments."""
        model, block = self.model, self.block
        ids, attended = self.caption(tokens)
        mask = attended.long()
        if part == "forward":
            return lambda: model(self.images, ids, mask)
        levels, text, fused = self.given[tokens]
        calls: dict[str, Call] = {
            "backbone": lambda: model.backbone(self.images),
            "fpn": lambda: model.fpn(self.maps),
            "text_encoder": lambda: model.text_encoder(ids, attended),
            "fusion": lambda: block.fusion(levels, text, attended),
            "text_layer": lambda: block.text_layer(text, attended),
            "dynamic_conv": lambda: block.dynamic_conv(fused),
        }
        return calls[part]

    def unchecked(self, tokens: int) -> Call:
        """The forward without the checks of its inputs, which look at values: what a CUDA graph can hold."""
        model = self.model
        ids, attended = self.caption(tokens)

        def call() -> object:
            levels = model.head.before_text(model.fpn(model.backbone(self.images)[1:]))
            return model.head(levels, model.text_encoder(ids, attended), attended)

        return call


def needed(config: GLIPConfig, size: tuple[int, int], batch: int, tokens: int) -> dict[str, float]:
    """FLOP of the products that each part needs at least: 2 for each multiplication and addition.

    Counted are matrix products and convolutions on real cells and real tokens, each in the cheapest known order; not
    counted are norms, softmax, sampling, interpolation and other work on single elements.
    """
    c = config
    height, width = (-(-side // c.patch_size) for side in size)
    areas = []  # tokens of each stage
    for _ in c.depths:
        areas.append(height * width)
        height, width = -(-height // 2), -(-width // 2)
    patches = areas[0] * 3 * c.patch_size**2 * c.embed_dim
    backbone, window = float(patches), c.window_size**2
    for stage, (area, dim, depth) in enumerate(zip(areas, c.stage_dims, c.depths, strict=True)):
        backbone += depth * area * ((4 + 2 * c.mlp_ratio) * dim * dim + 2 * window * dim)
        backbone += areas[stage + 1] * 4 * dim * 2 * dim if stage + 1 < len(areas) else 0
    cells = [*areas[1:], height * width, -(-height // 2) * -(-width // 2)]  # P3 to P7
    total, tap = sum(cells), 9 * c.channels
    fpn = sum(area * dim * c.channels for area, dim in zip(areas[1:], c.stage_dims[1:], strict=True))
    fpn += total * tap * c.channels
    layer = tokens * (4 * c.text_dim**2 + 2 * c.text_dim * c.text_mlp_dim + 2 * tokens * c.text_dim)
    sampled = total + sum(cells[1:]) + sum(cells[1:])  # by the level itself, from the finer and from the coarser one
    dynamic = total * tap * 27 + sampled * tap * c.channels
    predictions = tokens * c.text_dim * (c.channels + 1) + total * c.channels * (tokens + 5)
    products = {
        "backbone": backbone,
        "fpn": float(fpn),
        "text_encoder": float(c.text_layers * layer),
        "dynamic_conv": float(dynamic),
    }
    if c.fusion:
        products |= {"fusion": _fusion(c, total, tokens), "text_layer": float(layer)}
    blocks = c.head_blocks * sum(products.get(part, 0.0) for part in IN_HEAD)
    products["forward"] = backbone + fpn + products["text_encoder"] + blocks + predictions
    return {part: 2.0 * batch * count for part, count in products.items()}


def _fusion(c: GLIPConfig, cells: int, tokens: int) -> float:
    """Of one fusion; its three large products by a projection that is taken into the text, or of every cell."""
    folded = tokens * c.fusion_dim * c.channels + cells * c.fusion_heads * tokens * c.channels
    projected = cells * c.channels * c.fusion_dim + cells * tokens * c.fusion_dim
    return float(3 * tokens * c.text_dim * c.fusion_dim + 3 * min(folded, projected))


def _added(_: Sequence[int], a: Sequence[int], b: Sequence[int], **__: object) -> int:
    """FLOP of adding a product, of shapes."""
    return 2 * math.prod(a) * b[-1]


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    return 2 * math.prod(query) * key[-2] + 2 * math.prod(query[:-1]) * key[-2] * value[-1]


NOT_COUNTED = {  # by torch.utils.flop_counter: products that are added in place, attention on the CPU
    torch.ops.aten.addmm_: _added,
    torch.ops.aten.baddbmm_: _added,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
