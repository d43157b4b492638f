"""The detector of a configuration."""

from __future__ import annotations

from typing import Any

from .generalized_vl_rcnn import GeneralizedVLRCNN


def build_detection_model(cfg: Any) -> GeneralizedVLRCNN:
    return GeneralizedVLRCNN(cfg)
