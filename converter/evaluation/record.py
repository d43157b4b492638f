"""`evaluation.json`: what weights were measured to find on data sets, and all that the figures depend on.

`evaluation.json` in a folder of weights, `NAME.evaluation.json` beside a single file. It holds a list: one evaluation
for each data set, protocol, dtype and device; one of some pictures only beside that of all. Each names the weights by
the hash of all their tensors, as a ledger does. `evaluation.schema.json` describes it. Like a certificate it is
evidence, not a signature. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from converter.checkpoint.strict_json import parse_json, read_json
from converter.display import counted, file_name, plain, quoted
from converter.errors import CaptureError
from converter.evaluation.consistency import contradictions
from converter.parity.consistency import evaluation_key
from converter.writing.ledger import to_json as json_bytes
from converter.writing.staging import write_whole

FORMAT = 1
MARKS = 1_000_000  # of its JSON: some 50,000 for LVIS, with 1,203 classes and the tokens of every caption
NAME = "evaluation.json"
_AGAIN = "Get it again, or evaluate again"


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """One model on one data set. `content`: as it is in the file; `evaluation_of` makes it."""

    content: Mapping[str, Any] = field(repr=False)

    @property
    def weights(self) -> str:
        """The hash of all tensors of what was evaluated."""
        return str(self.content["weights"]["sha256"])

    @property
    def dataset(self) -> str:
        """What the data set is called, by whoever evaluated."""
        return str(self.content["dataset"]["name"])

    @property
    def annotations(self) -> str:
        """The hash of the file that says what is to be found."""
        return str(self.content["dataset"]["annotations_sha256"])

    @property
    def pictures(self) -> int:
        """How many, with those that were skipped."""
        return int(self.content["dataset"]["pictures"])

    @property
    def is_limited(self) -> bool:
        """Whether these are the first pictures of the data set only."""
        return bool(self.content["dataset"]["limited"])

    @property
    def skipped(self) -> Sequence[Mapping[str, Any]]:
        """Pictures that could not be used: `picture`, `file_name`, `reason`."""
        skipped: Sequence[Mapping[str, Any]] = self.content["dataset"]["skipped"]
        return skipped

    @property
    def is_whole(self) -> bool:
        """Whether every picture of the data set was seen: a figure of anything less is none of the data set."""
        return not self.is_limited and not self.skipped

    @property
    def protocol(self) -> str:
        """The name of the way in which the model was asked."""
        return str(self.content["protocol"]["name"])

    @property
    def device(self) -> str:
        """`cpu`, `cuda:0`."""
        return str(self.content["run"]["device"])

    @property
    def dtype(self) -> str:
        """`float32`."""
        return str(self.content["run"]["dtype"])

    @property
    def style(self) -> str:
        """Of the metric: `coco`, `lvis` or `lvis-fixed`."""
        return str(self.content["metric"]["style"])

    @property
    def figures(self) -> Mapping[str, float | None]:
        """By name, from 0 to 1; None where nothing of it is annotated."""
        figures: Mapping[str, float | None] = self.content["figures"]
        return figures

    @property
    def key(self) -> tuple[str | bool, ...]:
        """No two evaluations in one file have the same."""
        return *evaluation_key(self.entry), self.is_limited

    @property
    def sha256(self) -> str:
        """Of its content, however the file writes it."""
        return hashlib.sha256(json_bytes(self.content, indent=None)).hexdigest()

    @property
    def entry(self) -> dict[str, Any]:
        """As a certificate and `--json` name it."""
        return {
            "dataset": self.dataset,
            "annotations": self.annotations,
            "pictures": self.pictures,
            "limited": self.is_limited,
            "skipped": len(self.skipped),
            "protocol": self.protocol,
            "device": self.device,
            "dtype": self.dtype,
            "figures": dict(self.figures),
            "weights": self.weights,
            "sha256": self.sha256,
        }

    def __str__(self) -> str:
        """One line: `coco, 5,000 pictures, protocol official, float32 on cpu: AP 46.58 %`."""
        average = self.figures["AP"]
        parts = [plain(self.dataset), f"{self.pictures:,} pictures{' only' * self.is_limited}"]
        parts += [f"{len(self.skipped):,} skipped"] if self.skipped else []
        parts += [f"protocol {plain(self.protocol)}", f"{self.dtype} on {self.device}"]
        return f"{', '.join(parts)}: AP {'unknown' if average is None else f'{100 * average:.2f} %'}"


def evaluation_path(weights: Path) -> Path:
    """Where the evaluations of a file or folder are."""
    return weights / NAME if weights.is_dir() else weights.with_suffix(f".{NAME}")


def evaluation_of(content: Mapping[str, Any], where: str = "this evaluation") -> Evaluation:
    """An evaluation that was made now. CaptureError unless it is one and agrees with itself; `where` names it."""
    (evaluation,) = _evaluations({"format": FORMAT, "evaluations": [content]}, where)
    return evaluation


def read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    """All that the file holds, in the order of their keys. CaptureError unless each is one and agrees with itself."""
    try:
        content = read_json(path, MARKS)
    except OSError as error:
        raise CaptureError(f"{file_name(path)}: cannot be read: {error.strerror}. Check the path.") from None
    except ValueError as error:
        raise CaptureError(f"{file_name(path)}: is not the JSON of an evaluation: {error}. {_AGAIN}.") from None
    return _evaluations(content, file_name(path))


def evaluations_beside(weights: Path, sha256: str | None = None) -> tuple[Evaluation, ...]:
    """Those beside a file or folder of weights; none where there is no such file.

    `sha256`: the hash of all its tensors. CaptureError as `read_evaluations`, and for evaluations of other weights.
    """
    path = evaluation_path(weights)
    evaluations = read_evaluations(path) if path.exists() else ()
    if sha256 is not None:
        check_weights(evaluations, sha256, path)
    return evaluations


def check_weights(evaluations: Iterable[Evaluation], sha256: str, path: Path) -> None:
    """CaptureError, naming both, unless all are of the weights with that hash of all tensors. `path`: their file."""
    for evaluation in evaluations:
        if evaluation.weights != sha256:
            raise CaptureError(
                f"{file_name(path)}: is of other weights: those that were evaluated on {plain(evaluation.dataset)} "
                f"have sha256 {evaluation.weights}, these {sha256}. Move it elsewhere, and evaluate these."
            )


def to_json(evaluations: Iterable[Evaluation]) -> bytes:
    """The file: the same bytes for the same evaluations, in whatever order they come."""
    ordered = sorted(evaluations, key=lambda evaluation: evaluation.key)
    return json_bytes({"format": FORMAT, "evaluations": [evaluation.content for evaluation in ordered]})


def add_evaluation(
    path: Path, evaluation: Evaluation, *, on_done: Callable[[], object] = lambda: None
) -> tuple[Evaluation, ...]:
    """Write the file anew with one more evaluation, whole or not at all; all that it holds then.

    It replaces the one with its key. That of a whole data set also replaces that of some pictures, and is never
    replaced by it. CaptureError if what is there is no such file or of other weights, or would be too large;
    DestinationError.
    """
    there = read_evaluations(path) if path.exists() else ()
    check_weights(there, evaluation.weights, path)
    replaced = {evaluation.key, (*evaluation.key[:-1], True)}
    kept = [other for other in there if other.key not in replaced]
    data = to_json([*kept, evaluation])
    try:
        everything = _evaluations(parse_json(data, MARKS), file_name(path))  # as whoever gets it reads it
    except ValueError as error:
        raise CaptureError(
            f"{file_name(path)}: would have {error}. Move it elsewhere, and evaluate into a new one."
        ) from None
    write_whole(path, data, on_done=on_done)
    return everything


def _evaluations(content: Any, where: str) -> tuple[Evaluation, ...]:
    if problem := _problem(content):
        raise CaptureError(f"{where}: is no evaluation, {problem}. {_AGAIN}.")
    found = tuple(map(Evaluation, content["evaluations"]))
    problems = [f"{plain(each.dataset)}: {line}" for each in found for line in contradictions(each.content)]
    problems += [f"{plain(each.dataset)}: is there twice" for each in _repeated(found)]
    if problems:
        raise CaptureError(f"{where}: contradicts itself: {problems[0]}. {_AGAIN}.", problems[1:21])
    if others := {each.weights for each in found[1:]} - {found[0].weights}:
        raise CaptureError(
            f"{where}: is of {counted(len(others) + 1, 'model')}, with sha256 {found[0].weights} and {min(others)}. "
            "Evaluate each into a file of its own."
        )
    return tuple(sorted(found, key=lambda each: each.key))


def _repeated(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    first = {each.key: each for each in reversed(evaluations)}
    return [each for each in evaluations if first[each.key] is not each]


def _problem(content: Any) -> str | None:
    """The first place where it breaks the schema, and why; None if it is valid."""
    error = next(iter(_validator().iter_errors(content)), None)
    if error is None:
        return None
    place = "/".join(map(str, error.absolute_path))
    return f"at {quoted(place) if place else 'its top'}: {plain(error.message, 300)}"


@cache
def _validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(read_json(Path(__file__).with_name("evaluation.schema.json")))
