"""Loading: safetensors files into a model, one tensor at a time, every byte accounted for.

Format: https://github.com/huggingface/safetensors#format. 8 bytes header length (little-endian), a JSON header
{name: {dtype, shape, data_offsets}, "__metadata__": {str: str}}, then the data, row-major and without holes.
The files are read, not mapped: a mapped file that shrinks kills the process instead of raising an error.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import stat
import sys
import warnings
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from converter.errors import ModelError
from converter.glip.model.config import GLIPConfig

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
HEADER_LIMIT = 100_000_000  # bytes, from the format's reference implementation
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: `begin` in bytes from the start of the file, row-major, little-endian."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint that was opened: its config, and every tensor by name. No tensor has been read."""

    path: Path
    config: GLIPConfig
    tensors: dict[str, StoredTensor]


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """Read config and headers of a file or folder. ModelError if they are missing, damaged or inconsistent."""
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, returns False for a path that is too long
        config = _config(_json_file(path / CONFIG), path / CONFIG)
        return _plausible(Weights(path, config, _folder(path)))
    tensors, metadata = read_header(path)
    if "config" not in metadata:
        raise ModelError(
            f"{path}: the header's metadata has no 'config', so the model's sizes are not known. Write the file "
            "with convert, or put a config.json beside it and load the folder."
        )
    return _plausible(Weights(path, _config(_json(metadata["config"], f"{path}: metadata 'config'"), path), tensors))


def _plausible(weights: Weights) -> Weights:
    """Refuse a config of more layers than there are tensors, before anything of that size is built."""
    config, tensors = weights.config, len(weights.tensors)
    layers = sum(config.depths) + config.text_layers + config.head_blocks
    if layers > tensors:
        raise ModelError(f"{weights.path}: the configuration has {layers} layers, but there are {tensors} tensors.")
    return weights


def check(model: nn.Module, weights: Weights) -> None:
    """ModelError listing all names missing and unexpected, all shapes and dtypes that differ.

    The model may be on the meta device, so that sizes are compared with the file before memory is allocated for them.
    """
    problems = _differences(dict(model.named_parameters()), weights.tensors)
    if problems:
        raise ModelError("\n".join([f"{weights.path}: does not fit the model.", *(f"  - {p}" for p in problems)]))


def load(model: nn.Module, weights: Weights) -> None:
    """Fill every parameter of `model` (float32, CPU) from the checkpoint.

    ModelError as `check` raises, with the model untouched, or if a file cannot be read. Parameters are NaN until they
    are read, so that one left out cannot pass for a weight. NaN in the checkpoint itself is loaded, with a warning.
    """
    if sys.byteorder != "little":
        raise ModelError("safetensors files are little-endian, this machine is not. Load them on one that is.")
    parameters = dict(model.named_parameters())
    check(model, weights)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(math.nan)
        in_file_order = sorted(parameters, key=lambda n: (weights.tensors[n].file, weights.tensors[n].begin))
        handle: FileIO | None = None
        opened: Path | None = None
        try:
            for name in in_file_order:
                stored = weights.tensors[name]
                if handle is None or stored.file != opened:
                    if handle is not None:
                        handle.close()
                    handle, opened = stored.file.open("rb", buffering=0), stored.file
                _read_into(parameters[name], handle, stored, name)
        except OSError as error:
            raise ModelError(f"{opened or weights.path}: cannot be read: {error.strerror or error}.") from error
        finally:
            if handle is not None:
                handle.close()
        spoiled = [name for name, parameter in parameters.items() if parameter.isnan().any()]
    if spoiled:
        warnings.warn(f"{weights.path}: weights that are NaN in the file: {', '.join(spoiled)}.", stacklevel=3)


def _differences(parameters: dict[str, nn.Parameter], tensors: dict[str, StoredTensor]) -> list[str]:
    problems = [f"missing: {n} {tuple(p.shape)}" for n, p in parameters.items() if n not in tensors]
    problems += [f"unexpected: {n} {t.shape}" for n, t in tensors.items() if n not in parameters]
    for name, parameter in parameters.items():
        stored = tensors.get(name)
        if stored is None:
            continue
        if stored.shape != tuple(parameter.shape):
            problems.append(f"shape: {name} is {stored.shape}, expected {tuple(parameter.shape)}")
        if stored.dtype not in FLOATS:
            problems.append(f"dtype: {name} is {stored.dtype}, expected one of {', '.join(FLOATS)}")
    return problems


def _read_into(parameter: Tensor, handle: FileIO, stored: StoredTensor, name: str) -> None:
    """Read one tensor; float32 goes straight into the parameter's memory, other formats are cast on the way."""
    dtype = FLOATS[stored.dtype]
    target = parameter if dtype == parameter.dtype else torch.empty(stored.shape, dtype=dtype)
    handle.seek(stored.begin)
    size = target.numel() * target.element_size()
    buffer = memoryview((ctypes.c_char * size).from_address(target.data_ptr())).cast("B")
    done = 0
    while done < size:
        count = handle.readinto(buffer[done:])
        if not count:
            raise ModelError(f"{stored.file}: ends inside {name!r}; the file changed while it was read.")
        done += count
    if target is not parameter:
        parameter.copy_(target)


def _open(path: Path) -> BufferedReader:
    """Open a regular file. ModelError for anything else, without blocking on a pipe."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    handle = open(path, "rb", opener=opener)  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
        handle.close()
        raise ModelError(f"{path}: is not a regular file.")
    return handle


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and metadata of one safetensors file. ModelError unless header and data fit together exactly."""
    try:
        with _open(path) as handle:
            file_size = os.fstat(handle.fileno()).st_size
            prefix = handle.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(HEADER_LIMIT, file_size - 8) or length < 2:
                raise ModelError(
                    f"{path}: not a safetensors file, or cut off: {file_size} bytes with a header said to be "
                    f"{length} bytes long."
                )
            raw = handle.read(length)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ModelError(f"{path}: not a safetensors file: the header is not UTF-8.") from None
    header = _json(text, f"{path}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path}: header: '__metadata__' is not an object of strings.")

    data_start = 8 + length
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(entry, f"{path}: header: {name!r}")
        spans.append((begin, end, name))
        tensors[name] = StoredTensor(path, dtype, shape, data_start + begin)
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise ModelError(f"{path}: header: {name!r} begins at byte {begin}, expected {position}; it {what}.")
        position = end
    if data_start + position != file_size:
        raise ModelError(
            f"{path}: {file_size} bytes, expected {data_start + position} from its header; "
            "the file is cut off or has bytes that belong to no tensor."
        )
    return tensors, metadata


def _entry(entry: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape and byte offsets of one tensor; ModelError unless they agree."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{where}: expected an object of dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ModelError(f"{where}: dtype {dtype!r}, expected one of {', '.join(BITS)}.")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ModelError(f"{where}: shape {shape!r}, offsets {offsets!r}, expected lists of non-negative integers.")
    size = math.prod(shape) * BITS[dtype] // 8
    if offsets[1] - offsets[0] != size:
        raise ModelError(f"{where}: {dtype} {shape} takes {size} bytes, but the offsets are {offsets}.")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _folder(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder's single file, or of all its shards as the index lists them."""
    single, index = path / SINGLE, path / INDEX
    if single.exists() == index.exists():
        found = "both" if single.exists() else "neither"
        raise ModelError(f"{path}: found {found} of {SINGLE} and {INDEX}, expected one of them.")
    if single.exists():
        return read_header(single)[0]
    weight_map = _json_file(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{index}: expected 'weight_map', an object of tensor names and file names.")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(f"{index}: found the file {shard!r}, expected the bare name of a .safetensors file.")
        stored = read_header(path / shard)[0]
        listed = {name for name, file in weight_map.items() if file == shard}
        if listed != stored.keys():
            names = ", ".join(sorted(listed ^ stored.keys())[:5])
            raise ModelError(f"{index}: does not agree with {shard} on: {names}.")
        tensors.update(stored)
    return tensors


def _config(document: dict[str, Any], where: Path) -> GLIPConfig:
    if document.get("model") != "glip" or not isinstance(document.get("config"), dict):
        raise ModelError(
            f"{where}: expected the configuration of this project's GLIP, {{'model': 'glip', 'variant': ..., "
            f"'config': {{...}}}}, found the keys {sorted(document)}."
        )
    if part := document.get("part"):
        raise ModelError(
            f"{where}: holds the {part} of GLIP alone. converter.glip.get_model loads the image encoder; a whole GLIP "
            "comes from a whole checkpoint."
        )
    try:
        return GLIPConfig.from_dict(document["config"])
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None


def _json_file(path: Path) -> dict[str, Any]:
    try:
        with _open(path) as handle:
            text = handle.read(HEADER_LIMIT).decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: cannot be read: {reason}.") from error
    return _json(text, str(path))


def _json(text: str, where: str) -> dict[str, Any]:
    """A JSON object without duplicate keys, which other readers would resolve in different ways."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key!r} appears twice")
            found[key] = value
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{where}: expected a JSON object, found {type(value).__name__}.")
    return value
