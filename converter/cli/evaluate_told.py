"""How `converter evaluate` tells what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import cut, note, print_json
from converter.display import counted, listed, plain
from converter.evaluation.outcome import Outcome
from converter.evaluation.paired import Paired
from converter.evaluation.question import Question
from converter.evaluation.reading import check_pictures

if TYPE_CHECKING:
    from converter.cli.evaluate import Options
    from converter.parity.family import Task

_VERDICTS = {
    "identical": "the predictions are the same",
    "equal": "equal on the task, within 0.1 AP",
    "different": "they differ",
    "undecided": "not shown to be equal: these pictures are too few to tell",
}
Result = tuple[Outcome, Paired | None]


def tell(results: Sequence[Result], options: Options, against: str | None) -> None:
    """Print it all, as text or JSON."""
    for outcome, _ in results:
        if outcome.unturned:
            names = listed((plain(picture.file_name) for picture in outcome.unturned), 5)
            said = (
                f"{counted(len(outcome.unturned), 'picture')} of {plain(outcome.name)} used as stored, not turned as "
            )
            note(f"{said}the EXIF says: {names}; the boxes have to be of that. --setting upright=true turns them")
    if options.as_json:
        print_json(_json(results, against))
        return
    for outcome, pair in results:
        _tell_one(outcome, pair, against)
    if (mean := _mean(results)) is not None:
        click.echo(f"mean AP of {counted(len(results), 'data set')}: {100 * mean:.2f}")


def tell_plan(asked: Sequence[tuple[Question, Task]], options: Options) -> None:
    """Print what a model would be asked, and of which pictures."""
    if options.as_json:
        plans = [_plan(*each) for each in asked]
        print_json({**_json([], options.against), "model": options.model_source, "plan": plans})
        return
    for question, task in asked:
        plan = _plan(question, task)
        there = counted(plan["pictures"], "picture")
        missing = f", {len(plan['missing']):,} of them not there" if plan["missing"] else ""
        click.echo(f"{plain(question.name)}: {there}{missing}, protocol {plan['protocol']}, metric {task.metric}")
        click.echo(
            f"  {counted(len(question.classes), 'class', 'classes')} in {counted(len(task.captions), 'caption')}:"
        )
        click.echo("\n".join(cut([f"    {plain(text, 2000)}" for text in task.captions], 3)))
        for name in cut(plan["missing"], 10):
            click.echo(f"  not there: {plain(name)}")


def _plan(question: Question, task: Task) -> dict[str, Any]:
    stamps = check_pictures(question.dataset, question.images or Path())
    return {
        "dataset": question.name,
        "pictures": len(question.dataset.pictures),
        "missing": [each.file_name for each in question.dataset.pictures if stamps[each.id] is None],
        "protocol": task.facts["name"],
        "settings": dict(task.facts["settings"]),
        "captions": list(task.captions),
    }


def _tell_one(outcome: Outcome, pair: Paired | None, against: str | None) -> None:
    count = counted(len(outcome.dataset.pictures), "picture")
    protocol = "" if outcome.protocol is None else f", protocol {outcome.protocol['name']}"
    run = "" if outcome.run is None else f", {outcome.run['dtype']} on {outcome.run['device']}"
    click.echo(f"{plain(outcome.name)}: {count}{' only' * outcome.is_limited}{protocol}{run}, {outcome.scores.library}")
    for name, value in outcome.scores.figures.items():
        other = "" if pair is None else f"  {_percent(pair.second.figures.get(name))}"
        click.echo(f"  {name:<6} {_percent(value)}{other}")
    measured = [each for each in outcome.scores.classes if each.ap is not None]
    rows = [
        f"  {_percent(each.ap)}  {each.annotated:>7,} annotated  {plain(each.name)}"
        for each in sorted(measured, key=lambda each: each.ap or 0.0)
    ]
    if len(rows) > 1:
        click.echo("AP by class, the lowest first:")
        click.echo("\n".join(cut(rows, 10)))
    if pair is not None:
        low, high = (100 * value for value in pair.interval)
        click.echo(
            f"against {plain(str(against))}: {100 * pair.difference:+.3f} AP a picture "
            f"(95 %: {low:+.3f} to {high:+.3f}), "
            f"better in {pair.better:,}, worse in {pair.worse:,}, the same in {pair.equal:,}: {_VERDICTS[pair.verdict]}"
        )
    if outcome.skipped:  # an error, so that -q tells it, too
        of = counted(len(outcome.skipped), "picture")
        click.echo(f"error: {of} could not be used, and count as if nothing were found in them:", err=True)
        click.echo("\n".join(cut([f"  {reason}" for _, reason in outcome.skipped])), err=True)


def _percent(value: float | None) -> str:
    return "    -" if value is None else f"{100 * value:5.2f}"


def _mean(results: Sequence[Result]) -> float | None:
    """AP over several data sets, as benchmarks of several state it."""
    found = [value for outcome, _ in results if (value := outcome.scores.figures["AP"]) is not None]
    return sum(found) / len(found) if len(results) > 1 and found else None


def _json(results: Sequence[Result], against: str | None) -> dict[str, Any]:
    return {
        "model": results[0][0].source if results else None,
        "against": against,
        "evaluations": [_as_json(outcome, pair) for outcome, pair in results],
        "mean": _mean(results),
    }


def _as_json(outcome: Outcome, pair: Paired | None) -> dict[str, Any]:
    return {
        "dataset": outcome.name,
        "pictures": len(outcome.dataset.pictures),
        "limited": outcome.is_limited,
        "skipped": outcome.skipped_rows,
        "unturned": [picture.file_name for picture in outcome.unturned],
        "protocol": None if outcome.protocol is None else outcome.protocol["name"],
        "settings": None if outcome.protocol is None else dict(outcome.protocol["settings"]),
        "captions": None if outcome.protocol is None else list(outcome.protocol["captions"]),
        "run": None if outcome.run is None else dict(outcome.run),
        "weights": outcome.weights,
        "metric": {"library": outcome.scores.library, "style": outcome.scores.style},
        "figures": dict(outcome.scores.figures),
        "classes": [asdict(each) for each in outcome.scores.classes],
        "paired": None if pair is None else _pair(pair),
    }


def _pair(pair: Paired) -> dict[str, Any]:
    return {
        "verdict": pair.verdict,
        "difference": pair.difference,
        "interval": list(pair.interval),
        "better": pair.better,
        "worse": pair.worse,
        "equal": pair.equal,
        "figures": dict(pair.second.figures),
        "pictures": [{"picture": number, "first": first, "second": second} for number, first, second in pair.worst],
    }
