"""A run of `converter evaluate`: data sets, the models that are asked about them, and what it comes to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.cli.evaluate_told import tell
from converter.cli.families import family_of_weights, load_subject, open_weights
from converter.cli.output import done_with, note, progress, told
from converter.cli.questions import questions
from converter.cli.sources import locate
from converter.display import file_name
from converter.errors import ModelError
from converter.evaluation.answer import JOURNAL, Subject, answer
from converter.evaluation.metrics import evaluate
from converter.evaluation.outcome import Outcome, worst_pictures
from converter.evaluation.paired import Paired, paired
from converter.evaluation.predictions import read_predictions
from converter.evaluation.question import Question
from converter.evaluation.ranks import Ranks, ranks
from converter.evaluation.record import add_evaluation, evaluation_path
from converter.evaluation.run import Runner
from converter.parity.family import Asked, Family, Task
from converter.writing.records import read_record
from converter.writing.results import ResultFolder

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.cli.evaluate import Options

AGAINST = "against"  # the folder, in that of the first model, of the second one


def evaluate_and_tell(options: Options) -> int:
    """All that the command does, in each of its processes; its exit code. ModelError, HubError, DestinationError."""
    with ranks() as here, ExitStack() as opened:
        if not here.is_first:
            told().is_quiet = True
        model = opened.enter_context(_opened(options.model_source, options, here))
        other = None if options.against is None else opened.enter_context(_opened(options.against, options, here))
        asked = questions(options, next((s.family for s in (model, other) if isinstance(s, Model)), None))
        results = []
        for question in asked:
            folder = options.out if len(asked) == 1 or options.out is None else options.out / question.folder
            if folder is not None and here.is_first:
                folder.parent.mkdir(exist_ok=True)
            if (result := _answered(question, model, other, folder, here)) is not None:
                results.append(result)
        if not here.is_first:
            return 0
        tell(results, options, None if other is None else other.name)
        return _exit_code(results)


def _exit_code(results: Sequence[tuple[Outcome, Paired | None]]) -> int:
    if any(outcome.skipped for outcome, _ in results):
        return ModelError.exit_code
    return int(any(pair is not None and pair.verdict not in ("identical", "equal") for _, pair in results))


def _answered(
    question: Question, model: Side, other: Side | None, folder: Path | None, here: Ranks
) -> tuple[Outcome, Paired | None] | None:
    """One data set: what is predicted is kept as it comes, and measured once all is there. None in other processes."""
    with ExitStack() as kept:
        place = _place(folder, model, here)
        if place is not None:
            kept.enter_context(place)
        outcome = model.outcome(question, place, here)
        beside = None
        if isinstance(other, Model) and place is not None:
            place.begin()
            if (beside := _place(place.path / AGAINST, other, here)) is not None:
                kept.enter_context(beside)
        second = None if other is None else other.outcome(question, beside, here)
        if outcome is None:
            return None
        pair = None
        if second is not None:
            pair = paired(question.dataset, outcome.predictions, second.predictions, outcome.scores.style)
            if beside is not None:
                beside.finish(second.files([], None), lambda: None)
        if place is not None:
            against = None if second is None or pair is None else (second, pair)
            _write(question, model, outcome, against, place)
    if isinstance(model, Model) and model.options.record:
        _keep(model, outcome)
    return outcome, pair


def _place(folder: Path | None, side: Side, here: Ranks) -> ResultFolder | None:
    return ResultFolder(folder, JOURNAL, force=side.options.force) if folder is not None and here.is_first else None


def _write(
    question: Question, model: Side, outcome: Outcome, against: tuple[Outcome, Paired] | None, place: ResultFolder
) -> None:
    worst = []
    if question.images is not None and isinstance(model, Model):
        other = None if against is None else (against[0].predictions, against[1])
        worst = worst_pictures(outcome, question.images, model.task(question), other)
    is_done = not outcome.skipped and (against is None or not against[0].skipped)
    place.finish(
        outcome.files(worst, None if against is None else (against[0].source, against[1])),
        done_with(str(place.path)) if is_done else lambda: None,
    )


def _keep(model: Model, outcome: Outcome) -> None:
    from converter.evaluation.predictions import results_json

    record = outcome.record(b"".join(results_json(outcome.predictions)))
    assert record is not None
    path = evaluation_path(model.path)
    add_evaluation(path, record)
    note(f"recorded: {file_name(path)}")


@dataclass(frozen=True, slots=True)
class Predicted:
    """A file of predictions, in place of a model."""

    path: Path
    name: str
    options: Options

    def outcome(self, question: Question, folder: ResultFolder | None, here: Ranks) -> Outcome | None:
        """What the file holds for the data set. ModelError if it does not fit."""
        if not here.is_first:
            return None
        predictions = read_predictions(self.path, question.dataset)
        style = self.options.changed.get("metric", "lvis-fixed" if question.dataset.style == "lvis" else "coco")
        scores = evaluate(question.dataset, predictions, style)
        return Outcome(question.name, self.name, question.dataset, question.is_limited, predictions, scores)


@dataclass(frozen=True, eq=False)
class Model:
    """A model that is run."""

    path: Path
    name: str
    checkpoint: Checkpoint
    family: Family[Any]
    options: Options
    here: Ranks

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What is stated beside the weights."""
        return read_record(self.path, self.checkpoint, "config")

    @cached_property
    def weights(self) -> str:
        """The hash of all tensors."""
        from converter.checkpoint.hashes import tensor_hashes
        from converter.writing.ledger import digest_of_checkpoint

        return digest_of_checkpoint(self.checkpoint, tensor_hashes(self.checkpoint))

    @cached_property
    def device(self) -> str:
        """That of this process: where there are several, each takes its own card."""
        asked = self.options.device
        return f"cuda:{self.here.local}" if asked == "cuda" and self.here.count > 1 else asked

    @cached_property
    def subject(self) -> Any:
        """The model itself."""
        how = (self.device, self.options.dtype, self.options.tf32, None)  # threads: see `converter.evaluation.run`
        return load_subject(self.path, self.checkpoint, *how).model

    def task(self, question: Question) -> Task:
        """How it is asked. ModelError for a class that cannot be asked for, or an unknown protocol."""
        asked = Asked(self.options.protocol, self.options.changed)
        sizes = self.config["config"]
        return self.family.task(question.data, question.classes, asked, self.path, sizes, self.options.vocab)

    def outcome(self, question: Question, folder: ResultFolder | None, here: Ranks) -> Outcome | None:
        """What it predicts, run here and in the other processes, and what that is worth; None in those."""
        task, options = self.task(question), self.options
        subject = Subject(
            name=self.name,
            weights=self.weights if here.is_first else "",
            model=self.config["model"],
            variant=self.config.get("variant"),
            device=self.device,
            stated=options.device,
            dtype=options.dtype,
            tf32=options.tf32,
            batch=options.batch,
            workers=options.workers,
            threads=options.threads,
        )

        def load() -> Runner:
            return task.runner(self.subject)

        with _interruptible(folder):
            return answer(question, task, subject, load, folder, here, partial(_progress, question.name), note)


Side = Model | Predicted


@contextmanager
def _opened(text: str, options: Options, here: Ranks) -> Iterator[Side]:
    """A model, or a file of predictions. ModelError, HubError."""
    path = Path(text)
    if path.suffix == ".json" and path.is_file():
        yield Predicted(path, text, options)
        return
    located = locate(text, quiet=options.as_json)
    with open_weights(located.path, options.root) as checkpoint:
        family = family_of_weights(located.path, checkpoint)
        name = located.origin["reference"] if located.origin else text
        yield Model(located.path, name, checkpoint, family, options, here)


def _progress(name: str, total: int, done: int) -> AbstractContextManager[Callable[[int], None]]:
    return progress(total, name, " pictures", done)


@contextmanager
def _interruptible(folder: ResultFolder | None) -> Iterator[None]:
    """Say what is kept where the run ends too early."""
    if folder is None:
        with nullcontext():
            yield
        return
    said = f"what is done is kept in {file_name(folder.path)}; the same command goes on"
    said += ", without --force" * folder.force
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(said) from None
    except Exception:
        print(said, file=sys.stderr)
        raise
