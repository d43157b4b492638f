#!/usr/bin/env bash
# Load converted full-size weights into the models of other packages and compare what these compute with our model.
# They need old versions of this and that, so they live in .peers, apart from .venv. Needs Python 3.11 and pip,
# some 10 GB of memory and 12 GB of disk. Arguments go to pytest: scripts/peers.sh -k 'timm and glip-l'
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -e .peers/.ready ] || [ pyproject.toml -nt .peers/.ready ] || [ scripts/peers-constraints.txt -nt .peers/.ready ]; then
    "${PYTHON:-python3}" -m venv .peers
    .peers/bin/python -m pip install --quiet --constraint scripts/peers-constraints.txt --editable '.[model]' \
        pytest scikit-image torchvision mmengine mmcv-lite mmpretrain mmdet timm transformers peft faster-coco-eval lvis
    touch .peers/.ready
fi
.peers/bin/python -m pytest -m peers tests/peers "$@"
