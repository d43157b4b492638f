"""What the Hub refuses in a model card."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.support.hub.faults import Refusal


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that is given twice, as the Hub does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [str(key.value) for key, _ in node.value]
        if len(set(names)) < len(names):
            raise yaml.constructor.ConstructorError(None, None, "duplicated mapping key", node.start_mark)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


# huggingface_hub.repocard has the same, and says that it is the Hub's
_METADATA = re.compile(r"\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")


def check_card(card: str) -> None:
    """Refuse a README.md for its metadata, in the Hub's words where it does so, too."""
    problem = None
    if match := _METADATA.match(card):
        try:
            metadata = yaml.load(match[1], _Loader)
        except yaml.YAMLError as error:
            problem = f"Invalid YAML in README.md: {' '.join(str(error).split())}"
        else:
            if isinstance(metadata, list):
                problem = '"value" must be of type object'
            elif not isinstance(metadata, dict):
                problem = "The YAML metadata of your README.md is invalid."
    elif re.match(r"\s*---[\r\n]+(?!---)", card):
        problem = "the YAML front matter does not end"
    if problem:
        raise Refusal(400, problem, errors=[{"message": problem}], warnings=[])
