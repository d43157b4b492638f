"""What scripts/release_environments.py gives to the commands that it tries: python scripts/release_data.py FOLDER.

A full-size GLIP-T as its authors release it and as `package` makes of it, small models with everything beside them that
`detect` and `evaluate` want, and two small files of names that no table knows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from safetensors.numpy import save_file
from synthetic_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support import small_folder, small_grounding_dino  # noqa: E402


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_checkpoint("glip-t", folder / "official.pth", weights_only=True)
    for command in ("convert official.pth converted", "package converted to-publish --model-name glip-t"):
        subprocess.run([sys.executable, "-m", "converter", *command.split(), "--quiet"], cwd=folder, check=True)
    small_folder.small_folder(folder / "small")
    small_grounding_dino.small_folder(folder / "grounding-dino")

    Image.fromarray(skimage.data.rocket()).resize((120, 90)).save(folder / "street.png")
    images = [{"id": 1, "file_name": "street.png", "width": 120, "height": 90}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, 40, 30]}]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    mine = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "mine.json").write_text(json.dumps(mine))

    qkv, norm = np.arange(48, dtype="float32").reshape(12, 4), np.ones(4, "float32")
    save_file({"blocks.0.attn.qkv.weight": qkv, "norm.weight": norm}, folder / "mine.safetensors")
    parts = {f"layers.0.attention.{part}_proj.weight": np.zeros((4, 4), "float32") for part in "qkv"}
    save_file({**parts, "layernorm.weight": norm}, folder / "theirs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
