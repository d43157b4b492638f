"""A run of `converter evaluate`: data sets, the models that are asked about them, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from converter.cli.evaluate_sides import Model, Predicted, Side, opened
from converter.cli.evaluate_told import tell, tell_plan
from converter.cli.output import done_with, note, told
from converter.cli.questions import questions
from converter.display import file_name
from converter.errors import ModelError
from converter.evaluation.answer import JOURNAL
from converter.evaluation.outcome import Outcome, worst_pictures
from converter.evaluation.paired import Paired, are_identical, compare
from converter.evaluation.predictions import results_json
from converter.evaluation.question import Question
from converter.evaluation.ranks import Ranks, ranks
from converter.evaluation.record import add_evaluation, evaluation_path
from converter.writing.destination import writing
from converter.writing.results import ResultFolder

if TYPE_CHECKING:
    from converter.cli.evaluate import Options

AGAINST = "against"  # the folder, in that of the first model, of the second one


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What a data set has come to, for the first model and the second. `places`: folders that it is kept in."""

    outcome: Outcome
    second: Outcome | None
    pair: Paired | None
    places: Sequence[ResultFolder]

    @property
    def is_whole(self) -> bool:
        """Whether all pictures could be used."""
        return not self.outcome.skipped and (self.second is None or not self.second.skipped)

    @property
    def is_equal(self) -> bool:
        """Whether the second model was shown to be equal, if there is one."""
        return self.pair is None or self.pair.verdict in ("identical", "equal")


def evaluate_and_tell(options: Options) -> int:
    """All that the command does, in each of its processes; its exit code. ModelError, HubError, DestinationError."""
    with ranks() as here, ExitStack() as stack:
        if not here.is_first:
            told().is_quiet = True
        model = stack.enter_context(opened(options.model_source, options, here))
        other = None if options.against is None else stack.enter_context(opened(options.against, options, here))
        asked = _checked(options, model, other, here)
        places = [_place(each, options, len(asked) > 1, stack) if here.is_first else None for each in asked]
        if options.dry_run:
            if here.is_first:
                tell_plan([(each, model.task(each)) for each in asked if isinstance(model, Model)], options)
            if isinstance(model, Predicted):
                note(f"{model.name}: {len(model.read(asked[0])):,} boxes for {asked[0].name}")
            return 0
        answered = []
        for question, place in zip(asked, places, strict=True):
            if (result := _answered(question, model, other, place, here, stack)) is not None:
                answered.append(result)
                _keep(question, model, result)
        if not here.is_first:
            return 0
        is_whole = all(each.is_whole for each in answered)
        if options.out is not None:
            for each in answered:  # not before all are there: until then the same command goes on
                for place in each.places:
                    place.clear()
            if is_whole:
                done_with(str(options.out))()
        tell([(each.outcome, each.pair) for each in answered], options, None if other is None else other.name)
        return int(not all(each.is_equal for each in answered)) if is_whole else ModelError.exit_code


def _checked(options: Options, model: Side, other: Side | None, here: Ranks) -> list[Question]:
    """The data sets; what is wrong with the last of them is told before the first one takes hours."""
    sides = [side for side in (model, other) if side is not None]
    models = [side for side in sides if isinstance(side, Model)]
    if options.record and not isinstance(model, Model):
        raise click.UsageError("--record keeps a result beside a model, and MODEL is a file of predictions")
    if not models and (others := [name for name in options.changed if name != "metric"]):
        raise click.UsageError(f"--setting {others[0]}: no model is run; of predictions, metric alone can be chosen")
    asked = questions(options, models[0].family if models else None)
    if len(asked) > 1 and len(models) < len(sides):
        raise click.UsageError(
            f"predictions are of one data set, and {options.dataset} is several; give the one they are of"
        )
    for question in asked:
        for side in sides:
            side.check(question)
    if options.record and isinstance(model, Model) and here.is_first:
        model.check_record()
    return asked


def _place(question: Question, options: Options, is_one_of_many: bool, stack: ExitStack) -> ResultFolder | None:
    """Where results are kept. It stays open to the end, so that nobody else writes there. DestinationError."""
    if options.out is None:
        return None
    if is_one_of_many and not options.out.exists():
        if options.dry_run:
            return None
        with writing(options.out):
            options.out.mkdir(exist_ok=True)
    folder = options.out / question.folder if is_one_of_many else options.out
    return stack.enter_context(ResultFolder(folder, JOURNAL, force=options.force))


def _answered(
    question: Question, model: Side, other: Side | None, place: ResultFolder | None, here: Ranks, stack: ExitStack
) -> Answered | None:
    """One data set: what is predicted is kept as it comes, and measured once all is there. None in other processes."""
    places = [] if place is None else [place]
    outcome = model.outcome(question, place, here)
    beside = None
    if isinstance(other, Model) and place is not None:
        place.begin()
        beside = stack.enter_context(ResultFolder(place.path / AGAINST, JOURNAL, force=place.force))
        places.append(beside)
    second = None if other is None else other.outcome(question, beside, here)
    if outcome is None:
        return None
    pair = None
    if second is not None:
        pair = compare(outcome.scores, second.scores, identical=are_identical(outcome.predictions, second.predictions))
    return Answered(outcome, second, pair, places)


def _keep(question: Question, model: Side, answered: Answered) -> None:
    """Write it all, beside the model and into its folder."""
    outcome, second, pair = answered.outcome, answered.second, answered.pair
    if isinstance(model, Model) and model.options.record:
        record = outcome.record(b"".join(results_json(outcome.predictions)))
        assert record is not None
        path = evaluation_path(model.path)
        add_evaluation(path, record)
        note(f"recorded: {file_name(path)}")
    if not answered.places:
        return
    place, *besides = answered.places
    for beside in besides:
        assert second is not None
        beside.write(second.files([], None))
    worst = []
    if question.images is not None and isinstance(model, Model):
        other = None if second is None or pair is None else (second.predictions, pair)
        worst = worst_pictures(outcome, question.images, model.task(question), other)
    place.write(outcome.files(worst, None if second is None or pair is None else (second.source, pair)))
