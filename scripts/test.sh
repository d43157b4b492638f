#!/usr/bin/env bash
# Everything that must hold: format, lint, types, tables, tests. Needs Python 3.11+ and pip; sets itself up in .venv.
# Arguments go to pytest: scripts/test.sh -k staging. They run in a process for each processor; -n 0: in one.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
ruff format --check .
ruff check .
mypy
converter lint
python -m pytest -n auto "$@"
