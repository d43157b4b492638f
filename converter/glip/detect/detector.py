"""A model with its vocabulary and its preprocessing: pictures and prompts in, boxes in the picture's pixels out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor

from converter.display import counted, plain
from converter.errors import ModelError
from converter.glip.detect.preprocessing import folder_settings, glip_preprocessing
from converter.glip.model.config import DETECTIONS_PER_IMAGE, RULES, GLIPConfig, Rules
from converter.glip.model.detection import Detections, detect
from converter.glip.model.encoded import EncodedImages, EncodedText
from converter.glip.model.glip import GLIP
from converter.glip.weights import Memory
from converter.grounding.best import best, limits
from converter.grounding.faults import SMALLER, memory_for, not_a_number
from converter.grounding.found import Found
from converter.grounding.images import Picture, as_image, batch, read_for, to_tensor
from converter.grounding.preprocessing import Preprocessing
from converter.grounding.prompt import Caption, Prompt, as_prompt, captions
from converter.grounding.tokenizer import Tokenizer, find_tokenizer
from converter.hub.resolve import local_path
from converter.mapping.spec import load_spec
from converter.parity.device import DTYPES

Wanted: TypeAlias = str | Sequence[str] | Prompt
Parts: TypeAlias = tuple[tuple[Caption, EncodedText], ...]
P = TypeVar("P", bound=Picture)  # so that list[str] is a list of pictures to a type checker


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EncodedPrompt:
    """A prompt that the model has read, for any number of pictures: what `Detector.encode` makes and `detect` takes.

    parts  each caption of the prompt, and the same as the model reads it
    """

    prompt: Prompt
    parts: Parts

    def __repr__(self) -> str:
        captions = counted(len(self.parts), "caption")
        return f"<EncodedPrompt {counted(len(self.prompt.phrases), 'phrase')} in {captions}>"


class Detector:
    """Finds in pictures what a prompt names.

        detector = Detector.from_pretrained("glip-t", vocabulary="vocab.txt")
        found = detector.detect("street.jpg", "person. traffic light.")

        detector = Detector(model)  # a model that is there already, as it is trained, say

    By default with BERT's vocabulary, and the preprocessing that the model was loaded with. `origin`: where the model
    is from. ModelError if the vocabulary has another number of entries than the model.
    """

    def __init__(
        self,
        model: GLIP,
        tokenizer: Tokenizer | None = None,
        settings: Preprocessing | None = None,
        origin: str | None = None,
    ) -> None:
        tokenizer = tokenizer or Tokenizer.bert_base_uncased()
        tokenizer.check_size(model.config.vocab_size)
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings or (model._origin.settings if model._origin else glip_preprocessing())
        self.origin = origin

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        vocabulary: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        *,
        revision: str | None = None,
        root: str | None = None,
    ) -> Detector:
        """The model as `GLIP.from_pretrained` finds it; its vocabulary: `vocabulary`, or the folder's, or BERT's."""
        Memory.of(device, dtype)  # before a download
        found = local_path(path, revision=revision)
        tokenizer = find_tokenizer(found, None if vocabulary is None else Path(vocabulary))
        model = GLIP.from_pretrained(found, device=device, dtype=dtype, root=root)
        return cls(model, tokenizer, folder_settings(found), os.fspath(path))

    @property
    def device(self) -> torch.device:
        """Where the model is. Pictures are read and resized on the CPU; what is found is on the CPU."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """In which numbers the model runs."""
        return next(self.model.parameters()).dtype

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Detector:
        """Move the model, as in `to("cuda", "bfloat16")` or `to(dtype=torch.float32)`, and return this detector.

        ModelError if there is no such device, or a model cannot be of the dtype.
        """
        if dtype is None and (isinstance(device, torch.dtype) or device in DTYPES):  # as torch's own `to` takes it
            device, dtype = None, device
        memory = Memory.of(device or self.device, dtype or self.dtype)
        self.model.to(memory.device, memory.dtype)
        return self

    def __repr__(self) -> str:
        vocabulary = "BERT base uncased" if self.tokenizer.is_bert_base_uncased else f"{self.tokenizer.size} entries"
        origin = "" if self.origin is None else f", from {plain(self.origin, 200)}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<Detector {_title(self.model.config)}, {dtype} on {self.device}, vocabulary: {vocabulary}{origin}>"

    def draw(self, image: Picture, found: Found, line_width: int | None = None) -> Image.Image:
        """A copy of the picture with the found boxes drawn into it; `line_width` in pixels, by default by its size."""
        from converter.grounding.draw import draw

        if not isinstance(found, Found):
            raise ModelError(
                f"draw: found {type(found).__name__}, expected what `detect` found in this one picture. Of a list of "
                "pictures it gives a list: draw each."
            )
        return draw(as_image(image), found, line_width)

    def captions(self, prompt: Wanted) -> list[Caption]:
        """The captions that the model reads: several where the prompt is too long for one. ModelError."""
        return captions(as_prompt(prompt), self.tokenizer, self.settings)

    @torch.inference_mode()
    def encode(self, prompt: Wanted) -> EncodedPrompt:
        """The prompt as the model reads it, for `detect` of any number of calls: its captions are encoded once.

        To be encoded again when the model has changed. ModelError.
        """
        prompt = as_prompt(prompt)
        return EncodedPrompt(prompt, self.encode_captions(self.captions(prompt)))

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[Caption]) -> Parts:
        """Each caption, and the same as the model reads it. ModelError if they are more than memory holds."""
        parts = []
        for caption in captions:
            with memory_for(f"a caption of {len(caption.ids)} tokens", self.device):
                ids = torch.tensor([caption.ids], device=self.device)
                parts.append((caption, self.model.encode_text(ids, torch.ones_like(ids))))
        return tuple(parts)

    @overload
    def detect(
        self,
        images: Picture,
        prompt: Wanted | EncodedPrompt,
        threshold: float = 0.5,
        max_detections: int = DETECTIONS_PER_IMAGE,
    ) -> Found: ...

    @overload
    def detect(
        self,
        images: list[Picture] | tuple[Picture, ...],
        prompt: Wanted | EncodedPrompt,
        threshold: float = 0.5,
        max_detections: int = DETECTIONS_PER_IMAGE,
    ) -> list[Found]: ...

    @overload
    def detect(
        self,
        images: list[P] | tuple[P, ...],
        prompt: Wanted | EncodedPrompt,
        threshold: float = 0.5,
        max_detections: int = DETECTIONS_PER_IMAGE,
    ) -> list[Found]: ...

    def detect(
        self,
        images: Picture | list[P] | list[Picture] | tuple[Picture, ...],
        prompt: Wanted | EncodedPrompt,
        threshold: float = 0.5,
        max_detections: int = DETECTIONS_PER_IMAGE,
    ) -> Found | list[Found]:
        """Objects that score above the threshold: the best `max_detections`, more only where they tie.

        A picture is a path, a Pillow picture, or an array (H, W, 3) of uint8, RGB. Boxes are in pixels of the picture
        after it is turned upright by its EXIF. The backbone runs once, the head once for each caption of the prompt,
        and the best of all are kept. Phrases that score at most 0.05 before centerness are never found. For many
        calls give what `encode` made of the prompt.

        A list or tuple of pictures is one batch, as the reference makes them: padded with zeros to the largest. The
        model sees the padding, so a picture that is padded more than alone gives other scores and boxes, as there.
        Among pictures of one size, up to the multiple of 32, only rounding differs (1e-15 in float64). Memory grows
        with the batch.

        ModelError for an unusable picture, prompt, threshold or number, and where the model computes NaN.
        """
        threshold, max_detections = limits(threshold, max_detections)
        if not isinstance(prompt, EncodedPrompt):
            prompt = as_prompt(prompt)
        if not isinstance(images, list | tuple):
            return self._find([read_for(images, self.settings)], prompt, threshold, max_detections)[0]
        pictures = [read_for(image, self.settings, f"images[{number}]") for number, image in enumerate(images)]
        return self._find(pictures, prompt, threshold, max_detections) if pictures else []

    def _find(
        self, pictures: list[Image.Image], prompt: Prompt | EncodedPrompt, threshold: float, most: int
    ) -> list[Found]:
        tensors = [to_tensor(picture, self.settings) for picture in pictures]
        encoded = prompt if isinstance(prompt, EncodedPrompt) else self.encode(prompt)
        parts = self.run(tensors, encoded.parts, replace(RULES, most=max(most, DETECTIONS_PER_IMAGE)))
        found = []
        for picture, tensor, *detections in zip(pictures, tensors, *parts, strict=True):
            height, width = tensor.shape[-2:]
            boxes, scores, labels = best(detections, threshold, most)
            # as in the reference, corners are scaled as they are, without regard to the +1 convention
            boxes = boxes * boxes.new_tensor([picture.width / width, picture.height / height] * 2)
            phrases = tuple(encoded.prompt.phrases[label - 1] for label in labels.tolist())
            found.append(Found(picture.width, picture.height, boxes, scores, labels, phrases))
        return found

    @torch.inference_mode()
    def run(self, images: Sequence[Tensor], parts: Parts, rules: Rules = RULES) -> list[list[Detections]]:
        """For each caption what is found in each image (3, H, W), in its pixels; the images are read once.

        They are one batch, padded with zeros to the largest. ModelError where the model computes NaN, or for too many.
        """
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        fewer = "Give fewer, or a smaller dtype." if len(images) > 1 else SMALLER
        with memory_for(f"{counted(len(images), 'picture')} at once", self.device, fewer):
            encoded = self.model.encode_images(batch(images, self.settings.size_multiple).to(self.device))
            return [self._detections(encoded, sizes, *part, rules) for part in parts]

    def _detections(
        self, images: EncodedImages, sizes: list[tuple[int, int]], caption: Caption, text: EncodedText, rules: Rules
    ) -> list[Detections]:
        out = self.model.predict(images, text)
        if torch.stack([level.isnan().any() for part in out for level in part]).any():
            raise not_a_number(self.model, self.dtype)
        return detect(self.model.config, out, sizes, caption.positive_map, rules)


def _title(config: GLIPConfig) -> str:
    """The name of a released model, or the sizes of another."""
    sizes = asdict(config)
    for variant in load_spec("glip").variants:
        if sizes | {"prompt_length": variant.config["prompt_length"]} == variant.config:
            tuned = f", prompt of {config.prompt_length} rows" if config.prompt_length else ""
            return " or ".join([variant.name, *variant.also]) + tuned
    depths = "-".join(map(str, config.depths))
    return (
        f"GLIP of width {config.embed_dim}, depths {depths}, {config.text_layers} text layers of {config.text_dim}, "
        f"{config.head_blocks} head blocks of {config.channels}" + ("" if config.fusion else ", no fusion")
    )
