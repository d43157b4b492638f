"""Grounding DINO asked about the pictures of a data set: prepared by workers, run in batches, boxes in their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.errors import ModelError
from converter.grounding.choices import told
from converter.grounding.classes import class_captions
from converter.grounding.preprocessing import Preprocessing
from converter.grounding.task import PhraseTask
from converter.grounding.tokenizer import Tokenizer
from converter.grounding_dino.task.protocol import Protocol, load_protocol
from converter.parity.family import Asked, Boxes, Class, Prepared

if TYPE_CHECKING:
    from converter.grounding_dino.detect.detector import Detector, Seen


@dataclass(frozen=True, slots=True, eq=False)
class GroundingDinoTask(PhraseTask[Protocol]):
    """Grounding DINO, asked by a protocol."""

    @classmethod
    def of(
        cls, data: str, classes: Sequence[Class], asked: Asked, tokenizer: Tokenizer, settings: Preprocessing
    ) -> GroundingDinoTask:
        """ModelError for an unknown protocol or setting, a class that cannot be asked for, or LVIS."""
        if data == "lvis":
            raise ModelError(
                "--dataset lvis: the official code of Grounding DINO has no protocol for LVIS with its 1,203 "
                "classes. A part of them in COCO's format is measured as a data set of your own."
            )
        protocol = load_protocol(asked, data)
        settings = protocol.preprocessing(settings)
        captions = class_captions(classes, protocol, tokenizer, settings)
        known = load_protocol(Asked(asked.name), data)
        name = told(asked.name, known.to_dict(), protocol.to_dict(), data, classes)
        return cls(name, protocol, tokenizer, settings, tuple(captions))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in which the model sees a picture of that size."""
        official = self.settings.resized(width, height)
        return official if self.protocol.size_rounding == "official" else rounded_late(width, height, self.settings)

    def runner(self, model: Any) -> Callable[[Sequence[Prepared]], Sequence[Boxes]]:
        """ModelError where the model computes NaN, or memory does not suffice."""
        from converter.grounding_dino.detect.detector import Detector

        return _Runner(self, Detector(model, self.tokenizer, self.settings, ""))


def rounded_late(width: int, height: int, settings: Preprocessing) -> tuple[int, int]:
    """(width, height) as transformers' image processors round them, 4.57 and 5.24 (image_transforms.py).

    Where the longer side decides, the official code takes it from the shorter one that is rounded already, so that it
    may be some pixels off the limit; transformers from the exact one.
    """
    shorter, longer = min(width, height), max(width, height)
    exact: float = settings.shorter_side
    if longer / shorter * exact > settings.longer_side:
        exact = settings.longer_side * shorter / longer
    size = round(exact)
    if size == shorter:  # such a picture stays as it is
        return width, height
    other = int(exact * longer / shorter)
    return (size, other) if width < height else (other, size)


@dataclass(frozen=True, slots=True, eq=False)
class _Runner:
    task: GroundingDinoTask
    detector: Detector

    def __call__(self, pictures: Sequence[Prepared]) -> list[Boxes]:
        """One forward for each caption; the best pairs of a box and a class are taken of all together."""
        import torch

        from converter.grounding.images import normalised

        settings = self.task.settings
        tensors = [normalised(torch.from_numpy(picture.pixels), settings) for picture in pictures]
        seen = self.detector.run(tensors, self.task.asked)
        return [self._boxes(picture, number, seen) for number, picture in enumerate(pictures)]

    def _boxes(self, picture: Prepared, number: int, seen: Sequence[Seen]) -> Boxes:
        import torch

        from converter.grounding_dino.detect.scores import corners, phrase_scores

        parts = []
        for caption, each in zip(self.task.asked, seen, strict=True):
            scores = phrase_scores(each.tokens[number], caption.positive_map, self.task.protocol.token_scores)
            boxes = corners(each.boxes[number], picture.width, picture.height)
            labels = torch.tensor(list(caption.positive_map), device=scores.device)
            pairs = boxes[:, None].expand(-1, scores.shape[1], -1), scores, labels.expand_as(scores)
            parts.append([part.flatten(0, 1) for part in pairs])
        boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        order = scores.argsort(descending=True, stable=True)[: self.task.protocol.most]
        boxes, scores, labels = (part[order].cpu() for part in (boxes, scores, labels))
        sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=-1)
        return Boxes(labels.numpy(), sides.numpy(), scores.numpy())
