"""A tiny vocabulary for tests, and what BERT base uncased makes of recorded captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import DATA

RECORDED: dict[str, Any] = json.loads((DATA / "tokenizer" / "bert-base-uncased.json").read_text(encoding="utf-8"))
WORDS = """
    [PAD] [UNK] [CLS] [SEP] [MASK] . , ! a an the person dog dogs cat traffic light with two and on of red skate
    ##board ##s ##ing s umbrella boat cell phone tree car u flag hair dr ##ier e ##t b ##a ##i ##o ##n ##r
    ##l ##u small
""".split()  # noqa: SIM905  50, as many as the small model has


def small_vocabulary(folder: Path) -> Path:
    """vocab.txt of as many entries as the small model has."""
    path = folder / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return path
