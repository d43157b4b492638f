"""One process, or many that torchrun started: who this one is, and how lists get from one to the others.

What travels are lists of boxes in memory of the CPU, so gloo carries them on machines with GPUs, too: nccl would move
them to the card and back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from converter.display import plain
from converter.errors import ModelError

T = TypeVar("T")
_HERE = "LOCAL_WORLD_SIZE"
# a process that ends is noticed at once, a machine that loses its power is not; some wait for others for hours
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Ranks:
    """rank: of this process, from 0; count: of all; local: rank on its machine; here: how many are on it."""

    rank: int = 0
    count: int = 1
    local: int = 0
    here: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes and tells."""
        return self.rank == 0

    def told(self, value: T | None) -> T:
        """The value that the first process has, in all of them. ModelError if one of them is gone."""
        values: list[Any] = [value]
        if self.count > 1:
            import torch.distributed as dist

            with _others():
                dist.broadcast_object_list(values, src=0)
        told: T = values[0]
        return told

    def gathered(self, values: Sequence[T]) -> list[T]:
        """What all have, in the first process; nothing in the others. ModelError if one of them is gone."""
        if self.count == 1:
            return list(values)
        import torch.distributed as dist

        parts: list[Any] | None = [None] * self.count if self.is_first else None
        with _others():
            dist.gather_object(list(values), parts, dst=0)
        return [value for part in parts or () for value in part]


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes that torchrun started together with this one, or this one alone."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ:
        yield Ranks()
        return
    import torch.distributed as dist

    is_ours = not dist.is_initialized()  # else whoever trains, say, has done so
    try:
        if is_ours:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        count = dist.get_world_size()
        local, here = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", 0), (_HERE, count)))
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the processes that torchrun started cannot be joined: {plain(str(error), 400)}. Start them by torchrun."
        ) from error
    try:
        yield Ranks(dist.get_rank(), count, local, here)
    finally:
        if is_ours:
            dist.destroy_process_group()


@contextmanager
def _others() -> Iterator[None]:
    """Errors of talking to another process, which is gone then."""
    try:
        yield
    except RuntimeError as error:
        raise ModelError("another process of this run ended early; what it says itself is the reason.") from error
