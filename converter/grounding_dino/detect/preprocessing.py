"""Preprocessing: preprocessing.json, or what the processor of transformers in a folder is set to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from converter.checkpoint.strict_json import read_json
from converter.display import file_name, plain
from converter.errors import ModelError
from converter.grounding.preprocessing import Preprocessing

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR
# what the settings of pictures that are not sizes, means and deviations are carried out as
_FIXED: Mapping[str, Any] = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": _BILINEAR}


@cache
def released_preprocessing() -> Preprocessing:
    """The settings of both released models."""
    path = Path(__file__).with_name("preprocessing.json")
    return Preprocessing.from_dict(json.loads(path.read_text(encoding="utf-8")))


def folder_settings(model: Path) -> Preprocessing:
    """The sizes, mean and deviation that a folder's image processor has, else those of the released models.

    transformers up to 4 keeps it in preprocessor_config.json, 5 in processor_config.json. ModelError if it is set to
    what is not carried out here.
    """
    own = released_preprocessing()
    if not model.is_dir():
        return own
    for name, key in ((PROCESSOR, "image_processor"), (PREPROCESSOR, None)):  # of both, 5 takes its own
        if not (model / name).is_file():
            continue
        try:
            content = read_json(model / name)
            stated = content if key is None else content.get(key)
        except (OSError, ValueError, AttributeError):
            raise ModelError(f"{file_name(model / name)}: cannot be read as JSON. Get it again.") from None
        if stated is not None:
            return _of(stated, own, file_name(model / name))
    return own


def image_processor(settings: Preprocessing) -> dict[str, Any]:
    """The same as transformers keeps it. It rounds sizes otherwise than the official code, which no setting changes."""
    return {
        **_FIXED,
        "do_convert_annotations": True,
        "do_pad": True,
        "format": "coco_detection",
        "image_mean": list(settings.mean),
        "image_processor_type": "GroundingDinoImageProcessor",
        "image_std": list(settings.std),
        "processor_class": "GroundingDinoProcessor",
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": settings.longer_side, "shortest_edge": settings.shorter_side},
    }


def _of(stated: Any, own: Preprocessing, where: str) -> Preprocessing:
    if not isinstance(stated, Mapping):
        raise ModelError(f"{where}: found {type(stated).__name__}, expected the settings of an image processor.")
    factor = stated.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise ModelError(f"{where}: rescale_factor is {plain(repr(factor))}, expected 1/255.")
    for name, expected in _FIXED.items():
        if (found := stated.get(name, expected)) != expected:
            raise ModelError(f"{where}: {name} is {plain(repr(found))}, expected {expected!r}.")
    sizes = stated.get("size", {"shortest_edge": own.shorter_side, "longest_edge": own.longer_side})
    if not isinstance(sizes, Mapping) or not {"shortest_edge", "longest_edge"} <= sizes.keys():
        raise ModelError(f"{where}: size is {plain(repr(sizes))}, expected shortest_edge and longest_edge.")
    changes = {"shorter_side": sizes["shortest_edge"], "longer_side": sizes["longest_edge"]}
    for name, field in (("image_mean", "mean"), ("image_std", "std")):
        value = stated.get(name, list(getattr(own, field)))
        changes[field] = tuple(value) if isinstance(value, list) else value
    try:
        return replace(own, **changes)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
