"""A safetensors file that something changed after it was written, its header left as it was."""

from __future__ import annotations

import json
from pathlib import Path


def flip(path: Path, tensor: str, byte: int = 3) -> None:
    """Flip the highest bit of a byte of a tensor: of the last byte of its first number, which is the sign."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8:start])[tensor]["data_offsets"]
    assert byte < end - begin
    data[start + begin + byte] ^= 0x80
    path.write_bytes(data)
