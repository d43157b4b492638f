#!/usr/bin/env bash
# Build sdist and wheel, twice to the same bytes, and try them as strangers install them. Nothing is uploaded.
# Needs Python 3.11+ and pip; sets itself up in .venv. What is to be uploaded lies in dist/ in the end.
#   scripts/release.sh                        # on this Python core, draft and hub, without torch
#   scripts/release.sh --all                  # before a release: each extra alone, with the lowest and the newest versions
#                                             # that it allows, on each Python that is found: an hour or two, 30 GB
#   scripts/release.sh --python 3.12 detect   # some of that; scripts/release_environments.py says more
set -euo pipefail
cd "$(dirname "$0")/.."
# git, as root in a container, else refuses a checkout that another user owns
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=$PWD
. scripts/environment.sh
python -m pip install --quiet --constraint constraints.txt twine uv

version=$(python -c 'import converter; print(converter.__version__)')
grep -qx "## $version" CHANGELOG.md || { echo "CHANGELOG.md has no section '## $version'" >&2; exit 1; }
if grep -qx '## Unreleased' CHANGELOG.md; then
    echo "warning: CHANGELOG.md has changes that are 'Unreleased', and this is built as $version" >&2
fi
if [ -n "$(git status --porcelain)" ]; then
    echo "warning: not all of this is committed" >&2
    [[ " $* " != *" --all "* ]] || exit 1 # which is for what will be uploaded
fi

# as two people build it, who have little in common; and the wheel out of the sdist
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH UV_SYSTEM_CERTS=1 # certificates of this machine, as pip takes them
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build() { uv build --quiet --build-constraint constraints.txt "$@"; }
copy() { mkdir -p "$1" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$1"; }
copy "$work/one"
(umask 022; TZ=UTC LC_ALL=C.UTF-8 build "$work/one" --sdist --wheel --out-dir "$work/first")
(umask 077; copy "$work/two/elsewhere"; find "$work/two" -type f -exec chmod 600 {} + -exec touch -d 2001-02-03 {} +
 TZ=Asia/Kolkata LC_ALL=C build "$work/two/elsewhere" --sdist --wheel --out-dir "$work/second")
build "$work/first/converter-$version.tar.gz" --wheel --out-dir "$work/third"
(cd "$work/first" && sha256sum converter-*) | tee "$work/sums"
(cd "$work/second" && sha256sum --quiet --check "$work/sums")
(cd "$work/third" && sha256sum --quiet --check --ignore-missing "$work/sums")
echo "the same bytes twice, and the wheel out of the sdist"
rm -rf dist && mkdir dist && cp "$work/first"/converter-* dist

twine check --strict dist/*
# which files are in them, and what they say of themselves
RELEASE_DIST=$PWD/dist python -m pytest -q -n 0 --basetemp "$work/tests" tests/test_release.py
rm -rf .work/release
python scripts/release_data.py .work/release
python -m tests.support.hub python scripts/release_environments.py "dist/converter-$version-py3-none-any.whl" "$@"
