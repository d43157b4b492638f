"""What a detector is asked for, read without any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converter.grounding.preprocessing import Preprocessing
from converter.grounding.prompt import Prompt, captions
from converter.grounding.tokenizer import Tokenizer
from converter.parity.family import Query


def make_query(prompt: Prompt, tokenizer: Tokenizer, settings: Preprocessing) -> Query:
    """What the prompt asks for. Torch is imported once a picture is read. ModelError as `captions`."""
    made = captions(prompt, tokenizer, settings)

    def read(path: Path) -> Any:
        from converter.grounding.images import read_for

        return read_for(path, settings)

    tokens = [
        {"ids": caption.ids, "labels": [[label, *at] for label, at in caption.positive_map.items()]} for caption in made
    ]
    return Query(
        prompt,
        [caption.text for caption in made],
        prompt.phrases,
        read,
        {"captions": tokens, "preprocessing": settings.to_dict()},
        lambda picture: settings.padded(picture.width, picture.height),
    )
