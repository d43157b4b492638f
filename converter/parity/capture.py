"""Captures: what a model made of some inputs, stage by stage, and how exact that is.

A capture is a safetensors file. Its tensors:

    input.images                      (B, 3, H, W) float32, normalised as the model takes them
    input.input_ids, .attention_mask  (B, T) int64
    detections.I.boxes, .scores, .labels   of image I, by falling score
    anything else                     an activation, whole, named by the official module path and what of its output

Its metadata has one entry `capture`, a JSON object that `capture.schema.json` describes: settings, captions, versions,
and per activation the relative Frobenius error of the captured model's own run in float32 (or 16 bits): the floor that
another implementation is measured by. In a compact capture activations are replaced by their probes; it proves the
same in a hundredth of the size, but cannot show where in a tensor an error is, nor be injected.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.display import file_name, plain, quoted
from converter.errors import CaptureError, DestinationError
from converter.glip.model.detection import Detections
from converter.glip.model.inputs import TEXT_MULTIPLE
from converter.parity.probes import PROJECTIONS, SAMPLES, distance, probe

Mode = Literal["propagated", "injected"]
INPUTS = ("input.images", "input.input_ids", "input.attention_mask")
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Activation:
    """One captured activation. `norm`: its Frobenius norm, known beforehand of compact ones only. `errors`: by dtype,
    the relative Frobenius error of the captured model's own run; `injected_errors`: of its own block alone."""

    name: str
    shape: tuple[int, ...]
    norm: float | None
    errors: Mapping[str, float]
    injected_errors: Mapping[str, float]

    def own(self, dtype: str, mode: Mode) -> float | None:
        """The captured model's own error; in injected mode that of the block where it is known."""
        if mode == "injected" and dtype in self.injected_errors:
            return self.injected_errors[dtype]
        return self.errors.get(dtype)

    @property
    def compact(self) -> bool:
        """Only its probes were kept."""
        return self.norm is not None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Capture:
    """An open capture. Activations stay in the file until they are read.

    `model`: the variant; `table`: the mapping table whose taps translate the names; `facts`: the metadata, whole.
    """

    path: Path
    name: str
    model: str
    table: str
    dtype: str
    facts: Mapping[str, Any] = field(repr=False)
    images: Tensor = field(repr=False)
    input_ids: Tensor = field(repr=False)
    attention_mask: Tensor = field(repr=False)
    image_sizes: tuple[tuple[int, int], ...]
    positive_map: Mapping[int, tuple[int, ...]]
    activations: Mapping[str, Activation] = field(repr=False)
    detections: tuple[Detections, ...] = field(repr=False)
    _file: Checkpoint = field(repr=False)

    @property
    def compact(self) -> bool:
        """Some of its activations are probes only."""
        return any(activation.compact for activation in self.activations.values())

    @property
    def tokens(self) -> int:
        """How many leading tokens the model computes: all up to the last that a caption attends to, rounded up."""
        attended = self.attention_mask != 0
        lengths = (attended * torch.arange(1, attended.shape[1] + 1)).amax(dim=1)
        if int(lengths.min()) == 0:
            return attended.shape[1]
        return min(attended.shape[1], -(-int(lengths.max()) // TEXT_MULTIPLE) * TEXT_MULTIPLE)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the model is called with."""
        return self.images, self.input_ids, self.attention_mask

    def read(self, name: str) -> Tensor:
        """The values of an activation in float64, or its probes."""
        return _tensor(self._file, name).double()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_capture(path: str | Path) -> Capture:
    """Open a capture. CheckpointError if the file is damaged, CaptureError if it is no sound capture."""
    path = Path(path)
    file = open_checkpoint(path)
    try:
        return _load(path, file)
    except BaseException:
        file.close()
        raise


def _load(path: Path, file: Checkpoint) -> Capture:
    facts = _facts(path, file.metadata)
    compact = facts.get("compact", {})
    errors = _errors(path, facts)
    detections = len(facts["image_sizes_hw"])
    expected = {*INPUTS, *(f"detections.{i}.{field}" for i in range(detections) for field in Detections._fields)}
    if missing := sorted(expected - set(file.tensors)):
        raise CaptureError(f"{file_name(path)}: lacks {missing[0]!r}. Capture again.")
    names = [name for name in file.tensors if not name.startswith(("input.", "detections."))]
    if not names:
        raise CaptureError(f"{file_name(path)}: holds no activation, so there is nothing to compare. Capture again.")
    if lost := sorted(set(compact) - set(names)):
        raise CaptureError(f"{file_name(path)}: describes {quoted(lost[0])}, which is not in it. Capture again.")
    activations = {
        name: Activation(
            name,
            tuple(compact[name]["shape"]) if name in compact else file.tensors[name].shape,
            compact[name]["norm"] if name in compact else None,
            {dtype: of_all[name] for dtype, of_all in errors.items() if name in of_all},
            {dtype: of_all[name] for dtype, of_all in facts.get("injected_errors", {}).items() if name in of_all},
        )
        for name in names
    }
    for name, activation in activations.items():
        kind = file.tensors[name].dtype
        if kind.kind != "float" or kind.name not in ("float64", "float32", "float16", "bfloat16"):
            raise CaptureError(f"{file_name(path)}: {quoted(name)} is {kind}, expected floating point. Capture again.")
        if activation.norm is not None and not _plausible(activation.shape, activation.norm, _tensor(file, name)):
            raise CaptureError(f"{file_name(path)}: {quoted(name)} is no probe of its shape and norm. Capture again.")
    inputs = [_tensor(file, name) for name in INPUTS]
    batch = len(facts["image_sizes_hw"])
    images, ids, mask = inputs
    if images.dim() != 4 or ids.dim() != 2 or ids.shape != mask.shape or 0 in (*images.shape, *ids.shape) or (
        len(images) != batch or len(ids) != batch or {ids.dtype, mask.dtype} != {torch.int64}
    ):  # fmt: skip
        raise CaptureError(f"{file_name(path)}: its inputs are not those of {batch} images. Capture again.")
    found = tuple(
        Detections(*(_tensor(file, f"detections.{image}.{field}") for field in Detections._fields))
        for image in range(detections)
    )
    for boxes, scores, labels in found:
        count = len(labels) if labels.dim() else -1
        if (boxes.shape, scores.shape, labels.shape) != ((count, 4), (count,), (count,)) or (
            labels.dtype != torch.int64 or not (boxes.is_floating_point() and scores.is_floating_point())
        ):
            raise CaptureError(f"{file_name(path)}: its detections are no boxes, scores and labels. Capture again.")
    return Capture(
        path=path,
        name=facts["name"],
        model=facts["model"],
        table=facts.get("table", "glip-official"),
        dtype=facts["dtype"].split()[0].rstrip(".,;"),
        facts=facts,
        images=inputs[0],
        input_ids=inputs[1],
        attention_mask=inputs[2],
        image_sizes=tuple((height, width) for height, width in facts["image_sizes_hw"]),
        positive_map={int(label): tuple(tokens) for label, tokens in facts["positive_map_label_to_token"].items()},
        activations=activations,
        detections=found,
        _file=file,
    )


def _plausible(shape: tuple[int, ...], norm: float, probes: Tensor) -> bool:
    """`probes` can be those of a tensor of this shape and norm: a norm that is too large would make any error small."""
    if tuple(probes.shape) != (min(math.prod(shape), SAMPLES + PROJECTIONS),):
        return False
    if not math.isfinite(norm):
        return False
    if math.prod(shape) <= SAMPLES + PROJECTIONS:
        return math.isclose(norm, float(probes.double().norm()), rel_tol=1e-6)
    # 64 projections estimate the norm to within some 9 %
    estimated = float(probes[SAMPLES:].double().square().mean().sqrt())
    return estimated / 2 <= norm <= estimated * 2


def _facts(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if "capture" not in metadata:
        raise CaptureError(
            f"{file_name(path)}: is no capture: its metadata has no 'capture'. `converter capture` and "
            "scripts/capture_official.py write them."
        )
    try:
        facts = json.loads(metadata["capture"], parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{file_name(path)}: 'capture' is no JSON ({plain(str(error))}). Capture again.") from None
    return _checked(path, facts)


def _checked(path: Path, facts: Any) -> dict[str, Any]:
    problem = next(iter(sorted(_schema().iter_errors(facts), key=lambda error: list(map(str, error.path)))), None)
    if problem is not None:
        place = plain("/".join(map(str, problem.absolute_path)))
        raise CaptureError(f"{file_name(path)}: 'capture', at {place or 'its top'}: {plain(problem.message, 300)}.")
    return dict(facts)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


@cache
def _schema() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(json.loads((_FOLDER / "capture.schema.json").read_text(encoding="utf-8")))


def _errors(path: Path, facts: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    """The captured model's own errors: in the metadata, or in a JSON file beside, as early captures have it."""
    if "errors" in facts:
        return dict(facts["errors"])
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        table = json.loads(beside.read_text(encoding="utf-8"))["float32_error_against_float64"]
        errors = {"float32": {str(name): float(entry["rel_fro"]) for name, entry in table.items()}}
        if not all(0 <= error < math.inf for error in errors["float32"].values()):
            raise ValueError("an error is no number from 0 on")
        return errors
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CaptureError(
            f"{file_name(beside)}: has no 'float32_error_against_float64' that can be read ({plain(str(error))}). "
            "Move it away, or capture again."
        ) from None


def _tensor(file: Checkpoint, name: str) -> Tensor:
    values = torch.from_numpy(file.read(name))
    return values.view(torch.bfloat16) if file.tensors[name].dtype.name == "bfloat16" else values


def error_of_probes(activation: Activation, probes: Tensor, found: Tensor) -> float:
    """Relative Frobenius error of `found` against an activation of which `probes` were kept."""
    return distance(probe(activation.name, found), probes) / (activation.norm or 1.0)


def write_capture(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, compact: bool) -> None:
    """Write a capture, whole or not at all; equal content gives equal bytes.

    `tensors` as the format names them; `facts` what `capture.schema.json` asks for, `compact` aside.
    """
    kept: dict[str, Tensor] = {}
    probes: dict[str, dict[str, Any]] = {}
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        if compact and not name.startswith(("input.", "detections.")):
            probes[name] = {"shape": list(values.shape), "norm": float(values.double().norm())}
            values = probe(name, values)
        kept[name] = values
    content = _checked(path, {**facts, **({"compact": probes} if compact else {})})
    # one entry: the order of several is not kept by safetensors
    metadata = {"capture": json.dumps(content, sort_keys=True, allow_nan=False)}
    write_whole(path, lambda partial: save_file(kept, partial, metadata))


def file_sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file under another name, and give it its name once it is on the disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or plain(str(error))
        raise DestinationError(f"{file_name(path)} cannot be written: {reason}; choose another place") from error
    finally:
        partial.unlink(missing_ok=True)
