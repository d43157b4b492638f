"""The top of a report: what is to be known first, and what to do next; every form of a report begins with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from converter.display import counted, listed, plain
from converter.parity.compare import TapResult
from converter.parity.run import Report
from converter.parity.same_weights import how_to_capture, is_official

_NAMES = 6  # of parameters and tensors that a line names
_VERDICTS = {True: "pass", False: "FAIL", None: "could not be judged"}


class Line(NamedTuple):
    """`label` says what `text` is: `first difference`."""

    label: str
    text: str


def verdict(passed: bool | None) -> str:
    """The last word: `pass`, `FAIL` or `could not be judged`."""
    return _VERDICTS[passed]


def overall(reports: Sequence[Report]) -> bool | None:
    """What several reports of one model come to: passed if all did, not passed if one did not."""
    verdicts = {report.passed for report in reports}
    return False if False in verdicts else None if None in verdicts else True


def headline(report: Report, name: str = "the model") -> str:
    """`FAIL: the model does not compute what capture small holds (float64, cpu)`."""
    said = {
        True: f"{name} computes what capture {plain(report.capture)} holds",
        False: f"{name} does not compute what capture {plain(report.capture)} holds",
        None: f"whether {name} computes what capture {plain(report.capture)} holds",
    }[report.passed]
    return f"{verdict(report.passed)}: {said} ({report.dtype}, {report.device})"


def summary(report: Report) -> list[Line]:
    """What follows the headline: where it fails and what to do, then how much was compared."""
    lines: list[Line] = []
    if report.passed is False:
        lines += [*_where(report), *_whose(report)]
    elif report.passed is None:
        open_ = next(r for results in report.modes.values() for r in results if r.passed is None)
        lines.append(Line("not judged", f"{plain(open_.name)}: {open_.why(report.dtype)}"))
    lines += _weights(report)
    if report.passed is False:
        lines += [Line("next", command) for command in next_steps(report)]
    lines += [Line(mode, counts(results)) for mode, results in report.modes.items()]
    lines += [Line(mode, f"skipped, {plain(reason)}") for mode, reason in report.skipped.items()]
    return [*lines, *_detections(report)]


def top(report: Report) -> list[str]:
    """Headline and summary as lines for a terminal."""
    return [printable(headline(report, named(report))), *aligned(summary(report))]


def named(report: Report) -> str:
    """What was compared: its file, or `the model`."""
    return plain(str(report.weights.path), 1024) if report.weights.path else "the model"


def aligned(lines: Sequence[Line]) -> list[str]:
    """Lines with their texts below each other; a label that is repeated stands once."""
    width = max((len(line.label) for line in lines), default=0)
    labels = ["" if i and line.label == lines[i - 1].label else line.label for i, line in enumerate(lines)]
    return [printable(f"  {label:<{width}}  {line.text}") for label, line in zip(labels, lines, strict=True)]


def brief(report: Report) -> list[Line]:
    """What is most important of a report that did not pass, for where the whole one is not shown."""
    wanted = ("first difference", "not judged", "suspect tensors", "record", "weights")
    lines = [line for line in summary(report) if line.label in wanted]
    if not any(line.label in wanted[:2] for line in lines):  # only the detections differ
        lines = [line for line in summary(report) if line.label == "detections"] + lines
    if report.weights.path is None or report.reference is None:
        return lines
    model, reference = (shlex.quote(plain(str(path), 1024)) for path in (report.weights.path, report.reference))
    dtype = "" if report.dtype == "float64" else f" --dtype {report.dtype}"
    return [*lines, Line("next", f"converter parity {model} --reference {reference}{dtype}  # the whole comparison")]


def counts(results: Sequence[TapResult]) -> str:
    """`130 of 132 activations are within their limit, 2 beyond`."""
    passed = [result.passed for result in results]
    if all(passed):
        return f"all {counted(len(passed), 'activation')} are within their limit"
    rest = {"beyond": passed.count(False), "not judged": passed.count(None)}
    said = "".join(f", {count} {word}" for word, count in rest.items() if count)
    return f"{passed.count(True)} of {counted(len(passed), 'activation')} are within their limit{said}"


def module_name(module: str) -> str:
    """The outputs of a model belong to no module inside it."""
    return module or "(the whole model)"


def printable(text: str) -> str:
    """`text` with escapes for all that is not printable: control characters, lone surrogates, changes of direction.

    What is left is allowed in XML 1.0 and in HTML, and reads in the order in which it is written.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _detections(report: Report) -> Iterator[Line]:
    judged = [(i, d) for i, d in enumerate(report.detections) if d.limit is not None]
    if not judged:
        return
    images = counted(len(judged), "image")
    bad = [(i, d) for i, d in judged if d.passed is False]
    if not bad:
        objects = counted(sum(d.found for _, d in judged), "object")
        yield Line("detections", f"the same {objects} in {images}")
    else:
        image, first = bad[0]
        yield Line("detections", f"differ in {len(bad)} of {images}; image {image}: {first.why(report.dtype)}")


def _where(report: Report) -> Iterator[Line]:
    """Which activation differs first, and which blocks are off by themselves."""
    first = report.first
    if first is not None:
        where = f" (computed by {plain(first.module)})" if first.module and first.module != first.name else ""
        yield Line("first difference", f"at {plain(first.name)}{where}: {first.why(report.dtype)}")
    label = "off by itself"
    if report.culprits:
        shown = listed([plain(module_name(module)) for module in report.culprits], _NAMES)
        yield Line(label, f"{shown}, given the captured inputs")
    elif first is not None and "injected" in report.modes:
        unjudged = any(r.passed is None for r in report.modes["injected"])
        added = "no block, given the captured inputs: small differences have added up"
        yield Line(label, "could not be judged" if unjudged else added)
    elif first is not None:
        yield Line(label, f"not known: {plain(report.skipped.get('injected', 'injected mode was not run'))}")
    for module in report.glue:
        yield Line(label, f"{plain(module_name(module))}: its parts agree, so the fault is in the code between them")


def _whose(report: Report) -> Iterator[Line]:
    """Which tensors are to be looked at."""
    if report.suspects:
        yield Line("suspect tensors", listed(map(plain, report.suspects), _NAMES))
    if report.record:
        yield Line("record", plain(report.record, 1024))
    if report.parameters and report.block:
        short = [plain(name.removeprefix(f"{report.block}.")) for name in report.parameters]
        yield Line("parameters", f"{plain(report.block)}: {listed(short, _NAMES)}")


def _weights(report: Report) -> Iterator[Line]:
    same = report.weights.same
    says = "state_dict" in report.made
    if same is False:
        yield Line("weights", "not those that the capture was made of (--other-weights)")
    elif same is None and report.weights.path is not None:
        why = "the weights have no exact record" if says else "it does not say"
        doubt = f"not known whether the capture was made of these: {why}"
        if report.passed is False and is_off_at_once(report):
            doubt += ". The very first activation differs, so other weights are the likeliest cause"
        yield Line("weights", doubt)
    elif same and report.passed is False:
        yield Line("weights", "those that the capture was made of")
    elif report.passed is False and is_off_at_once(report):
        yield Line("weights", "the very first activation differs: the likeliest cause is a capture of other weights")


def is_off_at_once(report: Report) -> bool:
    """The first activation that was compared is beyond its limit: nothing ever agreed."""
    return report.first is not None and report.first is report.modes["propagated"][0]


def next_steps(report: Report) -> Iterator[str]:
    """Commands that tell more of a report that did not pass; none where it is not known which files were compared."""
    if report.weights.path is None or report.reference is None:
        return
    model, reference = (shlex.quote(plain(str(path), 1024)) for path in (report.weights.path, report.reference))
    if report.weights.same is not True and is_off_at_once(report):
        yield how_to_capture(report.made)
    if report.suspects and not report.weights.converted:
        yield f"converter convert OFFICIAL.pth {model} --force  # writes it as recorded"
    if not report.weights.converted:
        yield f"converter diff OFFICIAL.pth {model}  # which tensors are not those of the source"
    if report.first is None or report.culprits or "injected" in report.modes:
        return
    if "injected" not in report.skipped:
        again = " --other-weights" if report.weights.same is False else ""
        yield f"converter parity {model} --reference {reference} --mode injected{again}  # which block is off by itself"
    elif is_official(report.made):
        yield "python capture_official.py ... --full  # a capture that shows which block is off by itself"
    else:
        yield "converter capture REFERENCE --dst whole.safetensors  # which shows which block is off by itself"
