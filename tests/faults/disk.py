"""What lies on the disk: old, new, or something else, and what may not be there.

Nothing here knows how a result is written. Bytes are compared with those of a run without faults; where they are
neither the old nor the new ones, what lies there is read as a user would read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.support.jobs import Listing

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Reference:
    """What lies there before a run and after one without faults, and what each reads as, if there is anything."""

    old: Listing
    new: Listing
    old_tensors: Tensors | None
    new_tensors: Tensors


@dataclass(frozen=True, slots=True)
class Seen:
    """`state`: `old` or `new` by its bytes, `between` if some files are old and others new or missing, else `torn`.

    `leftovers`: what belongs neither to the old nor the new.
    """

    state: str
    leftovers: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """Whether it is the old or the new and nothing else."""
        return self.state in ("old", "new") and not self.leftovers


def look(found: Listing, reference: Reference) -> Seen:
    """What a folder shows."""
    known = reference.old.keys() | reference.new.keys()
    ours = {path: content for path, content in found.items() if path in known}
    strange = [path for path in found if path not in known]
    leftovers = tuple(path for path in strange if str(Path(path).parent) not in strange)
    if ours in (reference.old, reference.new):
        return Seen("new" if ours == reference.new else "old", leftovers)
    whole = all(content in _contents(path, reference) for path, content in ours.items())
    return Seen("between" if whole else "torn", leftovers)


def _contents(path: str, reference: Reference) -> list[bytes | None]:
    return [state[path] for state in (reference.old, reference.new) if path in state]


def reads_as(tensors: Tensors | None, reference: Reference) -> str | None:
    """`old` or `new` if these are the tensors of either, every one, bit for bit."""
    if tensors is None:
        return None
    if same(tensors, reference.new_tensors):
        return "new"
    return "old" if reference.old_tensors is not None and same(tensors, reference.old_tensors) else None


def same(a: Tensors, b: Tensors) -> bool:
    """The same names, dtypes, shapes and bits."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].contiguous().numpy().tobytes() == b[name].contiguous().numpy().tobytes()
        for name in a
    )
