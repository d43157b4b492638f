"""Checks of what a user passes to the model; every message names the argument, what it is and what was expected."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from converter.errors import ConverterWarning, ModelError
from converter.glip.model.config import GLIPConfig
from converter.glip.model.head import Output

TEXT_MULTIPLE = 32  # the number of computed tokens is rounded up to a multiple of this
_MOST = 20.0  # no normalised pixel is near it, and of a picture in 0..255 most are beyond
_NORMALISED = "BGR in 0..255, minus (103.53, 116.28, 123.675), divided by (57.375, 57.12, 58.395)"


def check_images(images: Tensor, parameter: Tensor) -> Tensor:
    """Images (B, 3, H, W) in the dtype of the model; ModelError if they are not such a batch, or on another device."""
    if not isinstance(images, Tensor):
        raise ModelError(
            f"images: found {type(images).__name__}, expected a tensor (B, 3, H, W). Of paths, arrays and pictures "
            "converter.glip.Detector makes one."
        )
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise ModelError(f"images: found shape {shape}, expected (B, 3, H, W), none of them 0. {_images_cure(shape)}")
    if not images.is_floating_point():
        raise ModelError(
            f"images: found {_name(images.dtype)}, expected floating point: {_NORMALISED}. converter.glip.Detector "
            "does that."
        )
    _check_device("images", images, parameter)
    return images.to(parameter.dtype)


def _images_cure(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[3] == 3:
        return "Channels come first: images.permute(0, 3, 1, 2)."
    if len(shape) == 3 and shape[0] != 3 and shape[2] == 3:
        return "Channels come first, and one image needs a batch dimension: images.permute(2, 0, 1).unsqueeze(0)."
    return "One image needs a batch dimension: images.unsqueeze(0)."


def warn_of_pixels(images: Tensor) -> None:
    """A ConverterWarning for images that were surely not normalised; nothing is read from another device for it."""
    if images.device.type == "cpu" and (most := float(images.detach().amax())) > _MOST:
        message = f"images: the largest value is {most:.0f}, of normalised images 2.7. Expected is {_NORMALISED}"
        warnings.warn(message, ConverterWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """How far up the stack, from who asks, the first caller is that is neither torch nor this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("torch", "converter"):
        frame, level = frame.f_back, level + 1
    return level


def check_text(input_ids: Tensor, attention_mask: Tensor, parameter: Tensor, config: GLIPConfig) -> None:
    """ModelError unless both are (B, T) on the model's device, and T is within its positions."""
    for name, value in (("input_ids", input_ids), ("attention_mask", attention_mask)):
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name}: found {type(value).__name__}, expected a tensor (B, T). Of lists of equal length: "
                "torch.tensor(lists)."
            )
    shape = tuple(input_ids.shape)
    if len(shape) != 2 or 0 in shape:
        raise ModelError(f"input_ids: found shape {shape}, expected (B, T), none of them 0.")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ModelError(f"input_ids: found {_name(input_ids.dtype)}, expected int64.")
    if tuple(attention_mask.shape) != shape:
        raise ModelError(
            f"attention_mask: found shape {tuple(attention_mask.shape)}, expected that of input_ids, {shape}."
        )
    if attention_mask.is_floating_point() or attention_mask.is_complex():
        raise ModelError(
            f"attention_mask: found {_name(attention_mask.dtype)}, expected bool or integers, 1 for tokens and 0 for "
            "padding. It is not a mask to be added to logits."
        )
    _check_device("input_ids", input_ids, parameter)
    _check_device("attention_mask", attention_mask, parameter)
    limit, what = config.max_positions, "positions"
    if 0 < config.prompt_length < limit:
        limit, what = config.prompt_length, "rows of the prompt"
    if shape[1] > limit:
        raise ModelError(
            f"input_ids: found shape {shape}, expected at most {limit} tokens: the model has {limit} {what}. "
            "Divide the phrases among several captions, as converter.glip.Detector does."
        )


def check_ids_and_length(input_ids: Tensor, attended: Tensor, vocab_size: int) -> int:
    """How many leading tokens have to be computed; ModelError if an id is outside the vocabulary.

    These are all columns up to the last one that any caption attends to, rounded up to a multiple of 32; all
    columns if a caption attends to nothing, since the model then attends to its padding. Values are read in one
    transfer from the device.
    """
    tokens = input_ids.shape[1]
    position = torch.arange(1, tokens + 1, device=attended.device)
    lengths = (attended * position).amax(dim=1)  # (B,)
    facts = torch.stack([*torch.aminmax(input_ids), lengths.amin(), lengths.amax()])
    lowest, highest, shortest, longest = (int(fact) for fact in facts.tolist())
    if lowest < 0 or highest >= vocab_size:
        raise ModelError(
            f"input_ids: found values from {lowest} to {highest}, expected 0 to {vocab_size - 1}. "
            "Was the caption tokenised with another vocabulary?"
        )
    if shortest == 0:
        return tokens
    return min(tokens, -(-longest // TEXT_MULTIPLE) * TEXT_MULTIPLE)


def check_output(output: Output, levels: int) -> None:
    """ModelError unless the value is what the model returned: three tuples with an entry per level."""
    if not isinstance(output, Output) or any(len(part) != levels for part in output):
        raise ModelError(
            f"out: found {type(output).__name__}, expected the Output of calling the model, with {levels} levels."
        )


def check_image_sizes(
    image_sizes: Tensor | Sequence[Sequence[int]], output: Output, stride: int
) -> list[tuple[int, int]]:
    """(height, width) per image as ints; ModelError if they are not whole numbers or do not fit the maps."""
    values = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
    batch, _, rows, columns = output.box_deltas[0].shape
    try:
        sizes = [(int(height), int(width)) for height, width in values]
        whole = all(int(a) == a and int(b) == b for a, b in values)
    except (TypeError, ValueError, OverflowError):
        sizes, whole = [], False
    if not whole or len(sizes) != batch:
        raise ModelError(
            f"image_sizes: found {short(values)}, expected (height, width) in whole pixels for each of {batch} images."
        )
    limit = (rows * stride, columns * stride)
    for index, (height, width) in enumerate(sizes):
        if not (0 < height <= limit[0] and 0 < width <= limit[1]):
            raise ModelError(
                f"image_sizes[{index}]: found ({height}, {width}), expected (height, width) from 1 to {limit}, "
                f"the area of {rows}x{columns} cells of {stride} pixels. Are height and width swapped?"
            )
    return sizes


def check_positive_map(positive_map: Mapping[int, Sequence[int]], tokens: int) -> dict[int, list[int]]:
    """The map with plain ints; ModelError if it is empty, a label has no token, or a token does not exist."""
    if not isinstance(positive_map, Mapping) or not positive_map:
        raise ModelError(
            f"positive_map: found {short(positive_map)}, expected at least one {{label: [token positions]}}."
        )
    checked: dict[int, list[int]] = {}
    for key, positions in positive_map.items():
        label = _label(key)
        try:
            checked[label] = [int(position) for position in positions]
        except (TypeError, ValueError):
            raise ModelError(
                f"positive_map[{label}]: found {short(positions)}, expected a list of token positions."
            ) from None
        if not checked[label]:
            raise ModelError(f"positive_map[{label}]: found no token positions, expected at least one.")
        outside = [position for position in checked[label] if not 0 <= position < tokens]
        if outside:
            raise ModelError(
                f"positive_map[{label}]: found token positions {outside}, expected 0 to {tokens - 1}: "
                f"the caption has {tokens} tokens. Positions count tokens, [CLS] first, not ids and not characters."
            )
    return checked


def _label(key: object) -> int:
    try:
        label = 0 if isinstance(key, bool) else operator.index(key)  # type: ignore[arg-type]
    except TypeError:
        raise ModelError(f"positive_map: found the label {key!r}, expected an integer.") from None
    if label < 1:
        raise ModelError(
            f"positive_map: found the label {key!r}, expected integers from 1: 0 is the background. Count "
            "phrases from 1."
        )
    return label


def _check_device(name: str, value: Tensor, parameter: Tensor) -> None:
    if value.device != parameter.device:
        raise ModelError(
            f"{name}: found on {value.device}, expected on {parameter.device}, where the model is. "
            f"Move one of them: {name}.to({str(parameter.device)!r})."
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def short(value: object, limit: int = 80) -> str:
    """Its repr, cut."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
