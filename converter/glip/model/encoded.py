"""Images and captions as the model has read them: each is read once, however often it is looked at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converter.errors import ModelError
from converter.glip.model.bert import TextFeatures
from converter.glip.model.fusion import LOGIT_LIMIT
from converter.glip.model.head import Output


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EncodedImages:
    """Images that the backbone has read, for any number of captions.

    levels  P3..P7, (B, C, H, W) each; of GLIP-T (A), whose tower needs no text, what that makes of them
    model   that read them
    """

    levels: tuple[Tensor, ...]
    model: nn.Module

    def __repr__(self) -> str:
        height, width = self.levels[0].shape[-2:]
        return f"<EncodedImages {self.batch} of {height}x{width} cells, {_where(self.tensor)}>"

    @property
    def tensor(self) -> Tensor:
        """One of its tensors, for device and dtype."""
        return self.levels[0]

    @property
    def batch(self) -> int:
        """How many images."""
        return self.levels[0].shape[0]

    def repeated(self, batch: int) -> EncodedImages:
        """One image as a batch of itself, without a copy; a batch of that size as it is."""
        return EncodedImages(tuple(level.expand(batch, -1, -1, -1) for level in self.levels), self.model)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EncodedText:
    """Captions that the text encoder has read, for any number of images.

    features  of the columns that are computed: (B, T', text_dim) each, T' <= T
    attended  (B, T) bool, T as in `input_ids`: which tokens are no padding
    model     that read them
    """

    features: TextFeatures
    attended: Tensor
    model: nn.Module

    def __repr__(self) -> str:
        return f"<EncodedText {self.batch} of {self.attended.shape[1]} tokens, {_where(self.tensor)}>"

    @property
    def tensor(self) -> Tensor:
        """One of its tensors, for device and dtype."""
        return self.features.hidden

    @property
    def batch(self) -> int:
        """How many captions."""
        return self.attended.shape[0]

    @property
    def computed(self) -> Tensor:
        """`attended` of the computed columns: (B, T')."""
        return self.attended[:, : self.features.hidden.shape[1]]

    def repeated(self, batch: int) -> EncodedText:
        """One caption as a batch of itself, without a copy; a batch of that size as it is."""
        features = TextFeatures(*(part.expand(batch, -1, -1) for part in self.features))
        return EncodedText(features, self.attended.expand(batch, -1), self.model)

    def in_all_columns(self, out: Output) -> Output:
        """Token logits of T columns: those that are not computed get the lowest value, whose sigmoid is 0."""
        cut = self.attended.shape[1] - self.features.hidden.shape[1]
        if cut == 0:
            return out
        return out._replace(token_logits=tuple(F.pad(x, (0, cut), value=-LOGIT_LIMIT) for x in out.token_logits))


def check_encoded(images: EncodedImages, text: EncodedText, model: nn.Module, parameter: Tensor) -> int:
    """The size of their batch; ModelError unless both are this model's as it now is, and go together."""
    for name, value, kind in (("images", images, EncodedImages), ("text", text, EncodedText)):
        if not isinstance(value, kind):
            raise ModelError(
                f"{name}: found {type(value).__name__}, expected what encode_{name} of the model returned."
            )
        if not torch.compiler.is_compiling():
            _check_origin(name, value, model, parameter)
    return check_batch(images.batch, text.batch)


def check_batch(images: int, captions: int) -> int:
    """The size of the batch that so many of each make; ModelError if they make none."""
    if captions in (1, images):
        return images
    if images == 1:
        return captions
    raise ModelError(
        f"text: found {captions} captions for {images} images, expected one caption for each image, one caption for "
        "all, or one image."
    )


def _check_origin(name: str, value: EncodedImages | EncodedText, model: nn.Module, parameter: Tensor) -> None:
    again = "Encode again, after any change of the model."
    if value.model is not model:
        raise ModelError(f"{name}: encoded by another model, which reads in its own way. Encode with this one.")
    found = value.tensor
    if found.device != parameter.device:
        raise ModelError(f"{name}: encoded on {found.device}, but the model is on {parameter.device}. {again}")
    # autocast computes in a dtype of its own, and casts what it is given
    if found.dtype != parameter.dtype and not torch.is_autocast_enabled(found.device.type):
        dtypes = f"in {_name(found.dtype)}, but the model is in {_name(parameter.dtype)}"
        raise ModelError(f"{name}: encoded {dtypes}. {again}")


def _where(tensor: Tensor) -> str:
    return f"{_name(tensor.dtype)} on {tensor.device}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
