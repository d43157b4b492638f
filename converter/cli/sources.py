"""Where a command reads: a local path, or what `org/name` or `hf://org/name/file.pth@revision` names on the Hub."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.cli.output import note, told
from converter.display import listed, plain
from converter.hub.reference import is_on_hub


@dataclass(frozen=True, slots=True)
class Located:
    """A local path. `origin`: the commit of the Hub that it is from, with the SHA-256 of each file; `others`: files of
    that commit that were not downloaded."""

    path: Path
    origin: dict[str, Any] | None
    others: tuple[str, ...] = ()


def taken_from(checkpoint: Checkpoint) -> str:
    """Which state dict of a file was taken, and which others could be; "" where there is one, without a name."""
    others = [
        name or "its top level"
        for name, count in checkpoint.roots.items()
        if name != checkpoint.root and 10 * count > len(checkpoint.tensors)  # not a loss or two
    ]
    if not checkpoint.root and not others:
        return ""
    hint = f"; also there: {listed(map(plain, others))} (--root chooses)" if others else ""
    return f"{plain(checkpoint.root) or 'its top level'}{hint}"


def locate(text: str, *, quiet: bool = False, also: Callable[[Path], Collection[str]] = lambda folder: ()) -> Located:
    """`text` as a local path; what is on the Hub is downloaded, or found in the cache, and hashed. Raises HubError.

    `also`: as for `resolve`.
    """
    if not is_on_hub(text):
        return Located(Path(text), None)
    from converter.hub.requests import show_progress
    from converter.hub.resolve import resolve

    show_progress(sys.stderr.isatty() and not quiet and not told().is_quiet)
    found = resolve(text, also=also, say=note)
    note(f"using {found.reference}")
    return Located(found.path, found.origin, found.others)
