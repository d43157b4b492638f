"""GLIP: grounded language-image pre-training (Li et al. 2022, arXiv:2112.03857), for inference and fine-tuning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from converter.errors import ModelError
from converter.glip.model import inputs
from converter.glip.model.bert import TextEncoder, TextFeatures
from converter.glip.model.config import DETECTIONS_PER_IMAGE, RULES, GLIPConfig
from converter.glip.model.detection import Detections, detect, level_anchors
from converter.glip.model.encoded import EncodedImages, EncodedText, check_batch, check_encoded
from converter.glip.model.fpn import FPN
from converter.glip.model.head import Head, Output
from converter.glip.model.swin import SwinTransformer

if TYPE_CHECKING:
    from converter.glip.saving import Origin


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
        if not isinstance(config, GLIPConfig):
            raise ModelError(
                f"GLIP({inputs.short(config)}): found {type(config).__name__}, expected a GLIPConfig. With weights: "
                "GLIP.from_pretrained(path). By the name of a model, with random numbers: "
                "converter.glip.get_model(name). Of a dict: GLIP(GLIPConfig.from_dict(values))."
            )
        super().__init__()
        self.config = config
        self._origin: Origin | None = None  # what it was loaded from, for the record of save_pretrained
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
        from converter.glip.weights import Memory, load_pretrained
        from converter.hub.resolve import located

        memory = Memory.of(device, dtype)  # before a download
        local, name = located(path, revision=revision)
        model, origin = load_pretrained(cls, name, local, memory, root)
        model._origin = origin
        return model.eval()

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        force: bool = False,
        max_shard_size: int | str | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Write the model as a folder that `from_pretrained` and every command of `converter` take; its path.

        It holds the weights as safetensors, each in the dtype that it has here, in files of at most `max_shard_size`,
        in bytes or as "500MB"; the configuration; preprocessing and vocabulary of the folder that the model was loaded
        from, if that has them; and `conversion.json`: the hash of every tensor, what the model was loaded from, and how
        many tensors differ from that. Equal models give equal bytes. `state_dict`: values to save in place of the
        model's own, such as averages, or what shards were gathered to.

        The folder appears as a whole or not at all. With `force` it replaces what was saved or converted there, and
        never files of others. ModelError if the tensors are not those of a GLIP, as with adapters that are not merged;
        DestinationError if the folder cannot be written.
        """
        from converter.glip.saving import save

        state = self.state_dict() if state_dict is None else state_dict
        return save(state, self.config, self._origin, folder, force=force, max_shard_size=max_shard_size)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module; ModelError if not a single name is this model's, as in files of the official code."""
        if state_dict and not self.state_dict().keys() & state_dict.keys():
            first = inputs.short(next(iter(state_dict)))
            raise ModelError(
                f"state_dict: none of its {len(state_dict)} names is this model's ({first} is the first). A file of "
                "the official code, MMDetection or a trainer is read and converted by GLIP.from_pretrained(path)."
            )
        return super().load_state_dict(state_dict, strict, assign)

    def forward(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """Predictions for each cell of five levels, T as in `input_ids`. ModelError for unfit inputs.

        Of one caption and several images the caption is for each, of one image and several captions the image.
        """
        images = inputs.check_images(images, self._parameter())
        inputs.check_text(input_ids, attention_mask, self._parameter(), self.config)
        check_batch(images.shape[0], input_ids.shape[0])  # before either is encoded
        text = self.encode_text(input_ids, attention_mask)
        return self.predict(self.encode_images(images), text)

    def encode_images(self, images: Tensor) -> EncodedImages:
        """What of images needs no caption, to be computed once for all captions. ModelError for unfit images."""
        images = inputs.check_images(images, self._parameter())
        if not torch.compiler.is_compiling():
            inputs.warn_of_pixels(images)
        return EncodedImages(self.head.before_text(self.fpn(self.backbone(images)[1:])), self)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> EncodedText:
        """What of captions needs no image, to be computed once for all images. ModelError for unfit captions.

        Trailing columns that no caption of the batch attends to are not computed: their token logits are the
        lowest value, -50000, whose sigmoid is 0. (Under torch.export and torch.compile every column is computed and
        ids are not checked, because both would depend on values.) With weights that changed since, encode again.
        """
        inputs.check_text(input_ids, attention_mask, self._parameter(), self.config)
        attended = attention_mask != 0
        kept = input_ids.shape[1]
        if not torch.compiler.is_compiling():
            kept = inputs.check_ids_and_length(input_ids, attended, self.config.vocab_size)
        features: TextFeatures = self.text_encoder(input_ids[:, :kept], attended[:, :kept])
        return EncodedText(features, attended, self)

    def predict(self, images: EncodedImages, text: EncodedText) -> Output:
        """As `forward`, of what was encoded by this model. Nothing here depends on values: no device is waited for.

        ModelError for what another model encoded, or this one on another device or in another dtype.
        """
        batch = check_encoded(images, text, self, self._parameter())
        images, text = images.repeated(batch), text.repeated(batch)
        out: Output = self.head(images.levels, text.features, text.computed)
        return text.in_all_columns(out)

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
        return detect(self.config, out, sizes, phrases, replace(RULES, most=max_detections))

    def _parameter(self) -> Tensor:
        """Any parameter, for the dtype and device of the model."""
        return self.head.box_scale
