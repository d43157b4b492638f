"""Results of comparisons in Markdown, the verdict first, for the page of a CI job."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.cli.job import as_table, bullets, code, page, prose
from converter.display import figure

if TYPE_CHECKING:
    from converter.cli.signature import Signed
    from converter.evaluation.record import Evaluation
    from converter.parity.certificate import Verification
    from converter.parity.coverage import Coverage
    from converter.parity.mutate import Score
    from converter.parity.run import Report


def of_parity(model: str, reports: Sequence[Report], coverage: Coverage | None, score: Score | None) -> str:
    """A model beside captures: of each the findings, and the activations that are not within their limit."""
    from converter.parity.summary import overall, verdict

    parts = [part for report in reports for part in _of_report(report)]
    parts.append(bullets(_of_weights(coverage, score)))
    return page(f"converter parity {model}", verdict(overall(reports)), [], *parts)


def of_refusal(model: str, failed: Sequence[Report], runs: int) -> str:
    """Comparisons that did not pass, of so many that were run: there is no certificate."""
    from converter.parity.summary import overall, verdict

    parts = [part for report in failed for part in _of_report(report)]
    said = f"{verdict(overall(failed))}, not certified"
    return page(f"converter certify {model}", said, [("did not pass", f"{len(failed)} of {runs} comparisons")], *parts)


def of_certificate(model: str, path: Path, reports: Sequence[Report], coverage: Coverage, score: Score | None) -> str:
    """What a certificate that was written rests on."""
    compared = [
        (f"{report.capture}, {report.dtype}", f"{sum(map(len, report.modes.values()))} activations by {report.gate}")
        for report in reports
    ]
    lines = [("certificate", str(path)), *compared, *_of_weights(coverage, score)]
    return page(f"converter certify {model}", "pass", lines)


def of_verification(
    model: str, result: Verification, evaluations: Sequence[Evaluation] = (), signed: Signed | None = None
) -> str:
    """A copy beside its certificate, with all that differs."""
    from converter.parity.summary import verdict
    from converter.writing.ledger import UNKNOWN_TABLE

    lines = [*([signed.line] if signed else []), ("certificate", str(result.certificate))]
    lines += [("rests on", f"{custom}, as accepted") for custom in result.custom]
    lines += [("table", UNKNOWN_TABLE)] if result.by_unknown_table else []
    if (report := result.report) is not None:
        judged = report.modes["propagated"]
        lines.append(("computed again", f"{len(judged)} activations, {report.dtype} on {report.device}, {report.gate}"))
    lines += of_evaluations(evaluations, result.evaluations)
    rows = [[prose(problem)] for problem in result.problems]
    return page(
        f"converter verify {model}", verdict(result.passed), lines, as_table(["difference"], rows, "differences")
    )


def of_evaluations(
    evaluations: Sequence[Evaluation], certified: Collection[Mapping[str, Any]] | None = None
) -> list[tuple[str, str]]:
    """A label and a line for each evaluation beside the weights. `certified`: those that the certificate names, None
    where there is no certificate."""
    where = {None: "", True: ", as the certificate says", False: ", not in the certificate"}
    return [
        ("evaluated", f"{evaluation}{where[None if certified is None else evaluation.entry in certified]}")
        for evaluation in evaluations
    ]


def evaluations_json(
    evaluations: Sequence[Evaluation], certified: Collection[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The same for `--json`."""
    return [evaluation.entry | {"certified": evaluation.entry in certified} for evaluation in evaluations]


def _of_report(report: Report) -> Iterator[str]:
    from converter.parity.report import VERDICTS, badness, looser
    from converter.parity.summary import headline, summary

    yield f"**{prose(headline(report))}**"
    lines = [(line.label, line.text) for line in summary(report)]
    yield bullets([*([("careful", loud)] if (loud := looser(report.gate)) else []), *lines])
    worst = [(mode, result) for mode, results in report.modes.items() for result in results if not result.passed]
    worst.sort(key=lambda entry: badness(entry[1]))
    rows = [[VERDICTS[r.passed], figure(r.relative), figure(r.limit), code(r.name), mode] for mode, r in worst]
    yield as_table(["verdict", "error", "limit", "activation", "mode"], rows, "activations")


def _of_weights(coverage: Coverage | None, score: Score | None) -> Iterator[tuple[str, str]]:
    from converter.parity.coverage_report import headline

    if coverage is not None:
        label, _, said = headline(coverage).partition(" ")
        yield label, said
    if score is not None:
        yield "mutations", score_text(score)


def score_text(score: Score) -> str:
    """How many mutations were noticed, and why the score is not simply their share."""
    made = len(score.outcomes)
    never = f"; {score.equivalent} that no input can show do not count" if score.equivalent else ""
    of_those = f"{score.caught} of {made - score.equivalent}"
    return f"{score.caught} of {made} noticed{never}: score {score.value:.4f} ({of_those})"
