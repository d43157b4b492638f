"""From pictures and words to boxes: reading pictures, prompts, running the model, drawing."""

from converter.detect.detector import Detector, Found
from converter.detect.images import read_image
from converter.detect.prompt import Prompt

__all__ = ["Detector", "Found", "Prompt", "read_image"]
