"""The small model as a folder with its vocabulary; it looks at pictures of 96 pixels, as full size takes seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from converter.glip.detect.preprocessing import glip_preprocessing
from tests.support.bert_vocabulary import small_vocabulary
from tests.support.saved_glip import saved_glip
from tests.support.small_glip import small_config

SETTINGS = replace(glip_preprocessing(), shorter_side=96, longer_side=160)


def small_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    saved_glip(folder).rename(folder / "model.safetensors")
    small_vocabulary(folder)
    config = {"model": "glip", "variant": "small", "config": small_config().to_dict()}
    (folder / "config.json").write_text(json.dumps(config | {"preprocessing": SETTINGS.to_dict()}))
    return folder
