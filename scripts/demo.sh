#!/usr/bin/env bash
# Convert, load and run GLIP-T, and compare it with a recording of the official code. Needs Python 3.11+ and pip; sets
# itself up in .venv, works in .work.
#   scripts/demo.sh                       # a full-size official-format checkpoint with synthetic weights
#   scripts/demo.sh path/to/official.pth  # a checkpoint of yours: converted and run; there is no recording of its weights
set -euo pipefail
[ $# -eq 0 ] || set -- "$(realpath "$1")"
cd "$(dirname "$0")/.."
. scripts/environment.sh
python scripts/demo.py "$@"
