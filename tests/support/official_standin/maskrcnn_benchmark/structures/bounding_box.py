"""Boxes of one image, always float32, with fields."""

from __future__ import annotations

from torch import Tensor


class BoxList:
    def __init__(self, bbox: Tensor, image_size: tuple[int, int]) -> None:
        self.bbox = bbox.float()
        self.size = image_size  # (width, height)
        self.extra_fields: dict[str, Tensor] = {}

    def add_field(self, field: str, values: Tensor) -> None:
        self.extra_fields[field] = values

    def get_field(self, field: str) -> Tensor:
        return self.extra_fields[field]
