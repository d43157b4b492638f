# Sourced by the other scripts: makes .venv once, again when the pins change, and activates it.
if [ ! -e .venv/.ready ] || [ pyproject.toml -nt .venv/.ready ] || [ constraints.txt -nt .venv/.ready ]; then
    "${PYTHON:-python3}" -m venv .venv
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
    touch .venv/.ready
fi
. .venv/bin/activate
