"""Captures: what a model made of some inputs, stage by stage, and how exact that is.

A capture is a safetensors file. Its tensors:

    input.NAME                            what the model was called with, by the name of the argument
    detections.I.boxes, .scores, .labels  of image I, by falling score
    anything else                         an activation, whole, named by its module in the captured model and its
                                          place in that module's output

Its metadata has one entry `capture`, a JSON object that `capture.schema.json` describes: settings, captions, versions,
and per activation the relative Frobenius error of the captured model's own run in float32 (or 16 bits): the floor that
another implementation is measured by. In a compact capture activations are replaced by their probes; it proves the
same in a hundredth of the size, but cannot show where in a tensor an error is, nor be injected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from converter.checkpoint import DTYPES, Checkpoint, open_checkpoint
from converter.checkpoint.source import Closing
from converter.checkpoint.strict_json import parse_json, read_json
from converter.display import file_name, plain, quoted
from converter.errors import CaptureError
from converter.parity.probes import PROJECTIONS, SAMPLES, distance, probe
from converter.parity.schemas import problem_of
from converter.planning import plan as planned
from converter.writing.destination import writing
from converter.writing.shards import lay_out
from converter.writing.staging import Staging, write_at
from converter.writing.transfer import raw_bytes

Mode = Literal["propagated", "injected"]
INPUT, DETECTIONS = "input.", "detections."  # how the names of these begin


class Detections(NamedTuple):
    """Objects of one image by falling score.

    boxes: (N, 4), pixels, corners x1 y1 x2 y2; scores: (N,), floating point; labels: (N,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


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
class Capture(Closing):
    """An open capture. Activations stay in the file until they are read.

    `model`: the variant; `table`: the mapping table whose taps translate the names, if the capture says which;
    `inputs`: what the model was called with; `facts`: the metadata, whole.
    """

    path: Path
    name: str
    model: str
    table: str | None
    dtype: str
    facts: Mapping[str, Any] = field(repr=False)
    inputs: Mapping[str, Tensor] = field(repr=False)
    activations: Mapping[str, Activation] = field(repr=False)
    detections: tuple[Detections, ...] = field(repr=False)
    _file: Checkpoint = field(repr=False)

    @property
    def compact(self) -> bool:
        """Some of its activations are probes only."""
        return any(activation.compact for activation in self.activations.values())

    def read(self, name: str) -> Tensor:
        """The values of an activation in float64, or its probes."""
        return _tensor(self._file, name).double()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def load_capture(path: str | Path) -> Capture:
    """Open a capture. CheckpointError if the file is damaged, CaptureError if it is not a sound capture."""
    path = Path(path)
    file = open_checkpoint(path)
    try:
        return _load(path, file)
    except BaseException:
        file.close()
        raise


def _load(path: Path, file: Checkpoint) -> Capture:
    facts = _facts(path, file.metadata)
    return Capture(
        path=path,
        name=facts["name"],
        model=facts["model"],
        table=facts.get("table"),
        dtype=facts["dtype"].split()[0].rstrip(".,;"),
        facts=facts,
        inputs={name.removeprefix(INPUT): _tensor(file, name) for name in file.tensors if name.startswith(INPUT)},
        activations=_activations(path, file, facts),
        detections=tuple(_detections(path, file)),
        _file=file,
    )


def _activations(path: Path, file: Checkpoint, facts: Mapping[str, Any]) -> dict[str, Activation]:
    names = [name for name in file.tensors if not name.startswith((INPUT, DETECTIONS))]
    compact = facts.get("compact", {})
    if not names:
        raise CaptureError(f"{file_name(path)}: holds no activation, so there is nothing to compare. Capture again.")
    if lost := sorted(set(compact) - set(names)):
        raise CaptureError(f"{file_name(path)}: describes {quoted(lost[0])}, which is not in it. Capture again.")
    errors, injected = _errors(path, facts), facts.get("injected_errors", {})
    activations = {}
    for name in names:
        kind = file.tensors[name].dtype
        if kind.kind != "float" or kind.name not in ("float64", "float32", "float16", "bfloat16"):
            raise CaptureError(f"{file_name(path)}: {quoted(name)} is {kind}, expected floating point. Capture again.")
        shape = tuple(compact[name]["shape"]) if name in compact else file.tensors[name].shape
        norm = compact[name]["norm"] if name in compact else None
        if norm is not None and not _plausible(shape, norm, _tensor(file, name)):
            raise CaptureError(
                f"{file_name(path)}: {quoted(name)} is not a probe of its shape and norm. Capture again."
            )
        activations[name] = Activation(name, shape, norm, _of(name, errors), _of(name, injected))
    return activations


def _of(name: str, errors: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """By dtype, the errors of one activation."""
    return {dtype: of_all[name] for dtype, of_all in errors.items() if name in of_all}


def _detections(path: Path, file: Checkpoint) -> Iterable[Detections]:
    """Of every image, from 0 on."""
    there = [name for name in file.tensors if name.startswith(DETECTIONS)]
    images = len({name.split(".")[1] for name in there})
    expected = {f"{DETECTIONS}{image}.{part}" for image in range(images) for part in Detections._fields}
    if missing := sorted(expected - set(there)):
        raise CaptureError(f"{file_name(path)}: lacks {missing[0]!r}. Capture again.")
    for image in range(images):
        parts = [_tensor(file, f"{DETECTIONS}{image}.{part}") for part in Detections._fields]
        boxes, scores, labels = parts
        count = len(labels) if labels.dim() else -1
        if (boxes.shape, scores.shape, labels.shape) != ((count, 4), (count,), (count,)) or (
            labels.dtype != torch.int64 or not (boxes.is_floating_point() and scores.is_floating_point())
        ):
            raise CaptureError(f"{file_name(path)}: its detections are not boxes, scores and labels. Capture again.")
        yield Detections(*parts)


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
            f"{file_name(path)}: is not a capture: its metadata has no 'capture'. `converter capture` and "
            "scripts/capture_official.py write them."
        )
    try:
        return _checked(path, parse_json(metadata["capture"]))
    except ValueError as error:
        raise CaptureError(f"{file_name(path)}: 'capture' is not JSON ({error}). Capture again.") from None


def _checked(path: Path, facts: Any) -> dict[str, Any]:
    if problem := problem_of(facts, "capture"):
        raise CaptureError(f"{file_name(path)}: 'capture', {problem}.")
    return dict(facts)


def _errors(path: Path, facts: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    """The captured model's own errors: in the metadata, or in a JSON file beside, as early captures have it."""
    if "errors" in facts:
        return dict(facts["errors"])
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        table = read_json(beside)["float32_error_against_float64"]
        errors = {"float32": {str(name): float(entry["rel_fro"]) for name, entry in table.items()}}
        if not all(0 <= error < math.inf for error in errors["float32"].values()):
            raise ValueError("an error is not a number from 0 on")
        return errors
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
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


def write_capture(
    path: Path,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    *,
    compact: bool,
    force: bool = True,
    on_done: Callable[[], object] = lambda: None,
) -> None:
    """Write a capture, whole or not at all; equal content gives equal bytes.

    `tensors` as the format names them; `facts` what `capture.schema.json` asks for, `compact` aside. `force`: replace
    what is there. `on_done` is called once it is there, before anything else can fail. Raises DestinationError.
    """
    kept: dict[str, Tensor] = {}
    probes: dict[str, dict[str, Any]] = {}
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        if compact and not name.startswith((INPUT, DETECTIONS)):
            probes[name] = {"shape": list(values.shape), "norm": float(values.double().norm())}
            values = probe(name, values)
        kept[name] = values
    content = _checked(path, {**facts, **({"compact": probes} if compact else {})})
    # one entry: the order of several is not kept by safetensors
    metadata = {"capture": json.dumps(content, sort_keys=True, allow_nan=False)}
    (layout,) = lay_out([_described(name, values) for name, values in kept.items()], path.name)
    header = layout.header(metadata)
    with Staging(path, force=force, is_folder=False) as staging, writing(path):
        descriptor = staging.create(path.name, len(header) + layout.size)
        write_at(descriptor, header, 0)
        for name, offset in layout.offsets.items():
            write_at(descriptor, raw_bytes(_carried(kept[name])), len(header) + offset)
        staging.commit(on_done)


def _described(name: str, values: Tensor) -> planned.Tensor:
    return planned.Tensor(name, tuple(values.shape), DTYPES[str(values.dtype).removeprefix("torch.")])


def _carried(values: Tensor) -> NDArray[Any]:
    """As `_tensor` reads it: numpy has no bfloat16."""
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
