"""A model of transformers with its vocabulary and preprocessing: pictures and prompts in, boxes in pixels out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn

from converter.display import counted, plain
from converter.errors import ModelError
from converter.grounding.best import best, limits
from converter.grounding.faults import SMALLER, memory_for, not_a_number
from converter.grounding.found import Found
from converter.grounding.images import Picture, as_image, batch, read_for, to_tensor
from converter.grounding.preprocessing import Preprocessing
from converter.grounding.prompt import Caption, Prompt, as_prompt, captions
from converter.grounding.tokenizer import Tokenizer
from converter.grounding_dino.detect.scores import corners, phrase_scores

Wanted: TypeAlias = str | Sequence[str] | Prompt


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompt:
    """A prompt as tokens, which `detect` takes. The model reads pictures and words together, each time."""

    prompt: Prompt
    captions: tuple[Caption, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the model makes of a batch and one caption.

    tokens  (B, queries, T), at least float32: the probability that the box is of what the token names
    boxes   (B, queries, 4), at least float32: centre, width and height in shares of the picture
    """

    tokens: Tensor
    boxes: Tensor


class Detector:
    """Finds in pictures what a prompt names.

    model: transformers' GroundingDinoForObjectDetection. ModelError if the vocabulary is of another size.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, settings: Preprocessing, origin: str) -> None:
        config: Any = model.config
        tokenizer.check_size(config.text_config.vocab_size)
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.origin = origin

    def __repr__(self) -> str:
        return f"<Detector of transformers' Grounding DINO, from {plain(self.origin, 200)}>"

    @property
    def device(self) -> torch.device:
        """Where the model is. Pictures are read and resized on the CPU; what is found is on the CPU."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """In which numbers the model runs."""
        return next(self.model.parameters()).dtype

    def draw(self, image: Picture, found: Found, line_width: int | None = None) -> Image.Image:
        """A copy of the picture with the found boxes drawn into it; `line_width` in pixels, by default by its size."""
        from converter.grounding.draw import draw

        return draw(as_image(image), found, line_width)

    def encode(self, prompt: Wanted) -> EncodedPrompt:
        """The prompt as tokens: several captions where it is too long for one. ModelError."""
        prompt = as_prompt(prompt)
        return EncodedPrompt(prompt, tuple(captions(prompt, self.tokenizer, self.settings)))

    def detect(
        self, images: Any, prompt: Wanted | EncodedPrompt, threshold: float = 0.5, max_detections: int = 100
    ) -> Any:
        """Objects that score above the threshold: the best `max_detections`, more only where they tie.

        A box has the phrase with the likeliest token, and its score is that token's. There is no suppression of boxes
        that overlap. A picture is a path, a Pillow picture, or an array (H, W, 3) of uint8, RGB; a list or tuple of
        them is one batch, filled up with zeros to the largest, which the model is told to leave out.

        ModelError for an unusable picture, prompt, threshold or number, and where the model computes NaN.
        """
        threshold, max_detections = limits(threshold, max_detections)
        encoded = prompt if isinstance(prompt, EncodedPrompt) else self.encode(prompt)
        several = isinstance(images, list | tuple)
        given: list[tuple[Any, str]] = (
            [(image, f"images[{number}]") for number, image in enumerate(images)] if several else [(images, "image")]
        )
        pictures = [read_for(image, self.settings, where) for image, where in given]
        found = self._find(pictures, encoded, threshold, max_detections) if pictures else []
        return found if several else found[0]

    def _find(self, pictures: list[Image.Image], encoded: EncodedPrompt, threshold: float, most: int) -> list[Found]:
        seen = self.run([to_tensor(picture, self.settings) for picture in pictures], encoded.captions)
        found = []
        for number, picture in enumerate(pictures):
            parts = [
                _labelled(each.tokens[number], corners(each.boxes[number], *picture.size), caption.positive_map)
                for caption, each in zip(encoded.captions, seen, strict=True)
            ]
            boxes, scores, labels = best(parts, threshold, most)
            phrases = tuple(encoded.prompt.phrases[label - 1] for label in labels.tolist())
            found.append(Found(*picture.size, boxes, scores, labels, phrases))
        return found

    @torch.inference_mode()
    def run(self, images: Sequence[Tensor], captions: Sequence[Caption]) -> list[Seen]:
        """For each caption what the model makes of the images (3, H, W), which are one batch.

        ModelError where it computes NaN, or for too many.
        """
        pixels = batch(images, self.settings.size_multiple).to(self.device, self.dtype)
        mask = torch.zeros(len(images), *pixels.shape[-2:], dtype=torch.int64, device=self.device)
        for row, image in zip(mask, images, strict=True):
            row[: image.shape[-2], : image.shape[-1]] = 1
        fewer = "Give fewer, or a smaller dtype." if len(images) > 1 else SMALLER
        with memory_for(f"{counted(len(images), 'picture')} at once", self.device, fewer):
            return [self._seen(pixels, mask, caption) for caption in captions]

    def _seen(self, pixels: Tensor, mask: Tensor, caption: Caption) -> Seen:
        check_cells(pixels.shape[-2], pixels.shape[-1], self.model)
        ids = torch.tensor([caption.ids] * len(pixels), device=self.device)
        out = self.model(
            pixel_values=pixels,
            pixel_mask=mask,
            input_ids=ids,
            token_type_ids=torch.zeros_like(ids),
            attention_mask=torch.ones_like(ids),
        )
        dtype = torch.promote_types(self.dtype, torch.float32)
        logits, boxes = out.logits[..., : len(caption.ids)].to(dtype), out.pred_boxes.to(dtype)
        if logits.isnan().any() or boxes.isnan().any():
            raise not_a_number(self.model, self.dtype)
        return Seen(logits.sigmoid(), boxes)


def check_cells(height: int, width: int, model: nn.Module) -> None:
    """ModelError for a picture with fewer cells, on all levels, than the model makes queries of."""
    config: Any = model.config
    sides = [-(-side // config.backbone_config.patch_size) for side in (height, width)]
    cells = 0
    for _ in range(config.num_feature_levels):
        sides = [-(-side // 2) for side in sides]
        cells += sides[0] * sides[1]
    if cells < config.num_queries:
        raise ModelError(
            f"the model sees a picture of {width}x{height} pixels as {cells} cells, and makes {config.num_queries} "
            "queries of them. Crop long strips, or give a larger picture."
        )


def _labelled(tokens: Tensor, boxes: Tensor, phrases: Mapping[int, Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4), scores (N,) and labels (N,) of one picture: each box has one label."""
    scores, at = phrase_scores(tokens, phrases, "max").max(dim=-1)
    return boxes, scores, torch.tensor(list(phrases), device=at.device)[at]
