#!/usr/bin/env bash
# From `pip install` to a model on the Hub that anybody can verify: what a newcomer types, and what is printed. It is
# compared with the recording in docs/newcomer.txt. The Hub is a stand-in on this machine; the checkpoint has the size,
# names and layout of the official GLIP-T (A), and synthetic values. Needs Python 3.11+ and pip, 5 GB of disk, and 5
# more where torch comes with CUDA. Two minutes of CPU time.
#   scripts/newcomer.sh           # fails where a command fails, or prints something else than is recorded
#   scripts/newcomer.sh --record  # records
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT

# Of each line what it is of the machine that it ran on goes: rounding, and what follows from it, and the stand-in's names.
normalised() {
    sed -u -E -e 's/(nearest to the limit: ).*/\1.../' -e 's/(coverage by [^:]*: ).*/\1.../' \
        -e "s|$here|.|g" -e 's|http://[a-z0-9.]*:[0-9]+|https://huggingface.co|g' \
        -e 's/\b[0-9a-f]{40}\b/COMMIT/g' -e 's/^ *[0-9.]+ kB  (README.md|bom.cdx.json|parity.json)$/      ... kB  \1/' \
        -e 's/(README.md|bom.cdx.json|parity.json), [0-9.]+ kB$/\1, ... kB/'
}

# Each line as it is typed, in a shell of its own, then what it prints.
typed() {
    while IFS= read -r line; do
        printf '$ %s\n' "$line"
        bash -euo pipefail -c "$line" < /dev/null 2>&1
    done
}

prepared() {
    "${PYTHON:-python3}" -m venv env
    . env/bin/activate
    ln -s "$checkout" converter
    export PIP_CONSTRAINT="$checkout/constraints.txt" PIP_QUIET=2
    export HF_HOME="$here/huggingface" HF_HUB_DISABLE_PROGRESS_BARS=1 HF_HUB_DISABLE_TELEMETRY=1
    export OMP_NUM_THREADS=1 # more of them wait for each other where the machine has other work, too
    export -f typed
}

install="pip install './converter[detect,package]'"
commands="converter convert official.pth glip-t-a.safetensors
converter certify glip-t-a.safetensors --reference converter/tests/data/captures/glip-t-a.safetensors --mutate 0
converter package glip-t-a.safetensors to-publish --model-name glip-t-a --repo-id org/glip-t-a
converter publish to-publish org/glip-t-a --public"
# anybody, who has neither the files nor a token
anybody="env --unset=HF_TOKEN converter verify org/glip-t-a --dtype float32"

cd "$here"
prepared
{
    echo "# Printed by scripts/newcomer.sh. A stand-in for the Hub answers, official.pth has synthetic values, for which there"
    echo "# is a capture, and what pip installs has the versions of constraints.txt."
    typed <<< "$install"
    [[ $(python -c 'import converter; print(converter.__file__)') == "$here"/env/* ]]
    python converter/scripts/synthetic_checkpoint.py glip-t-a official.pth --weights-only
    # the stand-in is imported from the checkout, converter from where pip installed it
    (cd "$checkout" && python -m tests.support.hub bash -euo pipefail -c \
        'cd "$1"; typed <<< "$2"; rm -r glip-t-a.* to-publish; typed <<< "$3"' - "$here" "$commands" "$anybody")
} | normalised | tee printed.txt
if [ "${1:-}" = --record ]; then
    cp printed.txt "$checkout/docs/newcomer.txt"
else
    diff "$checkout/docs/newcomer.txt" printed.txt || {
        echo "other than recorded in docs/newcomer.txt; where that is meant: scripts/newcomer.sh --record" >&2
        exit 1
    }
fi
