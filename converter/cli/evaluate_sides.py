"""What `converter evaluate` measures: a model that is run, or predictions that somebody else made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.checkpoint.arrays import np
from converter.cli.families import family_of_weights, load_subject, open_weights
from converter.cli.output import note, progress, told
from converter.cli.sources import locate
from converter.display import file_name
from converter.errors import DestinationError, ModelError
from converter.evaluation.answer import Subject, answer
from converter.evaluation.metrics import check_style, evaluate
from converter.evaluation.outcome import Outcome
from converter.evaluation.predictions import Predictions, read_predictions
from converter.evaluation.question import Question
from converter.evaluation.ranks import Ranks
from converter.evaluation.reading import check_pictures
from converter.evaluation.record import evaluation_path, evaluations_beside
from converter.evaluation.run import Runner
from converter.parity.family import Asked, Family, Task
from converter.writing.records import read_record
from converter.writing.results import ResultFolder

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.cli.evaluate import Options


@dataclass(frozen=True, eq=False)
class Predicted:
    """A file of predictions, in place of a model."""

    path: Path
    name: str
    options: Options

    def style(self, question: Question) -> str:
        """By which metric it is measured, where there is no model whose protocol says it."""
        return self.options.changed.get("metric", "lvis-fixed" if question.dataset.style == "lvis" else "coco")

    def check(self, question: Question) -> None:
        """ModelError if it cannot be measured on this data set."""
        check_style(question.dataset, self.style(question))
        self.read(question)

    @cache  # noqa: B019 a run has one or two of them
    def read(self, question: Question) -> Predictions:
        """What the file holds for the data set. ModelError if it does not fit."""
        predictions = read_predictions(self.path, question.whole)
        if not question.is_limited:
            return predictions
        return predictions.taken(np.isin(predictions.pictures, [each.id for each in question.dataset.pictures]))

    def outcome(self, question: Question, folder: ResultFolder | None, here: Ranks) -> Outcome | None:
        """What that comes to."""
        if not here.is_first:
            return None
        predictions = self.read(question)
        scores = evaluate(question.dataset, predictions, self.style(question))
        return Outcome(question.name, self.name, question.dataset, question.is_limited, predictions, scores)


@dataclass(frozen=True, eq=False)
class Model:
    """A model that is run. `is_remote`: it is in a cache of what was downloaded."""

    path: Path
    name: str
    checkpoint: Checkpoint
    family: Family[Any]
    is_remote: bool
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

    @cache  # noqa: B019 a run has one or two of them
    def task(self, question: Question) -> Task:
        """How it is asked. ModelError for a class that cannot be asked for, or an unknown protocol."""
        asked = Asked(self.options.protocol, self.options.changed)
        sizes = self.config["config"]
        return self.family.task(question.data, question.classes, asked, self.path, sizes, self.options.vocab)

    def check(self, question: Question) -> None:
        """ModelError if it cannot be asked about this data set."""
        if question.images is None:
            raise ModelError("a model is run on pictures: give their folder by --images.")
        check_pictures(question.dataset, question.images)
        check_style(question.dataset, self.task(question).metric)

    def check_record(self) -> None:
        """DestinationError, CaptureError if an evaluation cannot be kept beside the weights."""
        path = evaluation_path(self.path)
        if self.is_remote:
            raise DestinationError(
                f"--record keeps the result beside MODEL, and {self.name} is in a cache. Download it into a folder, "
                "and evaluate that."
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise DestinationError(f"{file_name(path)} cannot be written, where --record keeps the result")
        evaluations_beside(self.path, self.weights)

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

        with _interruptible(folder, here):
            return answer(question, task, subject, load, folder, here, partial(_progress, question.name), note)


Side = Model | Predicted


@contextmanager
def opened(text: str, options: Options, here: Ranks) -> Iterator[Side]:
    """A model, or a file of predictions. ModelError, HubError."""
    path = Path(text)
    if path.suffix == ".json" and path.is_file():
        yield Predicted(path, text, options)
        return
    located = locate(text, quiet=options.as_json)
    with open_weights(located.path, options.root) as checkpoint:
        family = family_of_weights(located.path, checkpoint)
        name = located.origin["reference"] if located.origin else text
        yield Model(located.path, name, checkpoint, family, bool(located.origin), options, here)


def _progress(name: str, total: int, done: int) -> AbstractContextManager[Callable[[int], None]]:
    return progress(total, name, " pictures", done)


@contextmanager
def _interruptible(folder: ResultFolder | None, here: Ranks) -> Iterator[None]:
    """Say what is kept where the run ends too early."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(folder) if here.is_first else "") from None
    except Exception:
        if told().signal is not None:  # which reached processes that read, too: that they ended is no error then
            raise KeyboardInterrupt(_kept(folder) if here.is_first else "") from None
        if folder is not None and folder.is_of_use:
            click.echo(_kept(folder), err=True)
        raise


def _kept(folder: ResultFolder | None) -> str:
    if folder is None:
        return "nothing is kept; with --out FOLDER it is"
    if not folder.is_of_use:
        return "nothing is done yet"
    without = ", without --force" if folder.force else ""
    return f"what is done is kept in {file_name(folder.path)}; the same command goes on{without}"
