"""What a card says of evaluations on data sets: for people, and as the model-index that the Hub reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from converter.display import plain
from converter.evaluation.record import NAME, Evaluation, to_json
from converter.hub.requests import quiet
from converter.publish.markdown import code, section, table, text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TITLE = "Evaluated on a task"
NOTHING = "No benchmark was run on these weights: figures below, if any, are the authors' own, of their code."
_INDEXED = ("AP", "AP50", "AP75", "APr", "APc", "APf")  # of the figures, those that the Hub is told
_ORDER = (*_INDEXED[:3], "APs", "APm", "APl", *_INDEXED[3:])  # of columns; the file has the names sorted
_METRICS = {
    "coco": "COCO's metric",
    "lvis": "LVIS's metric, at most 300 boxes in a picture",
    "lvis-fixed": "LVIS's metric, at most 10,000 boxes of a class and no limit in a picture (fixed AP)",
}


def evaluated(about: Mapping[str, Any], released: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> str:
    """The section of a card, which names evaluation.json, as it is published, by its SHA-256; nothing without any.

    `about`, `released`: what the family says of itself and of the model that this is, if it was stated. `benchmarks`
    there says which data set, style, protocol and number of pictures a figure of the authors is of.
    """
    if not evaluations:
        return ""
    sha256 = hashlib.sha256(to_json(evaluations)).hexdigest()
    paragraphs = [
        "These weights were run on the pictures of a data set, and what they found was held against what is annotated "
        "there, by `converter evaluate`. Figures are in percent.",
        *(paragraph for each in evaluations for paragraph in _of(each, about, released)),
        f"{code(NAME)} (SHA-256 {code(sha256)}) holds these figures, those of each class, the whole protocol, and the "
        "hashes of annotations and predictions. It names the weights by the hash of all tensors. It is evidence, not a "
        "signature.",
    ]
    return section(TITLE, "\n\n".join(paragraphs))


def _of(evaluation: Evaluation, about: Mapping[str, Any], released: Mapping[str, Any]) -> Iterator[str]:
    matching = _benchmarks(about, evaluation)
    title = next((text(benchmark["name"]) for benchmark in matching.values()), code(evaluation.dataset))
    run, metric = evaluation.content["run"], evaluation.content["metric"]
    known = f" (torch {code(str(run['torch']))})" if "torch" in run else ""
    yield (
        f"**{title}**, {_counted(evaluation.pictures)}, protocol {code(evaluation.protocol)}, "
        f"{code(evaluation.dtype)} on {code(evaluation.device)}{known}. {_METRICS[evaluation.style]}, computed by "
        f"{text(metric['library'])}. Annotations: SHA-256 {code(evaluation.content['dataset']['annotations_sha256'])}."
    )
    if evaluation.is_limited:
        yield (
            f"> **On {_counted(evaluation.pictures)} only**, the first of the data set: these are no figures of the "
            "data set, and may be far from them."
        )
    if skipped := evaluation.skipped:
        named = "; ".join(f"{code(entry['file_name'])}: {text(entry['reason'])}" for entry in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        yield (
            f"> **{_counted(len(skipped))} skipped**, as not to be used: {named}{more}. These are no figures of the "
            "whole data set."
        )
    reported = {benchmark["figure"]: released["figures"][key] for key, benchmark in matching.items()
                if key in released.get("figures", {})}  # fmt: skip
    names = sorted(evaluation.figures, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    rows = [["measured here", *(_percent(evaluation.figures[name]) for name in names)]]
    if reported:
        rows.append(["reported by the authors", *(str(reported.get(name, "-")) for name in names)])
    yield "\n".join(table(["in percent", *names], rows))


def _benchmarks(about: Mapping[str, Any], evaluation: Evaluation) -> dict[str, Mapping[str, Any]]:
    """What of the family's benchmarks was run, by the keys of their figures; of a part of the pictures none was."""
    run = {"dataset": evaluation.dataset, "style": evaluation.style, "protocol": evaluation.protocol,
           "pictures": evaluation.pictures}  # fmt: skip
    return {
        key: benchmark
        for key, benchmark in about.get("benchmarks", {}).items()
        if evaluation.is_whole and all(benchmark[name] == value for name, value in run.items())
    }


def not_evaluated(
    about: Mapping[str, Any], released: Mapping[str, Any], evaluations: Sequence[Evaluation]
) -> Iterator[str]:
    """What of the released benchmarks was not run, for the list of what was not verified."""
    if not evaluations:
        yield NOTHING
        return
    if not any(each.is_whole for each in evaluations):
        yield "No whole benchmark was run on these weights: every evaluation left pictures out."
    run = {key for each in evaluations for key in _benchmarks(about, each)}
    missing = [about["figures"][key] for key in released.get("figures", {}) if key not in run]
    if missing:
        yield (
            f"Of the benchmarks whose figures the authors report, not run on these weights: {'; '.join(missing)}. The "
            "figures of these are the authors' own, of their code."
        )
    elif not released:
        yield "No other benchmark was run on these weights."


def eval_results(about: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> list[EvalResult]:
    """The figures as the Hub's client takes them: of whole data sets only, in percent."""
    from huggingface_hub import EvalResult

    results = []
    for each in filter(lambda evaluation: evaluation.is_whole, evaluations):
        known = next(iter(_benchmarks(about, each).values()), {})
        arguments = {"protocol": each.protocol, "dtype": each.dtype, "device": each.device, "pictures": each.pictures}
        results += [
            EvalResult(
                task_type=about.get("card", {}).get("pipeline_tag", "object-detection"),
                dataset_type=_printable(each.dataset),
                dataset_name=known.get("name", _printable(each.dataset)),
                dataset_split=known.get("split"),
                metric_type="mAP" if name == "AP" else name,
                metric_value=round(100 * value, 2),
                metric_name=f"box {name}" if each.style == "coco" else f"box {name} ({each.style})",
                metric_args={key: _printable(value) for key, value in arguments.items()},
            )
            for name in _INDEXED
            if (value := each.figures.get(name)) is not None
        ]
    return results


def card_problem(card: str, sha256: str | None, results: Sequence[EvalResult]) -> str:
    """What a card states of evaluations that are not beside it, or does not state of those that are; "" if nothing.

    `sha256`: of evaluation.json, None where there is none; `results`: what it gives as `eval_results`.
    """
    if sha256 is not None and sha256 not in card:
        return f"does not name {NAME}, SHA-256 {sha256}"
    if sha256 is None and f"## {TITLE}" in card:
        return f"states figures of an evaluation, and there is no {NAME}"
    known = [(result.metric_name, result.metric_value, result.metric_args) for result in results]
    try:
        index = _model_index(card)
    except Exception as error:  # of YAML, or whatever the client makes of what is in it
        return f"has a model-index that cannot be read ({plain(str(error), 300)})"
    for stated in index:
        if (stated.metric_name, stated.metric_value, stated.metric_args) not in known:
            figure = plain(f"{stated.metric_name or stated.metric_type} {stated.metric_value}")
            return f"states in its metadata {figure} on {plain(str(stated.dataset_name))}, which {NAME} does not"
    return ""


def _model_index(card: str) -> Sequence[EvalResult]:
    if "model-index" not in card:
        return ()
    from huggingface_hub import ModelCard, ModelCardData

    with quiet():
        data = ModelCard(card).data
    return data.eval_results or () if isinstance(data, ModelCardData) else ()


def _counted(pictures: int) -> str:
    return f"{pictures:,} picture{'s' * (pictures != 1)}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _printable(value: Any) -> Any:
    """For YAML, which cannot hold every character."""
    return "".join(c if c.isprintable() else "_" for c in value)[:200] if isinstance(value, str) else value
