"""The in-house GLIP in plain PyTorch; it knows nothing of conversion."""

from converter.model.config import GLIPConfig
from converter.model.detection import Detections
from converter.model.glip import GLIP
from converter.model.head import Output

__all__ = ["GLIP", "Detections", "GLIPConfig", "Output"]
