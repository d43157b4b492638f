"""ODinW: 13 data sets in the wild (Li et al. 2022), where the official download has them, and what is asked of them."""

from __future__ import annotations

import json
from pathlib import Path

from converter.parity.family import Benchmark, Class

PROMPTED = (
    "odinw-prompted"  # four data sets with the prompts of the official ODinW-35, which its ODinW-13 does not have
)


def odinw(name: str) -> list[Benchmark]:
    """The data sets, with these prompts or without."""
    content = json.loads(Path(__file__).with_name("odinw.json").read_text(encoding="utf-8"))
    return [
        Benchmark(f"{name}/{entry['name']}", entry["annotations"], entry["pictures"], _classes(entry, name == PROMPTED))
        for entry in content["data_sets"]
    ]


def _classes(entry: dict[str, list[list[str]]], is_prompted: bool) -> tuple[Class, ...]:
    prompts = entry.get("prompts") if is_prompted else None
    return tuple(
        Class(int(number), name, *(prompts[at] if prompts else ()))
        for at, (number, name) in enumerate(entry["classes"])
    )
