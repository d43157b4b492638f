"""What parity, publishing and the command line use of GLIP. Torch is imported inside the functions that need it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.display import file_name
from converter.errors import CaptureError
from converter.grounding.tokenizer import COMPANIONS
from converter.mapping.spec import Config
from converter.parity.family import (
    Asked,
    Benchmark,
    Class,
    Companions,
    Derived,
    Family,
    Inputs,
    Mistake,
    Query,
    Task,
)

if TYPE_CHECKING:
    from torch import Tensor

    from converter.checkpoint import Checkpoint
    from converter.glip.detect.detector import Detector
    from converter.glip.model.glip import GLIP
    from converter.glip.model.head import Output
    from converter.grounding.prompt import Prompt
    from converter.parity.capture import Capture, Detections
    from converter.parity.graph import Graph

_LABELS = 10_000  # of a capture
ANCHORS = "rpn.anchor_generator."  # + level: an official module; here the method GLIP.anchors makes the anchors


class GLIPFamily(Family["GLIP"]):
    """All GLIP models."""

    table = "glip-official"
    files = COMPANIONS
    configurable = ("preprocessing",)
    benchmarks = ("odinw", "odinw-prompted")

    def build(self, config: Config) -> GLIP:
        from converter.glip.model.config import GLIPConfig
        from converter.glip.model.glip import GLIP

        return GLIP(GLIPConfig.from_dict(config))

    def load(self, path: Path, checkpoint: Checkpoint) -> GLIP:
        from converter.glip.model.glip import GLIP
        from converter.glip.weights import load

        return load(GLIP, path, checkpoint).eval()

    def config(self, model: GLIP) -> Config:
        return asdict(model.config)

    def sample_inputs(self, config: Config) -> Inputs:
        """Two images of 75x101 and 60x90 pixels and two captions of 13 and 10 tokens.

        The numbers are raw output of PCG64, which is the same in every numpy; pixels are uniform with mean 0 and
        variance 1. The batch has odd sides and a padded caption, since implementations differ in padding and masks.
        """
        import torch

        pixels = np.random.PCG64(0).random_raw(2 * 3 * 75 * 101) >> np.uint64(40)
        images = torch.from_numpy(((2.0 * (pixels * 2.0**-24) - 1.0) * math.sqrt(3.0)).astype("float32"))
        images = images.view(2, 3, 75, 101)
        images[1, :, 60:] = 0
        images[1, :, :, 90:] = 0
        words = np.uint64(int(str(config["vocab_size"])) - 1)
        ids = np.random.PCG64(1).random_raw(2 * 13) % words + np.uint64(1)
        mask = torch.ones(2, 13, dtype=torch.int64)
        mask[1, 10:] = 0
        return Inputs(
            {
                "images": images,
                "input_ids": torch.from_numpy(ids.astype("int64")).view(2, 13) * mask,
                "attention_mask": mask,
            },
            {
                "captions": ["", ""],
                "image_sizes_hw": [[75, 101], [60, 90]],
                "positive_map_label_to_token": {"1": [1], "2": [3], "3": [5, 6, 7]},
            },
        )

    def inputs(self, capture: Capture) -> Mapping[str, Tensor]:
        """Images (B, 3, H, W), ids and mask (B, T), without the trailing tokens that the model does not compute."""
        images, ids, mask = _checked(capture)
        tokens = _computed_tokens(mask)
        return {"images": images, "input_ids": ids[:, :tokens], "attention_mask": mask[:, :tokens]}

    def derived(self, model: GLIP) -> Mapping[str, Derived]:
        def anchors(level: int, out: Output) -> Tensor:
            return model.anchors(out)[level]

        levels = range(len(model.config.anchor_strides))
        return {f"{ANCHORS}{level}": Derived("anchors", partial(anchors, level)) for level in levels}

    def detect(self, model: GLIP, out: Output, facts: Mapping[str, Any]) -> Sequence[Detections]:
        from converter.parity.capture import Detections

        phrases = {int(label): tokens for label, tokens in facts["positive_map_label_to_token"].items()}
        return [Detections(*found) for found in model.detect(out, facts["image_sizes_hw"], phrases)]

    def mistakes(self, model: GLIP) -> Sequence[Mistake]:
        from converter.glip.mistakes import mistakes_of

        return mistakes_of(model)

    def graph(
        self,
        model: GLIP,
        size: tuple[int, int] | None,
        tokens: int | None,
        *,
        gathers: bool = False,
        detection: bool = False,
    ) -> Graph:
        from converter.glip.exported import graph_of

        graph = graph_of(model, size, tokens, gathers)
        if not detection:
            return graph
        from converter.glip.exported_detection import with_detection

        return with_detection(graph, model.config)

    def asked(self, inputs: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Mapping[str, Tensor]:
        import torch

        from converter.glip.model.inputs import check_positive_map

        tokens = inputs["input_ids"].shape[1]
        stated = {int(label): own for label, own in facts["positive_map_label_to_token"].items()}
        words = check_positive_map(stated, tokens)
        if max(words) > _LABELS:
            raise CaptureError(f"the capture asks for label {max(words)}, expected at most {_LABELS}. Capture again.")
        phrases = torch.zeros(max(words), tokens, dtype=torch.bool)
        for label, own in words.items():
            phrases[label - 1, own] = True
        return {"image_sizes": torch.tensor(facts["image_sizes_hw"]), "phrases": phrases}

    def objects(self, named: Mapping[str, Tensor], pictures: int) -> Sequence[Detections]:
        from converter.parity.capture import Detections

        own = [named["pictures"] == picture for picture in range(pictures)]
        return [Detections(*(named[name][each] for name in ("boxes", "scores", "labels"))) for each in own]

    def output(self, named: Mapping[str, Tensor]) -> Output:
        from converter.glip.model.config import LEVELS
        from converter.glip.model.head import Output

        return Output(*(tuple(named[f"{part}.{level}"] for level in range(LEVELS)) for part in Output._fields))

    def heads(self, model: GLIP) -> Mapping[str, int]:
        heads = {}
        for name, _ in model.named_parameters():
            module, _, field = name.rpartition(".")
            owner, _, projection = module.rpartition(".")
            if field == "weight" and projection in ("image_query", "text_key", "image_value", "text_value"):
                heads[name] = model.config.fusion_heads
            elif field == "weight" and projection == "qkv":
                heads[name] = 3 * int(getattr(model.get_submodule(owner), "heads", 0))
        return heads

    def prompt(
        self,
        names: str | Sequence[str] | None,
        caption: str | None = None,
        spans: Sequence[str] = (),
        phrases: Sequence[str] = (),
    ) -> Prompt:
        from converter.grounding.prompt import read_prompt

        return read_prompt(names, caption, spans, phrases)

    def query(self, prompt: Prompt, source: Path, config: Config, vocabulary: Path | None) -> Query:
        from converter.glip.detect.preprocessing import folder_settings
        from converter.grounding.query import make_query
        from converter.grounding.tokenizer import find_tokenizer

        tokenizer = find_tokenizer(source, vocabulary)
        tokenizer.check_size(config.get("vocab_size"))
        return make_query(prompt, tokenizer, folder_settings(source))

    def detector(self, model: GLIP, source: Path, vocabulary: Path | None) -> Detector:
        from converter.glip.detect.detector import Detector
        from converter.glip.detect.preprocessing import folder_settings
        from converter.grounding.tokenizer import find_tokenizer

        return Detector(model, find_tokenizer(source, vocabulary), folder_settings(source), str(source))

    def task(
        self, data: str, classes: Sequence[Class], asked: Asked, source: Path, config: Config, vocabulary: Path | None
    ) -> Task:
        from converter.glip.detect.preprocessing import folder_settings
        from converter.glip.task.task import GLIPTask
        from converter.grounding.tokenizer import find_tokenizer

        tokenizer = find_tokenizer(source, vocabulary)
        tokenizer.check_size(config.get("vocab_size"))
        return GLIPTask.of(data, classes, asked, tokenizer, folder_settings(source))

    def benchmark(self, name: str) -> Sequence[Benchmark]:
        from converter.glip.task.benchmark import odinw

        return odinw(name)

    def settings(self) -> Mapping[str, Any]:
        """Preprocessing and detection parameters; anchors are in the configuration."""
        from converter.glip.detect.preprocessing import glip_preprocessing
        from converter.glip.model import config

        return {
            "preprocessing": glip_preprocessing().to_dict(),
            "detection": {
                "score_threshold": config.RULES.score_threshold,
                "candidates_per_level": config.RULES.candidates_per_level,
                "nms_threshold": config.RULES.nms_threshold,
                "detections_per_image": config.DETECTIONS_PER_IMAGE,
                "delta_weights": list(config.DELTA_WEIGHTS),
                "max_log_growth": config.MAX_LOG_GROWTH,
            },
        }

    def companions(self, conversion: Path, config: Config, vocabulary: Path | None) -> Companions:
        """The tokenizer's files, and the preprocessing."""
        from converter.glip.detect.preprocessing import folder_settings
        from converter.grounding.tokenizer import find_tokenizer

        tokenizer = find_tokenizer(conversion, vocabulary)
        tokenizer.check_size(config.get("vocab_size"))
        settings = folder_settings(conversion)
        files = tokenizer.files(settings.caption_tokens)
        return Companions(
            files,
            {"preprocessing": settings.to_dict(), "vocabulary": tokenizer.described()},
            tokenizer.doubts,
        )

    def about(self) -> Mapping[str, Any]:
        text = Path(__file__).with_name("model_zoo.json").read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        return content


FAMILY = GLIPFamily()


def _checked(capture: Capture) -> tuple[Tensor, Tensor, Tensor]:
    """Images, ids and mask of a capture; CaptureError unless they form a batch and detection has its facts."""
    import torch

    where = file_name(capture.path)
    names = ("images", "input_ids", "attention_mask")
    if missing := [f"input.{name}" for name in names if name not in capture.inputs]:
        raise CaptureError(f"{where}: lacks {missing[0]!r}. Capture again.")
    if missing := [name for name in ("image_sizes_hw", "positive_map_label_to_token") if name not in capture.facts]:
        raise CaptureError(f"{where}: does not say {missing[0]!r}, which detection needs. Capture again.")
    images, ids, mask = (capture.inputs[name] for name in names)
    batch = len(capture.facts["image_sizes_hw"])
    if images.dim() != 4 or ids.dim() != 2 or ids.shape != mask.shape or 0 in (*images.shape, *ids.shape) or (
        len(images) != batch or len(ids) != batch or {ids.dtype, mask.dtype} != {torch.int64}
    ):  # fmt: skip
        raise CaptureError(f"{where}: its images, ids and mask do not form a batch of {batch}. Capture again.")
    return images, ids, mask


def _computed_tokens(attention_mask: Tensor) -> int:
    """How many leading tokens the model computes; the same rule as `check_ids_and_length` of the model."""
    import torch

    from converter.glip.model.inputs import TEXT_MULTIPLE

    attended = attention_mask != 0
    tokens = attended.shape[1]
    lengths = (attended * torch.arange(1, tokens + 1)).amax(dim=1)
    if int(lengths.min()) == 0:
        return tokens
    return min(tokens, -(-int(lengths.max()) // TEXT_MULTIPLE) * TEXT_MULTIPLE)
