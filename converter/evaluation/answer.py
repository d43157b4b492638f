"""A model asked about a data set, from its pictures to the outcome; what is done of a run that is stopped is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from converter import __version__
from converter.display import listed
from converter.errors import ModelError
from converter.evaluation.metrics import check_style, evaluate
from converter.evaluation.outcome import Outcome
from converter.evaluation.question import Question
from converter.evaluation.ranks import Ranks
from converter.evaluation.run import Progress, Run, Runner

if TYPE_CHECKING:
    from converter.parity.family import Task
    from converter.writing.results import ResultFolder

_TOLD = 20  # reasons
JOURNAL = "predictions.partial.jsonl"  # in a folder of results until all is done


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """Which model is asked, and how it is run.

    name      as it is told
    weights   the hash of all its tensors; `model`, `variant`: what they are
    device    of this process; `stated`: as it is told, for all of them
    threads   see `Run`
    """

    name: str
    weights: str
    model: str
    variant: str | None
    device: str
    stated: str
    dtype: str
    tf32: bool
    batch: int
    workers: int
    threads: int | None

    @property
    def facts(self) -> dict[str, Any]:
        """What of it results depend on, besides the weights."""
        from converter.parity.device import machine  # torch, which a file of predictions does not need

        return {
            "device": self.stated,
            **machine(self.device),
            "dtype": self.dtype,
            "tf32": self.tf32,
            "batch": self.batch,
            "torch": version("torch"),
            "pillow": version("pillow"),
        }


def answer(
    question: Question,
    task: Task,
    subject: Subject,
    load: Callable[[], Runner],
    folder: ResultFolder | None,
    here: Ranks,
    progress: Progress,
    say: Callable[[str], object] = lambda text: None,
) -> Outcome | None:
    """The outcome, in the first process; None in the others. `say`: is told what an earlier run has done.

    ModelError for what cannot be used; DestinationError.
    """
    if question.images is None:
        raise ModelError("a model is run on pictures: give their folder by --images.")
    check_style(question.dataset, task.metric)
    settings = {
        "converter": __version__,
        "model": subject.weights,
        "annotations": question.dataset.sha256,
        "pictures": question.dataset.pictures_sha256,
        "protocol": dict(task.facts),
        "run": subject.facts,
    }
    if others := {str(each) for each in here.gathered([subject.facts])} - {str(subject.facts)}:
        say(f"the processes run on unlike machines, so that last digits depend on which does what: {listed(others)}")
    how = (subject.device, subject.batch, subject.workers, subject.threads)
    run = Run(question.dataset, question.images, task, *how, settings, folder, here)
    done = run.done()
    if done and folder is not None:
        say(f"{len(done):,} of {len(question.dataset.pictures):,} pictures are done already; going on")
    results = run.results(done, load, progress)
    if results is None:
        return None
    skipped = results.skipped(question.dataset)
    if len(skipped) == len(question.dataset.pictures):
        reasons = [reason for _, reason in skipped]
        raise ModelError("no picture could be used, so there is nothing to measure:", reasons[:_TOLD])
    predictions = results.predictions(question.dataset)
    return Outcome(
        question.name,
        subject.name,
        question.dataset,
        question.is_limited,
        predictions,
        evaluate(question.dataset, predictions, task.metric),
        skipped,
        subject.weights,
        {"name": subject.model, "variant": subject.variant},
        task.facts,
        subject.facts,
        results.unturned(question.dataset),
    )
