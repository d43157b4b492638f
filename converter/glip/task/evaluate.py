"""`evaluate` in Python: how good a model's boxes are, on a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from converter.errors import require
from converter.evaluation.answer import JOURNAL, Subject, answer
from converter.evaluation.dataset import read_dataset
from converter.evaluation.outcome import Outcome
from converter.evaluation.question import question_of
from converter.evaluation.ranks import ranks
from converter.glip.detect.detector import Detector
from converter.glip.saving import digest_of
from converter.glip.task.task import GLIPTask
from converter.mapping.spec import load_spec
from converter.parity.device import settings as place_settings
from converter.parity.family import Asked
from converter.writing.results import ResultFolder


def evaluate(
    model: Detector | str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    data: str | None = None,
    protocol: str = "official",
    settings: Mapping[str, str] | None = None,
    captions: Mapping[str, Any] | Sequence[Any] | None = None,
    limit: int | None = None,
    batch: int = 1,
    workers: int = 2,
    threads: int | None = None,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Outcome | None:
    """What `converter evaluate` measures, of a detector, or of a model that `Detector.from_pretrained` loads.

        outcome = evaluate("glip-t", "instances_val2017.json", "val2017", data="coco", limit=100)
        print(outcome.scores.figures["AP"], outcome.skipped)

    annotations, images   in COCO's format or LVIS's; the folder that the file names in them begin at
    data                  by which rules, 'coco', 'lvis' or 'own'; by default as the annotations are
    protocol, settings    'official' or 'mmdet', and choices of it that are changed, by name
    captions              by class name a text, or `prefix`, `name` and `suffix`; or a list of such
    limit, batch, workers, threads, force   as the options of these names
    out                   a folder to keep results in, from which a run that was stopped goes on

    The record names the weights of a path by the hash of the file's tensors, those of a detector as they are in memory.
    It has no comparison of two models, no ODinW and draws no pictures: these are the command's.
    Under torchrun the pictures are shared out, and only the first process gets an outcome: None for the others.
    ModelError for what cannot be used; DestinationError.
    """
    require("evaluate", "evaluate", ("faster_coco_eval",))
    detector = model if isinstance(model, Detector) else Detector.from_pretrained(model)
    whole = read_dataset(Path(annotations))
    kind = data or ("lvis" if whole.style == "lvis" else "own")
    question = question_of(Path(annotations).stem, kind, whole, Path(images), limit, captions)
    asked = Asked(protocol, dict(settings or {}))
    task = GLIPTask.of(kind, question.classes, asked, detector.tokenizer, detector.settings)
    with ranks() as here, ExitStack() as kept:
        folder = None
        if out is not None and here.is_first:
            folder = kept.enter_context(ResultFolder(Path(out), JOURNAL, force=force))
        weights = ""
        if here.is_first:  # of a detector nobody knows whether its model was changed since it was loaded
            origin = detector.model._origin if detector is not model else None
            weights = origin.sha256 if origin is not None else digest_of(detector.model)
        subject = _subject(detector, weights, batch, workers, threads)

        outcome = answer(question, task, subject, partial(task.runner, detector.model), folder, here, _silent)
        if outcome is not None and folder is not None:
            folder.finish(outcome.files([], None), lambda: None)
        return outcome


def _silent(total: int, done: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda count: None)


def _subject(detector: Detector, weights: str, batch: int, workers: int, threads: int | None) -> Subject:
    device = str(detector.device)
    return Subject(
        name=detector.origin or repr(detector),
        weights=weights,
        model="glip",
        variant=load_spec("glip").variant_of(asdict(detector.model.config)).name,
        device=device,
        stated=device,
        dtype=str(detector.dtype).removeprefix("torch."),
        tf32=bool(place_settings(next(detector.model.parameters()))["tf32"]),
        batch=batch,
        workers=workers,
        threads=threads,
    )
