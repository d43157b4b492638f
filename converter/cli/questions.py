"""What is asked of a model: the data sets that a command line names, with their pictures, classes and captions."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.strict_json import read_json
from converter.display import file_name, listed, plain, quoted
from converter.errors import ConverterWarning, ModelError
from converter.evaluation.dataset import DataSet, read_dataset
from converter.evaluation.question import Question, question_of
from converter.parity.family import Benchmark, Family

if TYPE_CHECKING:
    from converter.cli.evaluate import Options


def questions(options: Options, family: Family[Any] | None) -> list[Question]:
    """All data sets that are asked about. ModelError, with all that is wrong, if one cannot be used."""
    benchmarks = family.benchmarks if family is not None else ()
    if family is not None and options.dataset in benchmarks:
        return _benchmark(options, family)
    if options.dataset in ("coco", "lvis"):
        path = options.annotations or _beside(options)
        whole = read_dataset(path, options.dataset)
        return [_question(options, options.dataset, options.dataset, whole, options.images)]
    path = Path(options.dataset)
    if not path.exists():
        known = ", ".join(("coco", "lvis", *benchmarks))
        raise ModelError(
            f"dataset: found {quoted(options.dataset)}, expected one of {known}, or a file of annotations."
        )
    whole = read_dataset(path)
    return [_question(options, path.stem, "lvis" if whole.style == "lvis" else "own", whole, options.images)]


def _beside(options: Options) -> Path:
    """COCO's annotations, where its own archives put them."""
    if options.images is not None:
        folder = options.images.absolute()
        path = folder.parent / "annotations" / f"instances_{folder.name}.json"
        if path.exists():
            return path
    raise ModelError("coco: where are its annotations? Give instances_val2017.json by --annotations.")


def _benchmark(options: Options, family: Family[Any]) -> list[Question]:
    """The data sets of a benchmark that are there. ModelError if there is none; a ConverterWarning names the others."""
    if options.images is None:
        raise ModelError(f"{options.dataset}: give the folder of its data sets by --images.")
    if options.captions is not None:
        raise ModelError(
            f"--captions are of one data set, and {options.dataset} has captions of its own. Leave them out."
        )
    known = family.benchmark(options.dataset)
    there = [each for each in known if (options.images / each.annotations).exists()]
    missing = [each.name for each in known if each not in there]
    if not there:
        raise ModelError(
            f"{file_name(options.images)}: holds none of the data sets of {options.dataset}. Expected, for one, "
            f"{plain(known[0].annotations)} in it."
        )
    if missing:
        said = f"{options.dataset}: not evaluated, since they are not in {file_name(options.images)}: "
        warnings.warn(said + listed(missing, 20), ConverterWarning, stacklevel=2)
    return [_of_benchmark(options, each, options.images) for each in there]


def _of_benchmark(options: Options, each: Benchmark, images: Path) -> Question:
    whole = read_dataset(images / each.annotations)
    question = _question(options, each.name, "own", whole, images / each.pictures)
    if not each.classes:
        return question
    if {found.id for found in question.classes} - {wanted.id for wanted in each.classes}:
        ids = sorted(found.id for found in question.classes)
        raise ModelError(
            f"{file_name(whole.path)}: has the classes {ids}, and the official data set "
            f"{[wanted.id for wanted in each.classes]}. Get the official annotations."
        )
    return replace(question, classes=each.classes)


def _question(options: Options, name: str, data: str, whole: DataSet, images: Path | None) -> Question:
    path = options.captions
    if path is None:
        return question_of(name, data, whole, images, options.limit)
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{file_name(path)}: cannot be read as captions: {reason}.") from None
    try:
        return question_of(name, data, whole, images, options.limit, content)
    except ModelError as error:
        raise ModelError(f"{file_name(path)}: {error}") from None
