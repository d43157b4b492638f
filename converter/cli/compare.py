"""`converter compare`: what two models computed of the same inputs, recorded by a few lines of one's own."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.job import as_table, code, page, prose, summarize, summary_option, tells_failures
from converter.cli.output import PATH, cut, print_json, reports
from converter.cli.places import Place, places
from converter.display import counted, figure, plain
from converter.errors import CaptureError

if TYPE_CHECKING:
    from converter.parity.outputs import Compared, Output, Unshown

_EPILOG = """\b
Examples:
  converter compare --template > record.py
  converter compare one-outputs.safetensors other-outputs.safetensors
  converter compare a.safetensors b.safetensors --pair tokens=last_hidden_state
\b
A is what is compared with. Both are files of named arrays: what record.py
writes, a capture, any other safetensors file, or a dict of torch.save. Nothing
in them is executed. Record in float64: there the limit is a relative error of
1e-10, and in any other type --gate has to say. docs/new-model.md has an example.
\b
Exit codes: 0 within every limit, 1 not, 8 could not be compared or judged;
others as in 'converter --help'."""


def _print_template(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        import converter.parity

        click.echo((Path(converter.parity.__file__).parent / "recorder.py").read_text(encoding="utf-8"), nl=False)
        context.exit()


def _pair(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Option callback: each A_NAME=B_NAME."""
    for value in values:
        if value.count("=") != 1 or not all(value.split("=")):
            raise click.BadParameter(f"{value!r} is not a pair of names; write tokens=last_hidden_state")
    return tuple((value.split("=")[0], value.split("=")[1]) for value in values)


@click.command(epilog=_EPILOG)
@places(
    Place("a", "A", ("--src",), "Outputs of the model to compare with.", PATH),
    Place("b", "B", ("--dst",), "Outputs of the other one.", PATH),
)
@click.option(
    "--pair",
    "pairs",
    metavar="A_NAME=B_NAME",
    multiple=True,
    callback=_pair,
    help="Compare this output of A with that of B; may be repeated, and then these alone are compared.",
)
@click.option(
    "--gate",
    help="Another tolerance: a relative error like 1e-8, or 6x the captured model's own error, where A is a capture.",
)
@click.option(
    "--template",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_template,
    help="Print a Python file that records a torch model's outputs, and stop.",
)
@summary_option
@reports
@tells_failures("a", "b")
def compare(a: Path, b: Path, pairs: tuple[tuple[str, str], ...], gate: str | None, as_json: bool) -> None:
    """Compare the outputs of two models, recorded in the files A and B."""
    from converter.checkpoint import open_checkpoint
    from converter.parity.outputs import compare_outputs

    with open_checkpoint(a) as first, open_checkpoint(b) as second:
        if a.samefile(b):
            raise CaptureError(
                f"{a} and {b} are the same file, which proves nothing; record each model in its own file"
            )
        found = compare_outputs(first, second, pairs, gate)
    summarize(lambda: _markdown(found, a, b))
    if as_json:
        print_json(_json(found, a, b))
    else:
        click.echo("\n".join(_text(found, a, b)))
    sys.exit({True: 0, False: 1, None: CaptureError.exit_code}[found.passed])


def _verdict(passed: bool | None) -> str:
    return {True: "same", False: "DIFFERENT", None: "could not be judged"}[passed]


def _text(found: Compared, a: Path, b: Path) -> list[str]:
    from converter.parity.outputs import worst_first

    verdicts = [output.passed for output in found.outputs]
    lines = [
        _verdict(found.passed),
        *(f"but {sentence}" for sentence in _unshown(found) if found.passed),
        f"{counted(len(verdicts), 'output')}: {verdicts.count(True)} within the limit, {verdicts.count(False)} beyond, "
        f"{verdicts.count(None)} not judged",
    ]
    lines += cut(["\n".join(_lines(output)) for output in worst_first(found.outputs)])
    lines += [f"not compared: {plain(name)}" for name in found.left]
    lines.append(f"inputs: {counted(found.inputs, 'tensor')}, the same in both" if found.inputs else
                 "inputs: not recorded in both files, so they may have differed")  # fmt: skip
    lines.append(f"limit: {found.gate} ({found.gate.reason})")
    return [*lines, f"A: {plain(str(a), 1024)}", f"B: {plain(str(b), 1024)}"]


def _unshown(found: Compared) -> list[str]:
    """What outputs cannot show, and what to do about it."""

    def some(of: Unshown) -> str:
        return f"{of.count} of the {of.of} tensors of the weights (such as {' and '.join(map(plain, of.first[:2]))})"

    said = []
    if found.alike:
        said += [
            f"{some(found.alike)} hold the numbers of another one, as zeros and ones do: a table that exchanges them "
            "passes as well. Record with trained weights, or random numbers in every tensor"
        ]
    if found.unreached:
        said += [f"{some(found.unreached)} have no part in these outputs of B. Record more outputs to compare them"]
    return said


def _markdown(found: Compared, a: Path, b: Path) -> str:
    from converter.parity.outputs import worst_first

    lines = [("A", str(a)), ("B", str(b)), ("limit", f"{found.gate} ({found.gate.reason})")]
    lines += [("not shown", sentence) for sentence in _unshown(found)]
    rows = [[_verdict(o.passed), code(o.a), code(o.b), prose(o.why)] for o in worst_first(found.outputs)]
    outputs = as_table(["verdict", "in A", "in B", "why"], rows, "outputs")
    return page(f"converter compare {a} {b}", _verdict(found.passed), lines, outputs)


def _lines(output: Output) -> list[str]:
    name = plain(output.a) if output.a == output.b else f"{plain(output.a)} = {plain(output.b)}"
    lines = [f"  {name} {output.shape} {output.dtype}: {output.why}: {_verdict(output.passed)}"]
    if output.passed is not True and output.max_abs and output.values is not None:
        at = ", ".join(map(str, output.worst or ()))
        lines.append(
            f"    largest difference {figure(output.max_abs)} at [{at}]: {output.values[0]!r} in A, "
            f"{output.values[1]!r} in B"
        )
    if output.passed is False and output.relative is not None and output.relative < 1e-3:
        lines.append(
            "    so little is hardly a wrong weight: look for another epsilon, another GELU or a part in float32"
        )
    return lines


def _json(found: Compared, a: Path, b: Path) -> dict[str, Any]:
    """JSON has no infinity: an error beyond all numbers is null, as one that is not known."""

    def shown(output: Output) -> dict[str, Any]:
        numbers = {key: None if value == math.inf else value for key, value in asdict(output).items()}
        return {"passed": output.passed, "why": output.why, **numbers}

    return {
        "verdict": _verdict(found.passed),
        "passed": found.passed,
        "a": str(a),
        "b": str(b),
        "inputs": found.inputs,
        "gate": {"text": str(found.gate), "reason": found.gate.reason, "looser": found.gate.looser},
        "outputs": [shown(output) for output in found.outputs],
        "not_compared": list(found.left),
        "weights_alike": asdict(found.alike) if found.alike else None,
        "weights_unreached": asdict(found.unreached) if found.unreached else None,
    }
