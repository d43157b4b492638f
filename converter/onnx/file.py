"""ONNX files: how they are written, and what one says of itself. Nothing in one is run here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.hashes import file_sha256
from converter.checkpoint.strict_json import parse_json, read_json
from converter.display import file_name, plain, quoted
from converter.errors import ModelError, NotACheckpointError, damaged
from converter.writing.destination import writing
from converter.writing.ledger import to_json
from converter.writing.staging import Staging, write_at

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.mapping.spec import Config

LARGEST = 2**31 - 1  # bytes of a protobuf message, which a file without external data is
KEY = "converter"  # of what the file says of itself
_ALIGNED = 4096  # where external data begins, so that it can be mapped
_ROOM = 64 << 20  # for all that is no weight


@dataclass(frozen=True, slots=True)
class About:
    """What an exported file says of itself.

    converter   the version that wrote it, `torch` likewise
    model       the spec of the model, `config` its sizes
    dtype       of its weights and of what it computes
    opset       of ONNX
    size        (height, width) of its pictures, None for any whose sides are multiples of `multiple`
    tokens      of its captions, None for any number
    table       whose taps its outputs are; `outputs`: of each the source-side name of the activation
    weights     hash of all tensors that it was made of
    state_dicts what these are known by to captures, where it is known
    unused      weights that are not in it, since no output depends on them
    asked       inputs that only what is found depends on, `found`: outputs of what is found; none without detection
    """

    converter: str
    torch: str
    model: str
    config: Config
    dtype: str
    opset: int
    size: tuple[int, int] | None
    multiple: int
    tokens: int | None
    table: str
    outputs: Mapping[str, str]
    weights: str
    state_dicts: tuple[Mapping[str, str], ...]
    unused: tuple[str, ...]
    asked: tuple[str, ...]
    found: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A file that was exported here, as it says. `files`: its own name and those of its data, with their SHA-256."""

    path: Path
    about: About
    files: Mapping[str, str]

    @property
    def paths(self) -> list[Path]:
        """Of all of it."""
        return [self.path.with_name(name) for name in self.files]


def data_name(path: Path) -> str:
    """Where the weights of a file are that does not hold them itself."""
    return f"{path.name}.data"


def needs_external(model: ir.Model) -> bool:
    """Whether the weights are too many for one file."""
    sizes = (value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    return sum(sizes) > LARGEST - _ROOM


def write_onnx(
    model: ir.Model,
    about: About,
    path: Path,
    *,
    external: bool,
    force: bool,
    on_bytes: Callable[[int], object] = lambda count: None,
    on_done: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Write a graph, whole or not at all, and return what was written; `external`: its weights in a file of their own.

    DestinationError.
    """
    import onnx_ir as ir

    model.metadata_props[KEY] = to_json(asdict(about)).decode()
    model.producer_name, model.producer_version = "converter", about.converter
    with Staging(path, force=force, is_folder=False) as staging, writing(path):
        if external:
            _write_data(model, data_name(path), staging, on_bytes)
        content = ir.to_proto(model).SerializeToString()
        write_at(staging.create(path.name, len(content)), content, 0)
        on_bytes(len(content))
        staging.commit(on_done)
        return [path.with_name(name) for name in staging.names]


def _write_data(model: ir.Model, name: str, staging: Staging, on_bytes: Callable[[int], object]) -> None:
    """The numbers of all initializers, of which the graph then says where they are."""
    import onnx_ir as ir

    values = [value for value in model.graph.initializers.values() if value.const_value is not None]
    places, end = [], 0
    for value in values:
        assert value.const_value is not None
        places.append(end)
        end += -(-value.const_value.nbytes // _ALIGNED) * _ALIGNED
    staging.require_space(end)
    descriptor = staging.create(name, end)
    for value, place in zip(values, places, strict=True):
        tensor = value.const_value
        assert tensor is not None
        write_at(descriptor, tensor.tobytes(), place)
        on_bytes(tensor.nbytes)
        value.const_value = ir.ExternalTensor(
            name, place, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=str(value.name)
        )


def read_onnx(path: Path) -> OnnxFile:
    """What a file says of itself. NotACheckpointError, CorruptCheckpointError or ModelError if it is no such file."""
    import onnx
    from google.protobuf.message import DecodeError

    where = file_name(path)
    try:
        if not path.is_file():  # a pipe would be waited for, a device read without end
            raise NotACheckpointError(f"{where}: is not a file. Give the .onnx file itself.")
        if path.stat().st_size > LARGEST:
            raise NotACheckpointError(f"{where}: has more than 2 GiB, as no ONNX file has. Give the .onnx file itself.")
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise NotACheckpointError(f"{where}: cannot be read: {error.strerror}. Check the path.") from None
    except DecodeError:
        raise NotACheckpointError(f"{where}: is not an ONNX file, or ends too early. Export it again.") from None
    stated = {entry.key: entry.value for entry in model.metadata_props}
    if KEY not in stated:
        raise ModelError(
            f"{where}: does not say what it is; expected a file that `converter export` wrote. What another tool "
            "exported is compared by its recorded outputs: converter compare."
        )
    about = _about(stated[KEY], where)
    if model.graph.sparse_initializer or model.functions:
        raise ModelError(f"{where}: has sparse tensors or functions, which `converter export` does not write.")
    data = {_checked(path, entries) for entries in _external(model)}
    return OnnxFile(path, about, {file.name: file_sha256(file) for file in (path, *sorted(data))})


def _about(text: str, where: str) -> About:
    import jsonschema

    try:
        content = parse_json(text)
        schema = read_json(Path(__file__).with_name("about.schema.json"))
        if error := next(iter(jsonschema.Draft202012Validator(schema).iter_errors(content)), None):
            raise ValueError(error.message)
    except ValueError as error:
        raise ModelError(
            f"{where}: what it says of itself is not what this version of `converter export` writes: "
            f"{plain(str(error), 300)}. Export it again."
        ) from None
    lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
    return About(**{**content, **lists})


def _external(model: Any) -> list[dict[str, str]]:
    """Of each tensor whose numbers are in another file, what the graph says of that."""
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    tensors = filter(uses_external_data, _get_all_tensors(model))
    return [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]


def _checked(path: Path, entries: Mapping[str, str]) -> Path:
    """The file of external data: a plain name beside the graph, as long as it must be."""
    location = entries.get("location", "")
    if not isinstance(location, str) or not re.fullmatch(r"[^/\\\0]+\.onnx\.data", location):
        said = f"keeps weights in {quoted(str(location))}, which is no file of weights beside it"
        raise damaged(file_name(path), said)
    file = path.with_name(location)
    try:
        needed = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if not file.is_file() or os.stat(file).st_size < needed or needed < 0:
            raise NotACheckpointError(
                f"{file_name(path)}: lacks {quoted(location)}, which holds its weights, or that ends too early. Keep "
                "both in one folder, under their names."
            )
    except ValueError:
        raise damaged(file_name(path), f"does not say by numbers where its weights are in {quoted(location)}") from None
    return file
