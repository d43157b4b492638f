"""Move model weights between implementations and prove that nothing was lost.

    from converter import GLIP, Detector, convert, evaluate

These names are imported on first use: `import converter` alone takes no time, and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converter.glip import GLIP, Detector, evaluate
    from converter.hub.conversion import convert

__version__ = "0.1.0"
__all__ = ["GLIP", "Detector", "__version__", "convert", "evaluate"]

_HOMES = {"GLIP": "glip", "Detector": "glip", "convert": "hub.conversion", "evaluate": "glip"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
