"""`converter capture`: what a converted model makes of some inputs, for comparing others with."""

from __future__ import annotations

from pathlib import Path

import click

from converter.cli.output import PATH, done_with, print_json, reports
from converter.cli.places import destination, places, source
from converter.cli.run_options import JOINED, MODEL, root, run_options
from converter.display import file_name, gigabytes
from converter.errors import DestinationError

_EPILOG = f"""{MODEL}
{JOINED}

\b
Examples:
  converter capture glip-t.safetensors --dst here.safetensors
  converter capture glip-t.safetensors --dst there.safetensors --inputs official-capture.safetensors
  converter capture glip-t.safetensors --dst small.safetensors --compact --errors float32,bfloat16
\b
The official code is captured by scripts/capture_official.py, in its own
environment; the inputs of that capture, real images or not, can be used here."""


@click.command(epilog=_EPILOG)
@places(
    source("What to run.", "MODEL", "model", PATH),
    destination("Capture to write.", type=click.Path(path_type=Path, dir_okay=False)),
)
@click.option(
    "--inputs",
    type=PATH,
    help="Capture whose images and captions to use. Default: two small synthetic images.",
)
@click.option("--compact", is_flag=True, help="Keep a few hundred numbers of each activation instead of all.")
@click.option(
    "--errors",
    default="float32",
    show_default=True,
    help="Comma-separated dtypes to record this model's own error in: tolerances in these dtypes are multiples of it.",
)
@root
@click.option("--name", help="Name of the capture. Default: that of the file.")
@click.option("--force", is_flag=True, help="Replace --dst.")
@run_options("float64")
@reports
def capture(
    model: Path,
    destination: Path,
    inputs: Path | None,
    compact: bool,
    errors: str,
    root: str | None,
    name: str | None,
    force: bool,
    device: str,
    dtype: str,
    tf32: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Capture every tapped activation of MODEL."""
    wanted = [item for item in errors.split(",") if item]
    if unknown := set(wanted) - {"float32", "bfloat16", "float16"}:
        raise click.BadParameter(f"{min(unknown)!r} is not one of float32, bfloat16, float16", param_hint="--errors")
    if destination.suffix != ".safetensors":
        raise DestinationError(f"{destination.name}: captures are safetensors; let --dst end in '.safetensors'")
    from converter.cli.families import load_subject, open_weights
    from converter.mapping.load import load_table
    from converter.writing.destination import check_destination
    from converter.writing.state_dict import state_dict_of

    sources = [*(model.iterdir() if model.is_dir() else [model]), *([inputs] if inputs else [])]
    check_destination(destination, force=force, inputs=sources)

    with open_weights(model, root) as checkpoint:
        subject = load_subject(model, checkpoint, device, dtype, tf32, threads)
        state_dict = state_dict_of(checkpoint, load_table(subject.family.table))
        checkpoint.verify_unchanged()
    from converter.parity.capture import load_capture, write_capture
    from converter.parity.record import inputs_of, record

    if inputs is None:
        given = subject.family.sample_inputs(subject.config)
    else:
        with load_capture(inputs) as other:
            subject.family.inputs(other)  # refuses what the model cannot be run on
            given = inputs_of(other)
    tensors, facts = record(subject, given, name or destination.stem, wanted)
    facts |= {"state_dict": state_dict} if state_dict else {}
    write_capture(destination, tensors, facts, compact=compact, force=force, on_done=done_with(file_name(destination)))
    size = destination.stat().st_size
    if as_json:
        print_json({"destination": str(destination), "bytes": size, "tensors": len(tensors), **facts})
        return
    click.echo(f"written: {destination}, {len(tensors)} tensors, {gigabytes(size)}")
