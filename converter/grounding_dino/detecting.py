"""What detecting, evaluating and publishing use of Grounding DINO. Torch is imported where it is needed alone."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.display import quoted
from converter.errors import ConverterWarning, require
from converter.grounding.tokenizer import COMPANIONS, Tokenizer, find_tokenizer
from converter.grounding_dino.detect.preprocessing import (
    PREPROCESSOR,
    PROCESSOR,
    folder_settings,
    image_processor,
    released_preprocessing,
)
from converter.mapping.spec import Config
from converter.parity.family import Asked, Class, Companions, Family, Query, Task
from converter.writing.ledger import to_json

if TYPE_CHECKING:
    from torch import nn

    from converter.grounding.prompt import Prompt
    from converter.grounding_dino.detect.detector import Detector


class Detecting(Family["nn.Module"]):
    """A family of transformers' Grounding DINO: all but how its models are made and compared."""

    files = (*COMPANIONS, PREPROCESSOR, PROCESSOR)

    def prompt(
        self,
        names: str | Sequence[str] | None,
        caption: str | None = None,
        spans: Sequence[str] = (),
        phrases: Sequence[str] = (),
    ) -> Prompt:
        """A ConverterWarning also for a phrase with one of the marks at which the model divides captions."""
        from converter.grounding.prompt import read_prompt

        prompt = read_prompt(names, caption, spans, phrases)
        if divided := [phrase for phrase in prompt.phrases if re.search(r"[.?]", phrase)]:
            warnings.warn(
                f"prompt: {quoted(divided[0], 80)} holds a full stop or a question mark, at which the model divides a "
                "caption: it reads the parts as if each stood alone. Leave it out.",
                ConverterWarning,
                stacklevel=2,
            )
        return prompt

    def query(self, prompt: Prompt, source: Path, config: Config, vocabulary: Path | None) -> Query:
        from converter.grounding.query import make_query

        return make_query(prompt, _tokenizer(source, config, vocabulary), folder_settings(source))

    def detector(self, model: nn.Module, source: Path, vocabulary: Path | None) -> Detector:
        from converter.grounding_dino.detect.detector import Detector

        return Detector(model, find_tokenizer(source, vocabulary), folder_settings(source), str(source))

    def task(
        self, data: str, classes: Sequence[Class], asked: Asked, source: Path, config: Config, vocabulary: Path | None
    ) -> Task:
        from converter.grounding_dino.task.task import GroundingDinoTask

        tokenizer = _tokenizer(source, config, vocabulary)
        return GroundingDinoTask.of(data, classes, asked, tokenizer, folder_settings(source))

    def settings(self) -> Mapping[str, Any]:
        """Preprocessing, and how boxes are told from tokens; the files of a folder's own processor are `files`."""
        return {
            "preprocessing": released_preprocessing().to_dict(),
            "detection": {"score": "largest probability of a token of the phrase", "labels_per_box": 1},
        }

    def companions(self, conversion: Path, config: Config, vocabulary: Path | None) -> Companions:
        """The files by which transformers' AutoProcessor loads a folder: tokenizer and image processor."""
        require("a folder for AutoProcessor", "transformers", ("tokenizers",))
        tokenizer = _tokenizer(conversion, config, vocabulary)
        settings = folder_settings(conversion)
        files = tokenizer.files(settings.caption_tokens)
        return Companions(
            {**files, PREPROCESSOR: to_json(image_processor(settings))},
            {"vocabulary": tokenizer.described()},
            tokenizer.doubts,
        )

    def about(self) -> Mapping[str, Any]:
        text = Path(__file__).with_name("model_zoo.json").read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        return content


def _tokenizer(source: Path, config: Config, vocabulary: Path | None) -> Tokenizer:
    """ModelError unless it has as many entries as the model."""
    tokenizer = find_tokenizer(source, vocabulary)
    tokenizer.check_size(config.get("vocab_size"))
    return tokenizer
