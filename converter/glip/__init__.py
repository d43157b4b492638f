"""The GLIP family (Li et al. 2022, arXiv:2112.03857): the model in plain PyTorch, and all code specific to it.

    from converter.glip import GLIP, Detector, get_model

    model/          the model alone: it needs torch, and of conversion nothing but to load and to save
    weights.py      loading: what `convert` wrote becomes a model
    saving.py       saving: a model becomes a folder as `convert` writes it, which says what it was loaded from
    unfilled.py     a model without memory, made without what torch would import for it
    detect/         from pictures and words to boxes: preprocessing, tokenizer, prompt, detector, drawing
    task/           from a data set to boxes that can be measured: protocols, captions, `evaluate`
    zoo.py          models by name, including MMPretrain's two, from weights of any format
    model_zoo.json  the released models: training data, figures, licence, each with its source
    mistakes.py     known mistakes of re-implementations, made on purpose in mutation tests
    family.py       what parity, publishing and the command line use of GLIP

Names are imported on first use: code that only makes a tokenizer's files does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from converter.errors import require

if TYPE_CHECKING:
    from converter.glip.detect.detector import Detector, EncodedPrompt
    from converter.glip.detect.found import Found
    from converter.glip.detect.prompt import Prompt
    from converter.glip.model.config import GLIPConfig
    from converter.glip.model.detection import Detections
    from converter.glip.model.encoded import EncodedImages, EncodedText
    from converter.glip.model.glip import GLIP
    from converter.glip.model.head import Output
    from converter.glip.task.evaluate import evaluate
    from converter.glip.zoo import get_model, model_names

__all__ = [
    "GLIP",
    "Detections",
    "Detector",
    "EncodedImages",
    "EncodedPrompt",
    "EncodedText",
    "Found",
    "GLIPConfig",
    "Output",
    "Prompt",
    "evaluate",
    "get_model",
    "model_names",
]

_HOMES = {
    "detect.detector": ("Detector", "EncodedPrompt"),
    "detect.found": ("Found",),
    "detect.prompt": ("Prompt",),
    "model.config": ("GLIPConfig",),
    "model.detection": ("Detections",),
    "model.encoded": ("EncodedImages", "EncodedText"),
    "model.glip": ("GLIP",),
    "model.head": ("Output",),
    "task.evaluate": ("evaluate",),
    "zoo": ("get_model", "model_names"),
}
_EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "detect.detector": ("detect", ("torch", "PIL", "tokenizers")),
    "detect.prompt": ("detect", ()),
    "task.evaluate": ("evaluate", ("torch", "PIL", "tokenizers", "faster_coco_eval")),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            extra, modules = _EXTRAS.get(home, ("model", ("torch",)))
            require(f"converter.glip.{name}", extra, modules)
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
