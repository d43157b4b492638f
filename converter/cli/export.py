"""`converter export`: a model as an ONNX file, which other runtimes run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import done_with, note, print_json, progress, reports
from converter.cli.places import destination, places, source
from converter.cli.run_options import MODEL, root
from converter.display import counted, file_name, gigabytes, listed
from converter.errors import DestinationError, ModelError

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.mapping.entries import Tap
    from converter.onnx.file import About
    from converter.parity.graph import Graph
    from converter.parity.subject import Subject

_EPILOG = f"""{MODEL}

\b
Examples:
  converter export glip-t.safetensors --dst glip-t.onnx
  converter export glip-t.safetensors glip-t.onnx --size 800x1344 --tokens 256
  converter export glip-t.safetensors glip-t.onnx --taps
  converter export glip-t.safetensors glip-t.onnx --with-detection
  converter parity glip-t.onnx --reference captures/glip-t.safetensors
\b
It takes minutes: with --size a third of the time that any size takes. Inputs and
outputs are in docs/onnx.md."""


def _size(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    """Option callback: `800x1344`, or `dynamic` as (0, 0)."""
    if value == "dynamic":
        return 0, 0
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value, re.ASCII)
    if not found or not int(found[1]) or not int(found[2]):
        raise click.BadParameter(f"{value!r} is neither height x width in pixels, as 800x1344, nor 'dynamic'")
    return int(found[1]), int(found[2])


@click.command(epilog=_EPILOG)
@places(
    source("The model: a path, org/name, or hf://org/name/file.pth.", "MODEL", "model_source"),
    destination("File to write, with the suffix .onnx."),
)
@root
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@click.option("--opset", type=click.IntRange(18, 23), help="Of ONNX. Default: 20, with --gathers 18.")
@click.option("--tokens", type=click.IntRange(1), help="Length of captions. Default: any.")
@click.option(
    "--size",
    metavar="HxW|dynamic",
    callback=_size,
    default="dynamic",
    show_default=True,
    help="Of pictures; 'dynamic' is any multiple of 32.",
)
@click.option("--taps", is_flag=True, help="Also give the activations that captures have, to be compared.")
@click.option("--with-detection", is_flag=True, help="Also give boxes: what is found of phrases that are asked for.")
@click.option("--gathers", is_flag=True, help="For runtimes without DeformConv: more memory, and slower.")
@click.option("--external-data", is_flag=True, help="Weights in a file of their own, as is done above 2 GB.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@reports
def export(
    model_source: str,
    destination: Path,
    root: str | None,
    dtype: str,
    opset: int | None,
    tokens: int | None,
    size: tuple[int, int],
    taps: bool,
    with_detection: bool,
    gathers: bool,
    external_data: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write MODEL, here or on the Hub (org/name, hf://org/name/file.pth), as an ONNX file.

    Every weight in it has the bits that the model has in that dtype. `converter parity FILE.onnx` compares it, run by
    onnxruntime, with a capture.
    """
    opset = opset or (18 if gathers else 20)
    if opset < 19 and not gathers:
        raise click.UsageError(f"--opset {opset} has no DeformConv; give 19 or more, or --gathers")
    from converter.cli.families import load_subject, open_weights
    from converter.cli.sources import locate
    from converter.onnx.export import export
    from converter.onnx.file import needs_external, write_onnx

    path = locate(model_source, quiet=as_json).path
    with open_weights(path, root) as checkpoint:
        _check_destination(destination, checkpoint, force)
        _check_exportable(path, checkpoint)
        subject = load_subject(path, checkpoint, "cpu", dtype)
        graph = subject.family.graph(
            subject.model, size if any(size) else None, tokens, gathers=gathers, detection=with_detection
        )
        about = _about(path, checkpoint, subject, graph, opset, size, tokens)
    if dry_run:
        _tell(destination, (), about, as_json)
        return
    exported = export(subject, graph, _taps(subject, taps), opset, note)
    about = replace(about, outputs=exported.outputs, unused=exported.unused)
    external = external_data or needs_external(exported.model)
    note("writing it")
    with progress(exported.size, "writing") as advance:
        done = done_with(file_name(destination))
        options: Any = {"external": external, "force": force, "on_bytes": advance, "on_done": done}
        written = write_onnx(exported.model, about, destination, **options)
    _tell(destination, written, about, as_json)


def _taps(subject: Subject, all_of_them: bool) -> list[Tap]:
    """Those of the model's outputs, or all."""
    from converter.mapping.load import load_table

    taps = load_table(subject.family.table).bind(subject.config).taps
    return [tap for tap in taps if all_of_them or not tap.target]


def _check_destination(destination: Path, checkpoint: Checkpoint, force: bool) -> None:
    """Before any work."""
    from converter.onnx.file import data_name
    from converter.writing.destination import check_destination

    if destination.suffix != ".onnx":
        raise DestinationError(f"{file_name(destination)}: an ONNX file has the suffix .onnx; name it so")
    for path in (destination, destination.with_name(data_name(destination))):
        check_destination(path, force=force, inputs=[Path(file) for file in checkpoint.files], is_folder=False)


def _check_exportable(path: Path, checkpoint: Checkpoint) -> None:
    """ModelError, before a model is loaded, for one whose family does not export any."""
    from converter.cli.families import family_of_weights
    from converter.parity.family import Family

    family = family_of_weights(path, checkpoint)
    if type(family).graph is Family.graph:
        names = type(family).__name__.removesuffix("Family")
        raise ModelError(f"{file_name(path)}: models of the family {names} cannot be exported; GLIP can.")


def _about(
    path: Path,
    checkpoint: Checkpoint,
    subject: Subject,
    graph: Graph,
    opset: int,
    size: tuple[int, int],
    tokens: int | None,
) -> About:
    """What the file will say of itself, but for what is in it."""
    from converter import __version__
    from converter.checkpoint.hashes import tensor_hashes
    from converter.onnx.file import About
    from converter.parity.same_weights import state_dicts
    from converter.writing.ledger import digest_of_checkpoint
    from converter.writing.records import read_record

    with progress(checkpoint.size, "hashing") as advance:
        weights = digest_of_checkpoint(checkpoint, tensor_hashes(checkpoint, advance))
    return About(
        converter=__version__,
        torch=str(subject.settings["torch"]),
        model=str(read_record(path, checkpoint, "config")["model"]),
        config=subject.config,
        dtype=subject.dtype,
        opset=opset,
        size=size if any(size) else None,
        multiple=graph.multiple,
        tokens=tokens,
        table=subject.family.table,
        outputs={},
        weights=weights,
        state_dicts=state_dicts(path, checkpoint, subject.family),
        unused=(),
        asked=tuple(graph.asked),
        found=graph.found,
    )


def _tell(destination: Path, written: Sequence[Path], about: About, as_json: bool) -> None:
    """What was written, or would be."""
    sizes = {path.name: path.stat().st_size for path in written}
    if as_json:
        content = {"destination": str(destination), "written": bool(written), "files": sizes}
        keys = ("model", "dtype", "opset", "tokens", "outputs", "found", "weights", "unused")
        print_json(content | {"size": about.size and list(about.size)} | {key: getattr(about, key) for key in keys})
        return
    for name, count in sizes.items():
        click.echo(f"  {gigabytes(count):>10}  {name}")
    size = "any multiple of 32" if about.size is None else "x".join(map(str, about.size))
    tokens = "any" if about.tokens is None else about.tokens
    click.echo(f"{about.dtype}, opset {about.opset}; pictures: {size}; tokens: {tokens}")
    if about.asked:
        click.echo(f"gives boxes, and takes {listed(about.asked)} for it")
    if about.unused:
        click.echo(f"{counted(len(about.unused), 'weight')} that nothing uses left out: {listed(about.unused, 5)}")
    click.echo(f"written: {destination}" if written else "nothing written: dry run")
