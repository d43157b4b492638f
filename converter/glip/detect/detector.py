"""A model with its vocabulary and its preprocessing: pictures and prompts in, boxes in the picture's pixels out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from converter.errors import ModelError
from converter.glip.detect.images import pad, read_image, to_rgb, to_tensor
from converter.glip.detect.preprocessing import Preprocessing, folder_settings, glip_preprocessing
from converter.glip.detect.prompt import Caption, Prompt, captions
from converter.glip.detect.tokenizer import Tokenizer, find_tokenizer
from converter.glip.model.config import DETECTIONS_PER_IMAGE
from converter.glip.model.glip import GLIP
from converter.hub.resolve import local_path

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in one picture, highest score first.

    width, height  of the upright picture in pixels
    boxes          (N, 4) float32, x1 y1 x2 y2 in these pixels
    scores         (N,) in (0, 1)
    labels         (N,) int64: which phrase of the prompt, counted from 1
    phrases        the phrase of each box
    """

    width: int
    height: int
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    phrases: tuple[str, ...]

    def as_lists(self) -> dict[str, Any]:
        """Boxes, scores, labels and phrases as lists for JSON, rounded."""
        return {
            "boxes": [[round(corner, 2) for corner in box] for box in self.boxes.tolist()],
            "scores": [round(score, 6) for score in self.scores.tolist()],
            "labels": self.labels.tolist(),
            "phrases": list(self.phrases),
        }


class Detector:
    """Finds in pictures what a prompt names.

        detector = Detector.from_pretrained("glip-t", vocabulary="vocab.txt")
        found = detector.detect("street.jpg", "person. traffic light.")

    ModelError if the vocabulary has another number of entries than the model.
    """

    def __init__(self, model: GLIP, tokenizer: Tokenizer, settings: Preprocessing | None = None) -> None:
        tokenizer.check_size(model.config.vocab_size)
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings or glip_preprocessing()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        vocabulary: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        *,
        revision: str | None = None,
        root: str | None = None,
    ) -> Detector:
        """The model as `GLIP.from_pretrained` finds it; its vocabulary: `vocabulary`, or the folder's, or BERT's."""
        path = local_path(path, revision=revision)
        tokenizer = find_tokenizer(path, None if vocabulary is None else Path(vocabulary))
        return cls(GLIP.from_pretrained(path, root=root).to(device), tokenizer, folder_settings(path))

    def read(self, path: Path) -> Image.Image:
        """The picture, upright, as 8-bit RGB. ModelError if it cannot be read."""
        return read_image(path)

    def draw(self, image: Image.Image, found: Found) -> Image.Image:
        """A copy of the picture with the found boxes drawn into it."""
        from converter.glip.detect.draw import draw

        return draw(image, found)

    def captions(self, prompt: Prompt) -> list[Caption]:
        """The captions that the model reads: several where the prompt is too long for one. ModelError."""
        return captions(prompt, self.tokenizer, self.settings)

    @torch.inference_mode()
    def detect(
        self, image: str | os.PathLike[str] | Image.Image, prompt: str | Prompt, threshold: float = 0.5
    ) -> Found:
        """Objects that score above the threshold: the best 100, and more only where they tie with the 100th.

        Boxes are in pixels of the picture after it is turned upright by its EXIF. The model runs once for each caption
        of the prompt, and the best of all are kept, as the reference does with its chunks. Phrases that score at most
        0.05 before centerness are never found. ModelError for an unusable picture, prompt or threshold.
        """
        if not threshold >= 0:  # refuses NaN, too
            raise ModelError(f"threshold: {threshold} is not a score. Give a number from 0 to 1.")
        image = read_image(Path(image)) if isinstance(image, str | os.PathLike) else to_rgb(image)
        if isinstance(prompt, str):
            prompt = Prompt.parse(prompt)
        tensor = to_tensor(image, self.settings)
        height, width = tensor.shape[-2:]
        batch = pad(tensor, self.settings.size_multiple)
        parts = [self._detect(batch, (height, width), caption) for caption in self.captions(prompt)]
        boxes, scores, labels = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] > threshold]
        if len(order) > DETECTIONS_PER_IMAGE:
            order = order[scores[order] >= scores[order[DETECTIONS_PER_IMAGE - 1]]]
        # as in the reference, corners are scaled as they are, without regard to the +1 convention
        scale = torch.tensor([image.width / width, image.height / height] * 2)
        labels = labels[order]
        return Found(
            image.width,
            image.height,
            boxes[order] * scale,
            scores[order],
            labels,
            tuple(prompt.phrases[label - 1] for label in labels.tolist()),
        )

    def _detect(self, batch: Tensor, size: tuple[int, int], caption: Caption) -> tuple[Tensor, Tensor, Tensor]:
        device = next(self.model.parameters()).device
        ids = torch.tensor([caption.ids], device=device)
        out = self.model(batch.to(device), ids, torch.ones_like(ids))
        (found,) = self.model.detect(out, [size], caption.positive_map)
        return found.boxes, found.scores, found.labels
