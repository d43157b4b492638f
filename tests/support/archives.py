"""Archives in the layout of torch.save, and what everything that reads them must find."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from converter.checkpoint import DTYPES, open_checkpoint
from converter.planning.plan import Tensor
from converter.writing.shards import nbytes
from converter.writing.torch_archive import Archive, lay_out_archive

NOTES = b'{"tensors":{}}'

Content = dict[str, tuple[Tensor, bytes]]  # by name, in the order of the state dict


def content(*described: tuple[str, tuple[int, ...], str], seed: int = 0) -> Content:
    """Tensors by name, shape and dtype, of random bits."""
    generator = np.random.default_rng(seed)
    made = {}
    for name, shape, dtype in described:
        tensor = Tensor(name, shape, DTYPES[dtype])
        made[name] = tensor, generator.integers(0, 2 if dtype == "bool" else 256, nbytes(tensor), np.uint8).tobytes()
    return made


def frame_of(archive: Archive, data: Mapping[str, bytes]) -> list[tuple[int, bytes]]:
    return list(archive.frame({name: zlib.crc32(raw) for name, raw in data.items()}, NOTES))


def pieces_of(tensors: Content, root: str) -> tuple[int, list[tuple[int, bytes]]]:
    """Size of the file, and all that is in it by position."""
    archive = lay_out_archive([tensor for tensor, _ in tensors.values()], root, len(NOTES))
    data = {name: raw for name, (_, raw) in tensors.items()}
    return archive.size, frame_of(archive, data) + [(archive.offsets[name], raw) for name, raw in data.items()]


def write(path: Path, tensors: Content, root: str = "") -> Path:
    size, pieces = pieces_of(tensors, root)
    raw = bytearray(size)
    for position, piece in pieces:
        raw[position : position + len(piece)] = piece
    assert len(raw) == size
    path.write_bytes(raw)
    return path


def write_sparse(path: Path, archive: Archive, data: Mapping[str, tuple[int, bytes]]) -> Path:
    """`data`: for each tensor, bytes at an offset within it; what is not given is zero and takes no room."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(descriptor, archive.size)
        # right for those that are given whole; for the others none is looked at
        crcs = {name: zlib.crc32(data[name][1]) if name in data else 0 for name in archive.offsets}
        for position, piece in archive.frame(crcs, NOTES):
            os.pwrite(descriptor, piece, position)
        for name, (offset, raw) in data.items():
            os.pwrite(descriptor, raw, archive.offsets[name] + offset)
        assert os.fstat(descriptor).st_size == archive.size
    finally:
        os.close(descriptor)
    return path


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tuple(tensor.shape), raw


def expected(tensors: Content) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {n: (getattr(torch, t.dtype.name), t.shape, raw) for n, (t, raw) in tensors.items()}


def check_read_by_all(path: Path, tensors: Content, root: str) -> None:
    """torch, mapped or not, and our own reader see `tensors`, in their order."""
    for options in ({}, {"mmap": True}):
        loaded = torch.load(path, weights_only=True, **options)
        state_dict = loaded[root] if root else loaded
        assert {name: bits(tensor) for name, tensor in state_dict.items()} == expected(tensors)
        assert list(state_dict) == list(tensors)
    with open_checkpoint(path, root) as checkpoint:
        assert {n: (i.dtype, i.shape, checkpoint.read(n).tobytes()) for n, i in checkpoint.tensors.items()} == {
            name: (tensor.dtype, tensor.shape, raw) for name, (tensor, raw) in tensors.items()
        }
        assert checkpoint.skipped == ()
