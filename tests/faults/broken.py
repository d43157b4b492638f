"""Programs that commit wrongly on purpose: the harness must say so.

Each converts beside the destination's folder, where no fault is made, and then puts the result there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from converter.cli import converter_main


def in_place() -> None:
    """Write over what is there: a reader, or a kill, meets half of a file."""
    for source, final in _converted():
        content = source.read_bytes()
        descriptor = os.open(final, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
        os.write(descriptor, content[: len(content) // 2])
        os.write(descriptor, content[len(content) // 2 :])
        os.close(descriptor)


def late_error() -> None:
    """Fail after the result got its name, and leave a temporary file when interrupted before."""
    for source, final in _converted():
        partial = final.with_name(f".{final.name}.partial")
        descriptor = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
        os.write(descriptor, source.read_bytes())
        os.close(descriptor)
        os.rename(partial, final)
        folder = os.open(final.parent, os.O_RDONLY)
        os.fsync(folder)


def silent() -> None:
    """Say that all went well when nothing was written."""
    with contextlib.suppress(OSError):
        for source, final in _converted():
            folder = os.open(final.parent, os.O_RDONLY)
            os.rename(source, final)
            os.close(folder)


def _converted() -> list[tuple[Path, Path]]:
    """The files of the result, and where they belong."""
    at = sys.argv.index("--dst") + 1
    destination = Path(sys.argv[at])
    aside = Path("aside")
    aside.mkdir(exist_ok=True)
    for path in aside.iterdir():
        path.unlink()
    sys.argv[at] = str(aside / destination.name)
    out, err = os.dup(1), os.dup(2)
    with contextlib.suppress(SystemExit):
        converter_main()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # which the program no longer heeds at its end
        signal.signal(number, signal.default_int_handler)
    sys.stdout, sys.stderr = open(out, "w"), open(err, "w")  # noqa: SIM115 - they are the process's
    return [(path, destination.with_name(path.name)) for path in sorted(aside.iterdir(), reverse=True)]
