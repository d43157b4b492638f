"""Grounding DINO asked about the pictures of a data set: prepared by workers, run in batches, boxes in their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.errors import ModelError
from converter.grounding.choices import told
from converter.grounding.classes import class_captions
from converter.grounding.prepared import both_down
from converter.grounding.preprocessing import Preprocessing
from converter.grounding.task import PhraseTask
from converter.grounding.tokenizer import Tokenizer
from converter.grounding_dino.task.protocol import Protocol, load_protocol
from converter.parity.family import Asked, Boxes, Class, Prepared

if TYPE_CHECKING:
    from torch import Tensor

    from converter.grounding.prompt import Caption
    from converter.grounding_dino.detect.detector import Detector, Seen


@dataclass(frozen=True, slots=True, eq=False)
class GroundingDinoTask(PhraseTask[Protocol]):
    """Grounding DINO, asked by a protocol."""

    @classmethod
    def of(
        cls, data: str, classes: Sequence[Class], asked: Asked, tokenizer: Tokenizer, settings: Preprocessing
    ) -> GroundingDinoTask:
        """ModelError for an unknown protocol or setting, a class that cannot be asked for, or LVIS."""
        if data == "lvis" and asked.name == "official":
            raise ModelError(
                "--dataset lvis: the official code of Grounding DINO has no protocol for LVIS; MMDetection has one: "
                "--protocol mmdet."
            )
        protocol = load_protocol(asked, data)
        settings = protocol.preprocessing(settings)
        captions = class_captions(classes, protocol, tokenizer, settings)
        known = load_protocol(Asked(asked.name), data)
        name = told(asked.name, known.to_dict(), protocol.to_dict(), data, classes)
        return cls(name, protocol, tokenizer, settings, tuple(captions))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in which the model sees a picture of that size."""
        rounding = self.protocol.size_rounding
        if rounding == "official":
            return self.settings.resized(width, height)
        return (
            both_down(width, height, self.settings)
            if rounding == "down"
            else rounded_late(width, height, self.settings)
        )

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
        """One forward for each caption, of which the best pairs of a box and a class are taken."""
        import torch

        from converter.grounding.images import normalised

        settings = self.task.settings
        tensors = [normalised(torch.from_numpy(picture.pixels), settings) for picture in pictures]
        seen = self.detector.run(tensors, self.task.asked)
        return [self._boxes(picture, number, seen) for number, picture in enumerate(pictures)]

    def _boxes(self, picture: Prepared, number: int, seen: Sequence[Seen]) -> Boxes:
        import torch

        found = [
            self._pairs(caption, each, number, picture) for caption, each in zip(self.task.asked, seen, strict=True)
        ]
        boxes, scores, labels = (torch.cat(part).cpu() for part in zip(*found, strict=True))
        sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=-1)
        return Boxes(labels.numpy(), sides.numpy(), scores.numpy())

    def _pairs(self, caption: Caption, seen: Seen, number: int, picture: Prepared) -> tuple[Tensor, Tensor, Tensor]:
        """Corners (N, 4), scores (N,) and ids of classes (N,): the best of one caption."""
        import torch

        from converter.grounding_dino.detect.scores import corners, phrase_scores

        protocol = self.task.protocol
        scores = phrase_scores(seen.tokens[number], caption.positive_map, protocol.token_scores)
        classes = torch.tensor(list(caption.positive_map), device=scores.device)
        order = scores.flatten().argsort(descending=True, stable=True)[: protocol.most]
        boxes = corners(seen.boxes[number], picture.width, picture.height)[order // len(classes)]
        if protocol.boxes_cut:
            boxes = boxes.clamp(boxes.new_zeros(4), boxes.new_tensor([picture.width, picture.height] * 2))
        return boxes, scores.flatten()[order], classes[order % len(classes)]
