"""The GLIP family (Li et al. 2022, arXiv:2112.03857): the model in plain PyTorch, and all code specific to it.

    from converter.glip import GLIP, Detector, get_model

    model/          the model alone: it needs torch, and of conversion nothing but to load and to save
    exported.py     the model as it is exported as a graph
    weights.py      loading: what `convert` wrote becomes a model
    saving.py       saving: a model becomes a folder as `convert` writes it, which says what it was loaded from
    unfilled.py     a model without memory, made without what torch would import for it
    detect/         from pictures and words to boxes: the detector, and GLIP's preprocessing
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
    from converter.glip.model.config import GLIPConfig
    from converter.glip.model.detection import Detections
    from converter.glip.model.encoded import EncodedImages, EncodedText
    from converter.glip.model.glip import GLIP
    from converter.glip.model.head import Output
    from converter.glip.task.evaluate import evaluate
    from converter.glip.zoo import get_model, model_names
    from converter.grounding.found import Found
    from converter.grounding.prompt import Prompt

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
    "glip.detect.detector": ("Detector", "EncodedPrompt"),
    "glip.model.config": ("GLIPConfig",),
    "glip.model.detection": ("Detections",),
    "glip.model.encoded": ("EncodedImages", "EncodedText"),
    "glip.model.glip": ("GLIP",),
    "glip.model.head": ("Output",),
    "glip.task.evaluate": ("evaluate",),
    "glip.zoo": ("get_model", "model_names"),
    "grounding.found": ("Found",),
    "grounding.prompt": ("Prompt",),
}
_EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "glip.detect.detector": ("detect", ("torch", "PIL", "tokenizers")),
    "glip.task.evaluate": ("evaluate", ("torch", "PIL", "tokenizers", "faster_coco_eval")),
    "grounding.prompt": ("detect", ()),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            extra, modules = _EXTRAS.get(home, ("model", ("torch",)))
            require(f"converter.glip.{name}", extra, modules)
            return getattr(import_module(f"converter.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
