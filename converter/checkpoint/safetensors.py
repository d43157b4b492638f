"""The safetensors layout.

Source: https://github.com/huggingface/safetensors#format, and the checks of its Rust library: no gap, no overlap, no
byte left over.
"""

from __future__ import annotations

from itertools import accumulate
from math import prod
from operator import mul

from converter.checkpoint.dtypes import BY_SAFETENSORS_TAG
from converter.checkpoint.index import Checkpoint, TensorInfo, refuse_long_name
from converter.checkpoint.source import SourceFile
from converter.checkpoint.storage import Storage
from converter.checkpoint.strict_json import OBJECT_LIMIT, read_json_object
from converter.checkpoint.tensors import DIMENSION_LIMIT
from converter.checkpoint.truncated import cut_off
from converter.display import file_name, quoted
from converter.errors import UnsupportedCheckpointError, damaged


def open_safetensors(source: SourceFile) -> Checkpoint:
    """Index one safetensors file. Raises CheckpointError."""
    tensors, unsupported, metadata = _read_header(source)
    return Checkpoint(
        path=source.path,
        layout="safetensors",
        sources=(source,),
        roots={"": len(tensors)},
        tensors=tensors,
        unsupported=unsupported,
        metadata=metadata,
    )


def _read_header(source: SourceFile) -> tuple[dict[str, TensorInfo], dict[str, str], dict[str, str]]:
    """Tensors, unsupported tensors and metadata of one file, in the order in which the data lies."""
    label = file_name(source.path)
    length = int.from_bytes(source.read(0, 8, "length of the header"), "little")
    start = 8 + length
    if source.size < start <= 8 + OBJECT_LIMIT and source.read(8, 1, "header") == b"{":
        raise cut_off(source, start, "its header", at_least=True)
    if start > source.size:
        raise damaged(label, f"the header should end at byte {start}, but the file ends at byte {source.size}")
    document = read_json_object(source, 8, length, "header")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(label, "`__metadata__` does not map strings to strings")
    entries = [_Entry(name, entry, label) for name, entry in document.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    tensors: dict[str, TensorInfo] = {}
    unsupported: dict[str, str] = {}
    end = 0
    for entry in entries:
        if entry.begin != end:
            problem = "a gap or an overlap"
            raise damaged(
                label,
                f"tensor {quoted(entry.name)} begins at byte {entry.begin} of the data, expected {end}: {problem}",
            )
        end = entry.end
        dtype = BY_SAFETENSORS_TAG.get(entry.tag)
        if dtype is None:
            unsupported[entry.name] = (
                f"tensor {quoted(entry.name)}: its dtype {quoted(entry.tag)} is unknown. Save it in another"
            )
            continue
        if prod(entry.shape) * dtype.itemsize != entry.end - entry.begin:
            raise damaged(
                label,
                f"tensor {quoted(entry.name)} {list(entry.shape)} of {dtype} does not fill the "
                f"{entry.end - entry.begin} bytes that it is given",
            )
        # its bytes must be in the file before anything asks for them
        if start + entry.end > source.size:
            raise cut_off(source, start + max(entry.end for entry in entries), f"tensor {quoted(entry.name)}")
        storage = Storage(
            source, f"{source.path.name}:{entry.name}", f"tensor {quoted(entry.name)}", start + entry.begin,
            entry.end - entry.begin,
        )  # fmt: skip
        tensors[entry.name] = TensorInfo(entry.name, dtype, entry.shape, _contiguous_strides(entry.shape), storage)
    if start + end != source.size:
        raise damaged(label, f"the tensors end at byte {start + end}, the file at byte {source.size}")
    return tensors, unsupported, metadata


class _Entry:
    """What the header says of one tensor, each part of the type it must be."""

    def __init__(self, name: str, entry: object, label: str) -> None:
        refuse_long_name(name, label)
        self.name = name
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise damaged(label, f"tensor {quoted(name)} is not described by dtype, shape and data_offsets")
        self.tag = entry["dtype"]
        if not isinstance(self.tag, str):
            raise damaged(label, f"tensor {quoted(name)}: its dtype is not a string")
        self.shape = tuple(_counts(entry["shape"], f"tensor {quoted(name)}: its shape", label))
        if prod(length or 1 for length in self.shape) >= 1 << 63:  # strides would be beyond 64 bits, even of no element
            raise damaged(label, f"tensor {quoted(name)}: its shape is beyond what can be counted")
        offsets = _counts(entry["data_offsets"], f"tensor {quoted(name)}: its data_offsets", label)
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            raise damaged(label, f"tensor {quoted(name)}: its data_offsets are not a range")
        self.begin, self.end = offsets


def _counts(value: object, what: str, label: str) -> list[int]:
    if not isinstance(value, list) or not all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63 for item in value
    ):
        raise damaged(label, f"{what} is not a list of sizes")
    if len(value) > DIMENSION_LIMIT:
        raise UnsupportedCheckpointError(
            f"{label}: {what} has {len(value)} entries, {DIMENSION_LIMIT} is the limit. Reshape it."
        )
    return value


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(accumulate(shape[:0:-1], mul, initial=1))[::-1] if shape else ()
