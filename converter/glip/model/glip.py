"""GLIP: grounded language-image pre-training (Li et al. 2022, arXiv:2112.03857), for inference and fine-tuning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converter.glip.model import inputs
from converter.glip.model.bert import TextEncoder, TextFeatures
from converter.glip.model.config import DETECTIONS_PER_IMAGE, GLIPConfig
from converter.glip.model.detection import Detections, detect, level_anchors
from converter.glip.model.fpn import FPN
from converter.glip.model.fusion import LOGIT_LIMIT
from converter.glip.model.head import Head, Output
from converter.glip.model.swin import SwinTransformer


class GLIP(nn.Module):
    """Finds in images what captions name.

        model = GLIP.from_pretrained("glip-t.safetensors")
        with torch.inference_mode():
            out = model(images, input_ids, attention_mask)
        detections = model.detect(out, image_sizes, {1: [1], 2: [3, 4]})

    images (B, 3, H, W): any size; BGR in 0..255 minus (103.53, 116.28, 123.675), divided by (57.375, 57.12,
    58.395); smaller images padded with zeros below and to the right. input_ids (B, T): BERT base uncased with
    [CLS] and [SEP]. attention_mask (B, T): 0 for padding. All are on the device of the model. Images may have
    any floating dtype and are cast to the model's, in which everything is computed that does not need a wider one.

    There is no dropout, and train() changes nothing.
    """

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = SwinTransformer(config)
        self.fpn = FPN(config)
        self.text_encoder = TextEncoder(config)
        self.head = Head(config)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        root: str | None = None,
    ) -> GLIP:
        """The model in what `convert` wrote, or in a checkpoint of any other known format, such as an official `.pth`.

        The latter is converted on the way, in memory, by the same plan and the same checks. `root` is the state dict
        to take where the file holds several. A path that does not exist but looks like `org/name` is taken from the
        Hugging Face Hub, through its cache, and so is `hf://org/name/file.pth`; `revision` is then a branch, tag or
        commit.

        The model is in eval mode, on `device` ("cuda:0") and in `dtype` ("bfloat16"), whatever the weights are stored
        in; they are read straight into it. ModelError if there is no such device, if the files are damaged, or if names
        or shapes are not exactly the model's, PlanError if the checkpoint fits no known format; every difference is
        listed. HubError if the download fails.
        """
        from converter.glip.weights import Memory, load, open_pretrained
        from converter.hub.resolve import local_path

        memory = Memory.of(device, dtype)  # before a download
        path = local_path(path, revision=revision)
        with open_pretrained(path, root) as checkpoint:
            return load(cls, path, checkpoint, memory).eval()

    def forward(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """Predictions for each cell of five levels, T as in `input_ids`. ModelError for unfit inputs.

        Trailing columns that no caption of the batch attends to are not computed: their token logits are the
        lowest value, -50000, whose sigmoid is 0. (Under torch.export and torch.compile every column is computed and
        ids are not checked, because both would depend on values.)
        """
        images = inputs.check_images(images, self._parameter())
        inputs.check_text(input_ids, attention_mask, images, self.config)
        attended = attention_mask != 0
        tokens = input_ids.shape[1]
        if not torch.compiler.is_compiling():
            kept = inputs.check_ids_and_length(input_ids, attended, self.config.vocab_size)
            input_ids, attended = input_ids[:, :kept], attended[:, :kept]

        levels: tuple[Tensor, ...] = self.fpn(self.backbone(images)[1:])
        text: TextFeatures = self.text_encoder(input_ids, attended)
        out: Output = self.head(levels, text, attended)
        cut = tokens - input_ids.shape[1]
        if cut == 0:
            return out
        return out._replace(token_logits=tuple(F.pad(x, (0, cut), value=-LOGIT_LIMIT) for x in out.token_logits))

    def extract_feat(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The backbone's maps C3, C4, C5, layer-normalised: (B, C, H, W) of stride 8, 16, 32."""
        maps = self.backbone(inputs.check_images(images, self._parameter()))
        return maps[1], maps[2], maps[3]

    def anchors(self, out: Output) -> tuple[Tensor, ...]:
        """The anchor of each cell, (H*W, 4) float32 per level: corners x1 y1 x2 y2 in pixels."""
        sizes = [(deltas.shape[-2], deltas.shape[-1]) for deltas in out.box_deltas]
        return level_anchors(self.config, sizes, out.box_deltas[0].device)

    @torch.no_grad()
    def detect(
        self,
        out: Output,
        image_sizes: Tensor | Sequence[Sequence[int]],
        positive_map: Mapping[int, Sequence[int]],
        max_detections: int = DETECTIONS_PER_IMAGE,
    ) -> list[Detections]:
        """The objects of each image, highest score first; at most `max_detections`, more only if they tie.

        image_sizes: (height, width) of each image before padding, in pixels; positive_map: for each label the
        positions of its tokens in the caption, the same for every image. A phrase's score is the mean over
        its tokens; an object's score is the root of the phrase's score times the centerness. ModelError for unfit
        arguments.
        """
        inputs.check_output(out, len(self.config.anchor_strides))
        sizes = inputs.check_image_sizes(image_sizes, out, self.config.anchor_strides[0])
        phrases = inputs.check_positive_map(positive_map, out.token_logits[0].shape[-1])
        return detect(self.config, out, sizes, phrases, max_detections)

    def _parameter(self) -> Tensor:
        """Any parameter, for the dtype and device of the model."""
        return self.head.box_scale
