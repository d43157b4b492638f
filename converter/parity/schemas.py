"""The shape of captures' metadata and of certificates, by their schemas beside this module."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

from converter.checkpoint.strict_json import read_json
from converter.display import plain, quoted


def problem_of(content: Any, kind: Literal["capture", "certificate"]) -> str | None:
    """The first place where `content` breaks the schema, and why; None if it is valid."""
    error = next(iter(_validator(kind).iter_errors(content)), None)
    if error is None:
        return None
    place = "/".join(map(str, error.absolute_path))
    return f"at {quoted(place) if place else 'its top'}: {plain(error.message, 300)}"


@cache
def _validator(kind: str) -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(read_json(Path(__file__).with_name(f"{kind}.schema.json")))
