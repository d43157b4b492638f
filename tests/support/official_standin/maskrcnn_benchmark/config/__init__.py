"""`cfg`: nested attributes that a file (JSON here, which is YAML too) and a list of pairs override."""

from __future__ import annotations

import copy
import json
from typing import Any


class Node(dict):  # type: ignore[type-arg]
    """A dict with its keys as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def clone(self) -> Node:
        return copy.deepcopy(self)

    def merge_from_file(self, path: str) -> None:
        with open(path, encoding="utf-8") as file:
            self._merge(json.load(file))

    def merge_from_list(self, pairs: list[str]) -> None:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            *path, last = key.split(".")
            node = self
            for name in path:
                node = node[name]
            if last not in node:
                raise AssertionError(f"Non-existent key: {key}")
            node[last] = type(node[last])(json.loads(value))

    def _merge(self, content: dict[str, Any]) -> None:
        for key, value in content.items():
            if key not in self:
                raise KeyError(f"Non-existent config key: {key}")
            if isinstance(value, dict):
                self[key]._merge(value)
            else:
                self[key] = value


def _node(**entries: Any) -> Node:
    return Node(entries)


cfg = _node(
    MODEL=_node(
        DEVICE="cuda",
        LANGUAGE_BACKBONE=_node(MAX_QUERY_LEN=16, PAD_MAX=True),
        DYHEAD=_node(FUSE_CONFIG=_node(EARLY_FUSE_ON=True)),
    ),
    INPUT=_node(
        MIN_SIZE_TEST=800, MAX_SIZE_TEST=1333, PIXEL_MEAN=[103.53, 116.28, 123.675], PIXEL_STD=[57.375, 57.12, 58.395]
    ),
    DATALOADER=_node(SIZE_DIVISIBILITY=32),
    # what the stand-in does wrong on purpose
    FAULTS=_node(NOTICES_HOOKS=False, RANDOM=False, NO_FLOAT64=False, NO_FLOAT64_NMS=False, ROUGH_PADDING=False),
)
