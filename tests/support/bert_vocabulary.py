"""Vocabularies for tests: a tiny one, and the part of BERT base uncased that recorded captions use."""

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


def recorded_vocabulary(folder: Path) -> Path:
    """vocab.txt of 30522 entries, of which only those are real that the recorded captions use.

    WordPiece takes the longest piece there is, so pieces that the full vocabulary did not give for these captions
    change nothing where they are missing.
    """
    size, pieces = RECORDED["vocabulary"]["size"], RECORDED["vocabulary"]["pieces"]
    lines = [f"[unused-{number}]" for number in range(size)]
    for piece, number in pieces.items():
        lines[number] = piece
    path = folder / "vocab.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
