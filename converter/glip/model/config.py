"""The sizes that make one GLIP model, as a frozen value and as JSON; and the numbers by which all of them detect."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from converter.errors import ModelError

STAGES = 4  # Swin
LEVELS = 5  # P3..P7
GROUPS = 16  # of every GroupNorm in the head
DYRELU_REDUCTION = 4

DETECTIONS_PER_IMAGE = 100
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MAX_LOG_GROWTH = math.log(1000 / 16)  # of a side against its anchor


@dataclass(frozen=True, slots=True)
class Rules:
    """Which of the predicted boxes become detections. By default as the reference has it.

    score_threshold       a phrase has to score more in a cell, before centerness
    candidates_per_level  the best of a level that are looked at
    ranked_by_centerness  whether the best of a level are so with centerness, or without
    shrinking_limited     whether a side is at least 16/1000 of its anchor's, as it is at most 1000/16 in any case
    nms_threshold         IoU above which the lower-scoring of two boxes with one label is dropped
    last_pixel_included   whether corners belong to a box where areas are compared (the +1 of Fast R-CNN)
    empty_dropped         whether boxes whose corners coincide in x or y are dropped
    most                  detections of an image
    ties_kept             whether those that tie with the last of them are kept, too
    """

    score_threshold: float = 0.05
    candidates_per_level: int = 1000
    ranked_by_centerness: bool = True
    shrinking_limited: bool = False
    nms_threshold: float = 0.6
    last_pixel_included: bool = True
    empty_dropped: bool = False
    most: int = DETECTIONS_PER_IMAGE
    ties_kept: bool = True


RULES = Rules()


@dataclass(frozen=True, slots=True)
class GLIPConfig:
    """Sizes of a GLIP model: Swin + FPN, BERT, and a head of (fusion, text layer, dynamic convolution) blocks.

    depths, num_heads        per Swin stage (4)
    channels                 width of the FPN and of the head
    head_blocks              number of blocks in the tower
    fusion                   False for GLIP-T (A): the blocks hold a dynamic convolution only
    prompt_length            rows of the optional prompt-tuning matrix, 0 without
    anchor_strides, _sizes   pixels, one per level P3..P7

    ModelError if a value has the wrong type or the sizes cannot fit together.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    mlp_ratio: int
    patch_size: int
    channels: int
    vocab_size: int
    text_dim: int
    text_layers: int
    text_heads: int
    text_mlp_dim: int
    max_positions: int
    type_vocab_size: int
    head_blocks: int
    fusion: bool
    fusion_dim: int
    fusion_heads: int
    prompt_length: int
    anchor_strides: tuple[int, ...]
    anchor_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        problems = [*_type_problems(self)]
        if not problems:  # only once the types are right
            problems = [*_relation_problems(self)]
        if problems:
            raise ModelError("GLIP configuration: " + "; ".join(problems) + ".")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GLIPConfig:
        """The config that `to_dict` wrote; lists become tuples. ModelError names every field that is unknown,
        missing or of the wrong type."""
        if not isinstance(values, Mapping):
            raise ModelError(f"GLIP configuration: expected a JSON object, found {type(values).__name__}.")
        names = [field.name for field in fields(cls)]
        unknown = [str(name) for name in values if name not in names]
        missing = [name for name in names if name not in values]
        if unknown or missing:
            parts = [f"unknown fields {reprlib.repr(unknown)}"] if unknown else []
            parts += [f"missing fields {missing}"] if missing else []
            raise ModelError(f"GLIP configuration: {' and '.join(parts)}. Expected exactly: {', '.join(names)}.")
        fitted: dict[str, Any] = {n: tuple(v) if isinstance(v := values[n], list) else v for n in names}
        return cls(**fitted)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values in the order of the fields; tuples become lists."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Channels of C2..C5: the width doubles with every stage."""
        return tuple(self.embed_dim << stage for stage in range(STAGES))


_LENGTHS = {"depths": STAGES, "num_heads": STAGES, "anchor_strides": LEVELS, "anchor_sizes": LEVELS}

# The largest values, for anybody may have written a configuration, and not all of it shows in the shapes of weights.
_LAYERS = 64  # one takes some ms to build; the deepest published: 42 in a stage (Swin V2-G), 48 in a text encoder
_WIDTH = 1 << 16  # a square matrix of it takes 16 GiB; the widest published is 16,384, of the MLP in Swin V2-G
_ROWS = 1 << 19  # of an embedding; the largest published vocabularies have 262,144
_PIXELS = 1 << 12  # the longest side of a picture that any detector is run at: see detect/preprocessing.py
_MOST = {
    **dict.fromkeys(("depths", "text_layers", "head_blocks"), _LAYERS),
    **dict.fromkeys(("vocab_size", "max_positions", "type_vocab_size", "prompt_length"), _ROWS),
    **dict.fromkeys(("patch_size", "anchor_strides", "anchor_sizes"), _PIXELS),
    "window_size": 64,  # a head compares window_size**4 pairs of tokens: 64 MiB in float32; the largest published: 24
}


def _is_size(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _type_problems(config: GLIPConfig) -> list[str]:
    """One line for each field of a wrong type or size: expected are bool, tuple of positive ints, or positive int."""
    problems = []
    for field in fields(config):
        value = getattr(config, field.name)
        most = _MOST.get(field.name, _WIDTH)
        if field.name == "fusion":
            fits, expected = isinstance(value, bool), "true or false"
        elif field.name in _LENGTHS:
            length = _LENGTHS[field.name]
            fits = isinstance(value, tuple) and len(value) == length and all(_is_size(v, 1, most) for v in value)
            expected = f"{length} integers from 1 to {most}"
        else:
            least = 0 if field.name == "prompt_length" else 1
            fits, expected = _is_size(value, least, most), f"an integer from {least} to {most}"
        if not fits:
            problems.append(f"{field.name} is {reprlib.repr(value)}, expected {expected}")
    return problems


def _relation_problems(config: GLIPConfig) -> list[str]:
    """One line for each pair of sizes where the first has to be a multiple of the second and is not."""
    divisions: list[tuple[str, int, str, int]] = [
        (f"width of Swin stage {stage}", width, f"num_heads[{stage}]", heads)
        for stage, (width, heads) in enumerate(zip(config.stage_dims, config.num_heads, strict=True))
    ]
    divisions += [
        ("text_dim", config.text_dim, "text_heads", config.text_heads),
        ("fusion_dim", config.fusion_dim, "fusion_heads", config.fusion_heads),
        ("channels", config.channels, "the number of norm groups", GROUPS),
    ]
    return [
        f"{name} ({whole}) is not a multiple of {part_name} ({part})"
        for name, whole, part_name, part in divisions
        if whole % part
    ]
