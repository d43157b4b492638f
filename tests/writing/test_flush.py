"""The disk begins with what is written as it is written."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from converter.checkpoint import DTYPES, open_checkpoint
from converter.planning.plan import Step, Tensor
from converter.writing import transfer
from converter.writing.transfer import Transfer

COUNT = 3 << 20


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_whatever_a_cast_leaves_of_a_chunk(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(transfer, "begin_flush", lambda descriptor, position, size: begun.append(size))
    save_file({"a": np.zeros(COUNT, np.float32)}, tmp_path / "a.safetensors")
    descriptor = os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT)
    step = Step("/rules/0", (Tensor("a", (COUNT,), DTYPES["float32"]),), (Tensor("a", (COUNT,), DTYPES[dtype]),), ())
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        Transfer(checkpoint, {"a": (descriptor, 0)}, tmp_path / "b", lambda count: None).run([step])
    os.close(descriptor)
    assert sum(begun) == COUNT * DTYPES[dtype].itemsize


@pytest.mark.parametrize("result", [None, lambda *arguments: -1], ids=["no such call", "one that fails"])
def test_a_system_that_cannot_begin_waits_for_the_last_fsync(result: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_sync_file_range", result)
    transfer.begin_flush(0, 0, 1)


def test_it_begins_with_whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last page is written again with its rest; and a length of 0 would be the rest of the file."""
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(transfer, "_sync_file_range", lambda descriptor, begin, size, how: begun.append((begin, size)))
    page = mmap.PAGESIZE
    transfer.begin_flush(0, page + 100, 2 * page)
    transfer.begin_flush(0, page + 100, page // 2)
    assert begun == [(page, 2 * page)]
