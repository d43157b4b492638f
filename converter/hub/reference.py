"""What names a model or a file on the Hub, and what names a path here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_FILES = (".safetensors", ".pth", ".pt", ".bin", ".json")  # a mistyped path, not a repository
SCHEME = "hf://"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REFERENCE = re.compile(rf"({_NAME}/{_NAME})(?:/([^@]+))?(?:@(.+))?")


@dataclass(frozen=True, slots=True)
class Reference:
    """`org/name`, and of it perhaps one file and a revision: branch, tag, `refs/pr/1` or commit."""

    repo_id: str
    file: str | None = None
    revision: str | None = None


def parse_reference(text: str) -> Reference | None:
    """What `org/name[@revision]` or `hf://org/name[/file.pth][@revision]` names; None if it is of neither form."""
    match = _REFERENCE.fullmatch(text.removeprefix(SCHEME))
    if match is None or (match[2] is not None and not text.startswith(SCHEME)):
        return None
    if match[1].split("/")[0] in ("datasets", "spaces"):  # repositories of other kinds
        return None
    if match[2] is not None and any(part in ("", ".", "..") for part in match[2].split("/")):
        return None
    return Reference(match[1], match[2], match[3])


def is_on_hub(text: str) -> bool:
    """Whether `text` is to be looked for on the Hub: `hf://...`, or `org/name` where there is no such local path."""
    if text.startswith((SCHEME, "https://huggingface.co/")):  # a URL is refused, with the spelling to use
        return True
    return parse_reference(text) is not None and not os.path.lexists(text) and not text.split("@")[0].endswith(_FILES)
