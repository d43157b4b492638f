"""A file as `torch.load(weights_only=True)` reads it, held against what is read here."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from converter.checkpoint import open_checkpoint
from converter.errors import CheckpointError
from tests.support.reading import Bits, bits, check_message

# what torch refuses and is read here on purpose, by what torch says
ON_PURPOSE = {
    "an untyped storage in the legacy layout, which torch writes and cannot load": "UntypedStorage' has no attribute",
    "an object of another package, which is not run": "Unsupported (global|class)|was not an allowed global",
    "an opcode that torch's own unpickler does not know": "Unsupported operand",
    "a reference to a storage with too many entries or too few, all None": r"values to unpack \(expected [45]",
    "a tensor that requires gradients and is built by _rebuild_tensor_v3, which torch writes and cannot load": (
        "a leaf Variable that requires grad is being used in an in-place operation"
    ),
    "a string of Python 2 that is not UTF-8": "UnicodeDecodeError",
}
# a tensor that cannot be built, in what is not taken; here no tensor is built that is not
OUTSIDE = "refused by torch for what is not taken here"
_A_TENSOR = b"torch._utils\n_rebuild_tensor"


def read_here(path: Path) -> tuple[str, dict[str, Bits], set[str]] | None:
    """The root that was taken, its tensors, and the names of those that are refused; None for a refused file."""
    try:
        with open_checkpoint(path) as checkpoint:
            found: dict[str, Bits] = {}
            refused = {*checkpoint.unsupported, *checkpoint.objects}
            for name, info in checkpoint.tensors.items():
                try:
                    array = checkpoint.read(name)
                except CheckpointError as error:
                    check_message(str(error), path)
                    refused.add(name)
                    continue
                found[name] = (info.dtype.name, array.shape, array.tobytes())
            return checkpoint.root, found, refused
    except CheckpointError as error:
        check_message(str(error), path)
        return None


def read_by_torch(path: Path, root: str) -> dict[object, object]:
    """The dict at `root` of what torch loads. Any error of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        item = torch.load(path, map_location="cpu", weights_only=True)
    while root:
        assert isinstance(item, Mapping)
        key = next(key for key in item if isinstance(key, str) and (root == key or root.startswith(f"{key}.")))
        item, root = item[key], root[len(key) + 1 :]
    assert isinstance(item, Mapping)
    return dict(item)


def compare(path: Path) -> str:
    """What became of a file: `refused` here, `equal` in both, or by which of `ON_PURPOSE` only torch refuses it.

    AssertionError for all else: it is read here as something else than torch does.
    """
    read = read_here(path)
    if read is None:
        return "refused"
    root, found, refused = read
    try:
        theirs = read_by_torch(path, root)
    except AssertionError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if kind := next((kind for kind, pattern in ON_PURPOSE.items() if re.search(pattern, said)), None):
            return kind
        if path.read_bytes().count(_A_TENSOR) > len({*found.values()}):
            return OUTSIDE
        raise AssertionError(f"torch refuses it: {said[:300]}; here: {sorted(found)}") from None
    tensors = {key: item for key, item in theirs.items() if isinstance(item, torch.Tensor)}
    assert all(isinstance(key, str) for key in tensors), f"keys that are no names: {list(tensors)}"
    expected = {key: bits(item) for key, item in tensors.items() if key not in refused}
    assert list(found) == list(expected), (list(found), list(expected), refused)
    for name, there in expected.items():
        assert found[name] == there, (name, found[name], there)
    return "equal"
