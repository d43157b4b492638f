"""What was found in one picture, and what else it can be given as."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from converter.display import counted, plain
from converter.errors import ModelError

_SHOWN = 3  # objects in a repr


class FoundObject(NamedTuple):
    """One object: its phrase, score in (0, 1), corners x1 y1 x2 y2 in pixels, and label, counted from 1."""

    phrase: str
    score: float
    box: tuple[float, float, float, float]
    label: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Found:
    """What was found in one picture, highest score first. It is a sequence of `FoundObject`.

        for phrase, score, box, label in found: ...

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

    def __len__(self) -> int:
        return len(self.phrases)

    def __iter__(self) -> Iterator[FoundObject]:
        columns = (self.phrases, self.scores.tolist(), map(tuple, self.boxes.tolist()), self.labels.tolist())
        return (FoundObject(*row) for row in zip(*columns, strict=True))

    @overload
    def __getitem__(self, at: int) -> FoundObject: ...

    @overload
    def __getitem__(self, at: slice) -> Found: ...

    def __getitem__(self, at: int | slice) -> FoundObject | Found:
        """The object at a place, or what was found at several: `found[0]`, `found[:5]`."""
        if not isinstance(at, slice):
            return list(self)[at]
        rows = range(len(self))[at]
        keep = torch.tensor(rows, dtype=torch.int64)
        phrases = tuple(self.phrases[row] for row in rows)
        return Found(self.width, self.height, self.boxes[keep], self.scores[keep], self.labels[keep], phrases)

    def __repr__(self) -> str:
        shown = [f"{plain(each.phrase, 40)} {each.score:.2f}" for each, _ in zip(self, range(_SHOWN), strict=False)]
        more = ", ..." if len(self) > _SHOWN else ""
        what = f": {', '.join(shown)}{more}" if shown else ""
        return f"<Found {counted(len(self), 'object')} in {self.width}x{self.height}{what}>"

    def as_lists(self) -> dict[str, Any]:
        """Boxes, scores, labels and phrases as lists for JSON, rounded."""
        return {
            "boxes": [[round(corner, 2) for corner in box] for box in self.boxes.tolist()],
            "scores": [round(score, 6) for score in self.scores.tolist()],
            "labels": self.labels.tolist(),
            "phrases": list(self.phrases),
        }

    def to_supervision(self) -> Any:
        """`supervision.Detections` of the package of that name: its `class_id` counts the phrases from 0.

        ModelError if it is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise ModelError(f"to_supervision needs supervision ({error}): pip install supervision") from None
        return Detections(
            xyxy=self.boxes.float().numpy().reshape(-1, 4),
            confidence=self.scores.float().numpy(),
            class_id=(self.labels - 1).numpy(),
            data={"class_name": np.array(self.phrases, dtype=str)},
        )
