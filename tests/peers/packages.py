"""Importing the peers on a current PyTorch: what stands between is put right first."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from tests.peers import mmcv_standin

# Operators of torchvision whose shapes it describes when imported: a build for CUDA brings none of them on a PyTorch
# without CUDA, and then cannot be imported. Nothing that is compared here runs them.
_TORCHVISION = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a declaration lasts as long as its object


@contextmanager
def unheard() -> Iterator[None]:
    """What a peer warns of when imported and built, and that is much, is not ours; what it warns of running is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def package(name: str) -> ModuleType:
    """Import a peer or a module of it."""
    with unheard():
        _torchvision()
        sys.modules.setdefault("mmcv._ext", mmcv_standin)
        return importlib.import_module(name)


def _torchvision() -> None:
    """All peers import torchvision."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in _TORCHVISION:
            library.define(operator)
        _declared.append(library)
        importlib.import_module("torchvision")
