"""The small GLIP in the official shape: modules under the official names that return what the official ones return.

The leaves are in-house modules; what holds them together is written once more, in the official order of operations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converter.glip import GLIP, GLIPConfig
from converter.glip.model.detection import detect, level_anchors
from converter.glip.model.head import Head, Output
from converter.glip.model.swin import SwinTransformer, relative_position_index
from maskrcnn_benchmark.structures.bounding_box import BoxList
from maskrcnn_benchmark.structures.image_list import ImageList, to_image_list
from tests.support.small_glip import small_config

CLS, SEP, WORDS = 1, 2, 3  # ids; 0 is padding


class Encoding(dict):  # type: ignore[type-arg]
    """Tokens of captions, as tokenizers of the `transformers` library return them."""

    def __init__(self, tensors: dict[str, Any], spans: list[list[tuple[int, int]]]) -> None:
        super().__init__(tensors)
        self.spans = spans

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def to(self, device: Any) -> Encoding:
        return Encoding({key: value.to(device) for key, value in self.items()}, self.spans)

    def char_to_token(self, batch: int, char: int) -> int | None:
        for position, (begin, end) in enumerate(self.spans[batch]):
            if begin <= char < end:
                return position + 1  # behind [CLS]
        return None


class Tokenizer:
    """A token per word and per dot."""

    def get_vocab(self) -> dict[str, int]:
        return {}

    def batch_encode_plus(
        self, captions: Sequence[str], max_length: int, truncation: bool, padding: str = "", **options: Any
    ) -> Encoding:
        matches = [list(re.finditer(r"\w+|\.", caption))[: max_length - 2] for caption in captions]
        rows = [[CLS, *(WORDS + sum(m[0].encode()) % 47 for m in of_one), SEP] for of_one in matches]
        spans = [[m.span() for m in of_one] for of_one in matches]
        if options.get("return_tensors") != "pt":
            return Encoding({"input_ids": rows}, spans)
        length = max_length if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return Encoding({"input_ids": ids, "attention_mask": (ids != 0).long()}, spans)


class Layer(nn.Module):
    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.window_size = stage.window_size
        self.blocks = stage.blocks
        self.downsample = stage.downsample

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index = relative_position_index(self.window_size, x.device)
        for block in self.blocks:
            x = block(x, size, index)
        return x, x if self.downsample is None else self.downsample(x, size)


class Body(nn.Module):
    """Swin: a list of four maps."""

    def __init__(self, swin: SwinTransformer) -> None:
        super().__init__()
        self.patch_embed = swin.patch_embed
        self.layers = nn.ModuleList(map(Layer, swin.stages))
        for index, norm in enumerate([nn.Identity(), *swin.norms]):
            self.add_module(f"norm{index}", norm)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        outs = []
        for index, layer in enumerate(self.layers):
            out, x = layer(x, (height, width))
            out = getattr(self, f"norm{index}")(out)
            outs.append(out.view(len(out), height, width, -1).permute(0, 3, 1, 2).contiguous())
            height, width = (height + 1) // 2, (width + 1) // 2
        return outs


class Pyramid(nn.Module):
    def __init__(self, fpn: nn.Module) -> None:
        super().__init__()
        self.levels = fpn

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        levels: tuple[Tensor, ...] = self.levels(tuple(maps[1:]))
        return levels


class BertLayer(nn.Module):
    """A layer of the `transformers` library: a tuple of one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, attended: Tensor) -> tuple[Tensor]:
        return (self.layer(x, attended),)


class BertModel(nn.Module):
    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.embeddings = encoder.embeddings
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(map(BertLayer, encoder.layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x: Tensor = self.embeddings(input_ids)
        for layer in self.encoder.layer:
            x = layer(x, attention_mask != 0)[0]
        return x


class BertEncoder(nn.Module):
    """The text features as a dict, which the head then changes in place."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.model = BertModel(encoder)

    def forward(self, text: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = text["attention_mask"]
        hidden = self.model(text["input_ids"], mask)
        embedded = hidden * mask.unsqueeze(-1).float()
        return {"aggregate": embedded.sum(1), "embedded": embedded, "masks": mask, "hidden": hidden}


class VLFuse(nn.Module):
    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.b_attn = fusion

    def forward(self, x: dict[str, Any]) -> dict[str, Any]:
        text = x["lang"]
        levels, text["hidden"] = self.b_attn(tuple(x["visual"]), text["hidden"], text["masks"] != 0)
        return {"visual": list(levels), "lang": text}


class BertEncoderLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: dict[str, Any]) -> dict[str, Any]:
        text = x["lang"]
        text["hidden"] = self.layer(text["hidden"], text["masks"] != 0)
        return {"visual": x["visual"], "lang": text}


class DyConv(nn.Module):
    def __init__(self, dynamic_conv: nn.Module) -> None:
        super().__init__()
        self.DyConv = dynamic_conv

    def forward(self, x: dict[str, Any]) -> dict[str, Any]:
        return {"visual": list(self.DyConv(tuple(x["visual"]))), "lang": x["lang"]}


class VLDyHead(nn.Module):
    """Ten outputs, of which GLIP uses the boxes, the centerness and the logits of tokens."""

    def __init__(self, head: Head, channels: int) -> None:
        super().__init__()
        tower: list[nn.Module] = []
        for block in head.blocks:
            if block.fusion is not None:
                tower += [VLFuse(block.fusion), BertEncoderLayer(block.text_layer)]
            tower.append(DyConv(block.dynamic_conv))
        self.dyhead_tower = nn.Sequential(*tower)
        self.fuses = head.blocks[0].fusion is not None
        self.cls_logits = nn.Conv2d(channels, 3, 1)  # computed and never used, as in the official head
        self.bbox_pred = head.box
        self.scales = head.box_scale
        self.centerness = head.centerness
        self.dot_product_projection_text = head.text_projection
        self.log_scale, self.bias_lang, self.bias0 = head.log_scale, head.text_bias, head.bias

    def forward(self, levels: tuple[Tensor, ...], text: dict[str, Tensor], embedding: Tensor) -> tuple[Any, ...]:
        tower = self.dyhead_tower({"visual": levels, "lang": text})
        if self.fuses:
            embedding = tower["lang"]["hidden"]
        embedding = F.normalize(embedding, dim=-1)
        tokens = self.dot_product_projection_text(embedding / 2)
        bias = (embedding @ self.bias_lang + self.bias0).unsqueeze(1)
        visual = tower["visual"]
        dot_product = [
            ((level.flatten(2).transpose(1, 2) @ tokens.transpose(1, 2)) / self.log_scale.exp() + bias).clamp(-5e4, 5e4)
            for level in visual
        ]
        boxes = [scale * self.bbox_pred(level) for scale, level in zip(self.scales, visual, strict=True)]
        centerness = [self.centerness(level) for level in visual]
        logits = [self.cls_logits(level) for level in visual]
        return logits, boxes, centerness, None, None, None, dot_product, None, None, None


class AnchorGenerator(nn.Module):
    """For each image, boxes of each level."""

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, images: ImageList, levels: Sequence[Tensor]) -> list[list[BoxList]]:
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        anchors = level_anchors(self.config, sizes, levels[0].device)
        return [
            [BoxList(of_level, (int(width), int(height))) for of_level in anchors]
            for height, width in images.image_sizes
        ]


class BoxSelector(nn.Module):
    """Detections grouped by label, not by score, as the official code returns them from a CPU."""

    def __init__(self, config: GLIPConfig, faults: Any) -> None:
        super().__init__()
        self.config = config
        self.faults = faults

    def forward(
        self,
        boxes: list[Tensor],
        centerness: list[Tensor],
        anchors: list[list[BoxList]],
        logits: list[Tensor],
        token_logits: None,
        dot_product: list[Tensor],
        positive_map: Mapping[int, list[int]],
    ) -> list[BoxList]:
        print(boxes[-1])  # as the official code does, on each call
        if self.faults.NO_FLOAT64_NMS and boxes[0].dtype == torch.float64:
            raise RuntimeError("expected scalar type Float but found Double")
        out = Output(tuple(dot_product), tuple(boxes), tuple(centerness))
        sizes = [of_image[0].size for of_image in anchors]
        found = detect(self.config, out, [(height, width) for width, height in sizes], dict(positive_map))
        results = []
        for detections, size in zip(found, sizes, strict=True):
            order = detections.labels.argsort(stable=True)
            result = BoxList(detections.boxes[order], size)
            result.add_field("labels", detections.labels[order])
            result.add_field("scores", detections.scores[order])
            results.append(result)
        return results


class VLDyHeadModule(nn.Module):
    def __init__(self, head: Head, config: GLIPConfig, faults: Any) -> None:
        super().__init__()
        self.head = VLDyHead(head, config.channels)
        self.box_selector_test = BoxSelector(config, faults)
        self.anchor_generator = AnchorGenerator(config)

    def forward(
        self, images: ImageList, levels: tuple[Tensor, ...], text: dict[str, Tensor], positive_map: Mapping[int, Any]
    ) -> list[BoxList]:
        logits, boxes, centerness, *_ = outputs = self.head(levels, text, text["embedded"])
        anchors = self.anchor_generator(images, levels)
        found: list[BoxList] = self.box_selector_test(
            boxes, centerness, anchors, logits, None, outputs[6], positive_map
        )
        return found


class GeneralizedVLRCNN(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        config = small_config(fusion=cfg.MODEL.DYHEAD.FUSE_CONFIG.EARLY_FUSE_ON)
        self.take(GLIP(config))

    def take(self, glip: GLIP) -> None:
        """Hold the parts of `glip`."""
        self.backbone = nn.Sequential()
        self.backbone.add_module("body", Body(glip.backbone))
        self.backbone.add_module("fpn", Pyramid(glip.fpn))
        self.tokenizer = Tokenizer()
        self.language_backbone = nn.Sequential()
        self.language_backbone.add_module("body", BertEncoder(glip.text_encoder))
        self.rpn = VLDyHeadModule(glip.head, glip.config, self.cfg.FAULTS)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        """Returns nothing, as the official one."""
        super().train(mode)

    def forward(
        self,
        images: Any,
        targets: None = None,
        captions: Sequence[str] | None = None,
        positive_map: Mapping[int, list[int]] | None = None,
    ) -> list[BoxList]:
        assert captions is not None
        assert positive_map is not None
        images = to_image_list(images)
        text = self.cfg.MODEL.LANGUAGE_BACKBONE
        tokenized = self.tokenizer.batch_encode_plus(
            captions,
            max_length=text.MAX_QUERY_LEN,
            padding="max_length" if text.PAD_MAX else "longest",
            return_special_tokens_mask=True,
            return_tensors="pt",
            truncation=True,
        ).to(images.tensors.device)
        features = self.language_backbone(
            {"input_ids": tokenized.input_ids, "attention_mask": tokenized.attention_mask}
        )
        if self.cfg.FAULTS.NO_FLOAT64 and images.tensors.dtype == torch.float64:
            raise RuntimeError("not implemented for 'Double'")
        if self.cfg.FAULTS.ROUGH_PADDING and images.tensors.dtype == torch.float32:
            features["hidden"][:, 32:] += 1
        levels = self.backbone(images.tensors)
        if self.cfg.FAULTS.NOTICES_HOOKS and any(module._forward_hooks for module in self.modules()):
            levels = tuple(level * (1 + 1e-6) for level in levels)
        if self.cfg.FAULTS.RANDOM:
            self.runs = getattr(self, "runs", 0) + 1
            levels = tuple(level * (1 + 1e-6 * self.runs) for level in levels)
        found: list[BoxList] = self.rpn(images, levels, features, positive_map)
        return found
