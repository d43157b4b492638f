"""GLIP asked about the pictures of a data set: prepared by workers, run in batches, boxes in the pictures' pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.glip.task.protocol import Protocol, load_protocol
from converter.grounding.choices import told
from converter.grounding.classes import class_captions
from converter.grounding.prepared import both_down
from converter.grounding.preprocessing import Preprocessing
from converter.grounding.task import PhraseTask
from converter.grounding.tokenizer import Tokenizer
from converter.parity.family import Asked, Boxes, Class, Prepared

if TYPE_CHECKING:
    from torch import Tensor

    from converter.glip.detect.detector import Detector, Parts
    from converter.glip.model.detection import Detections
    from converter.glip.model.glip import GLIP


@dataclass(frozen=True, slots=True, eq=False)
class GLIPTask(PhraseTask[Protocol]):
    """GLIP, asked by a protocol."""

    @classmethod
    def of(
        cls, data: str, classes: Sequence[Class], asked: Asked, tokenizer: Tokenizer, settings: Preprocessing
    ) -> GLIPTask:
        """ModelError for an unknown protocol or setting, or a class that cannot be asked for."""
        protocol = load_protocol(asked, data)
        settings = protocol.preprocessing(settings)
        captions = class_captions(classes, protocol, tokenizer, settings)
        known = load_protocol(Asked(asked.name), data)
        name = told(asked.name, known.to_dict(), protocol.to_dict(), data, classes)
        return cls(name, protocol, tokenizer, settings, tuple(captions))

    def runner(self, model: GLIP) -> Callable[[Sequence[Prepared]], Sequence[Boxes]]:
        """The captions are encoded here, once. ModelError where the model computes NaN, or memory does not suffice."""
        from converter.glip.detect.detector import Detector

        detector = Detector(model, self.tokenizer, self.settings)
        return _Runner(self, detector, detector.encode_captions(self.asked))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in which the model sees a picture of that size."""
        if self.protocol.size_rounding == "official":
            return self.settings.resized(width, height)
        return both_down(width, height, self.settings)


@dataclass(frozen=True, slots=True, eq=False)
class _Runner:
    task: GLIPTask
    detector: Detector
    parts: Parts

    def __call__(self, pictures: Sequence[Prepared]) -> list[Boxes]:
        """One forward of the backbone, and one of the head for each caption; what all of these find is joined."""
        import torch

        from converter.grounding.images import normalised

        device, settings = self.detector.device, self.task.settings
        tensors = [normalised(torch.from_numpy(picture.pixels).to(device), settings) for picture in pictures]
        found = self.detector.run(tensors, self.parts, self.task.protocol.rules)
        return [
            self._boxes(picture, tensor, detections)
            for picture, tensor, *detections in zip(pictures, tensors, *found, strict=True)
        ]

    def _boxes(self, picture: Prepared, tensor: Tensor, found: Sequence[Detections]) -> Boxes:
        """Scaled to the picture as the reference scales corners: without regard to the last pixel."""
        import torch

        corners, scores, labels = (torch.cat(part).cpu() for part in zip(*found, strict=True))
        height, width = tensor.shape[-2:]
        corners = corners * corners.new_tensor([picture.width / width, picture.height / height] * 2)
        sides = corners[:, 2:] - corners[:, :2] + self.task.protocol.box_extent
        boxes = torch.cat([corners[:, :2], sides], dim=-1)
        return Boxes(labels.numpy(), boxes.numpy(), scores.numpy())
