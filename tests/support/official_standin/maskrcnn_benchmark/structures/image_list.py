"""Images of several sizes as one tensor, padded with zeros below and to the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ImageList:
    def __init__(self, tensors: Tensor, image_sizes: Sequence[torch.Size]) -> None:
        self.tensors = tensors
        self.image_sizes = image_sizes

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        return ImageList(self.tensors.to(*args, **kwargs), self.image_sizes)


def to_image_list(images: ImageList | Sequence[Tensor], size_divisible: int = 0) -> ImageList:
    if isinstance(images, ImageList):
        return images
    step = max(size_divisible, 1)
    height, width = (-(-max(image.shape[axis] for image in images) // step) * step for axis in (1, 2))
    padded = torch.zeros(len(images), 3, height, width)
    for image, place in zip(images, padded, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return ImageList(padded, [image.shape[-2:] for image in images])
