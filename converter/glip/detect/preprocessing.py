"""GLIP's preprocessing: preprocessing.json, or what a packaged folder states."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from converter.checkpoint.strict_json import read_json
from converter.display import file_name, plain
from converter.errors import ModelError
from converter.grounding.preprocessing import Preprocessing


@cache
def glip_preprocessing() -> Preprocessing:
    """The settings of all released GLIP models."""
    path = Path(__file__).with_name("preprocessing.json")
    return Preprocessing.from_dict(json.loads(path.read_text(encoding="utf-8")))


def folder_settings(model: Path) -> Preprocessing:
    """The preprocessing in the config.json of a packaged folder, else GLIP's own. ModelError if it is invalid."""
    config = model / "config.json"
    try:
        content = read_json(config) if model.is_dir() else {}
        stated = content.get("preprocessing") if content.get("model") else None  # without, it is another tool's
        return glip_preprocessing() if stated is None else _checked(Preprocessing.from_dict(stated))
    except (OSError, ValueError, AttributeError):
        return glip_preprocessing()  # loading the model reports what is wrong with the file
    except ModelError as error:
        raise ModelError(f"{file_name(config)}: {error}") from None


def _checked(settings: Preprocessing) -> Preprocessing:
    """ModelError where a value is another one than every GLIP was trained with, and no choice."""
    own = glip_preprocessing()
    for name in ("channel_order", "value_range", "caption_end", "lowercase"):
        if getattr(settings, name) != getattr(own, name):
            found, expected = getattr(settings, name), getattr(own, name)
            raise ModelError(f"preprocessing: {name} is {plain(repr(found))}, expected {expected!r}.")
    return settings
