"""`converter detect`: boxes of what a prompt names, in pictures."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import PATH, print_json, progress, reports
from converter.cli.places import Place, places, source
from converter.cli.run_options import JOINED, MODEL, root, run_options
from converter.display import plain
from converter.errors import DestinationError, ModelError

if TYPE_CHECKING:
    from converter.parity.family import Detector

_EPILOG = f"""{MODEL}
{JOINED}

\b
Examples:
  converter detect glip-t/ street.jpg --prompt "person. traffic light."
  converter detect org/glip-t street.jpg --prompt "person."
  converter detect official.pth street.jpg --prompt "person."
  converter detect glip-t.safetensors *.jpg --prompt "dog. cat." --vocab vocab.txt --out found/
  converter detect glip-t/ street.jpg --name "U.S. flag" --name "traffic light"
  converter detect glip-t/ park.jpg --caption "a person next to the umbrella" --span 2:8 --span 21:29 --json
\b
Boxes are x1 y1 x2 y2 in pixels of the upright picture; labels count the phrases
from 1. Class names are joined by '. ', as the reference does to evaluate.
Exit codes: 0 done, 7 a picture or the prompt cannot be used (the other pictures
are done); others as in 'converter --help'."""


class _Score(click.FloatRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        score = super().convert(value, param, ctx)
        if math.isnan(score):  # which no range excludes
            self.fail("nan is not a score", param, ctx)
        return float(score)


@click.command(short_help="Find things in pictures", epilog=_EPILOG)
@places(
    source("The model: a path, org/name, or hf://org/name/file.pth.", "MODEL", "model_source"),
    Place("images", "IMAGE...", type=PATH, is_many=True),
)
@click.option("--prompt", metavar="NAMES", help="Class names, a full stop after each: 'person. dog.'")
@click.option("--name", "names", multiple=True, help="A class name, which may hold full stops. Repeatable.")
@click.option("--caption", help="A sentence; its phrases are named by --span.")
@click.option("--span", "spans", multiple=True, metavar="FROM:TO", help="A phrase of --caption, in characters.")
@click.option(
    "--vocab",
    type=PATH,
    help="vocab.txt or tokenizer.json. Default: in MODEL's folder, else BERT base uncased from the Hub.",
)
@root
@click.option("--threshold", type=_Score(0, 1), default=0.5, show_default=True, help="Keep what scores above this.")
@click.option("-o", "--dst", "--out", "out", type=PATH, help="Folder to write drawn pictures and detections.json to.")
@click.option("--force", is_flag=True, help="Write into a folder that is not empty.")
@run_options("float32")
@reports
def detect(
    model_source: str,
    images: tuple[Path, ...],
    prompt: str | None,
    names: tuple[str, ...],
    caption: str | None,
    spans: tuple[str, ...],
    vocab: Path | None,
    root: str | None,
    threshold: float,
    out: Path | None,
    force: bool,
    device: str,
    dtype: str,
    tf32: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find in each IMAGE what a prompt names, with MODEL, here or on the Hub (org/name, hf://org/name/file.pth)."""
    _check_prompt(prompt, names, caption, spans)
    places = _places(out, images, force)
    from converter.cli.families import family_of_weights, load_subject, open_weights
    from converter.cli.sources import locate

    located = locate(model_source, quiet=as_json)
    model = located.path
    with open_weights(model, root) as checkpoint:
        wanted = family_of_weights(model, checkpoint).prompt(names or prompt, caption, spans)
        subject = load_subject(model, checkpoint, device, dtype, tf32, threads)
    detector = subject.family.detector(subject.model, model, vocab)
    with progress(len(images), "detecting", " pictures") as advance:
        entries = list(_entries(images, places, detector, wanted, threshold, advance))
    content = {
        "model": located.origin["reference"] if located.origin else str(model),
        "captions": [part.text for part in detector.captions(wanted)],
        "threshold": threshold,
        "images": entries,
    }
    if out is not None:
        _write(out, content)
    if as_json:
        print_json(content)
    else:
        _print(entries)
    problems = [entry["error"] for entry in entries if "error" in entry]
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    if problems:
        sys.exit(ModelError.exit_code)


def _write(out: Path, content: dict[str, Any]) -> None:
    from converter.writing.destination import writing
    from converter.writing.ledger import to_json
    from converter.writing.staging import write_whole

    with writing(out):
        out.mkdir(exist_ok=True)
    write_whole(out / "detections.json", to_json(content))


def _check_prompt(prompt: str | None, names: tuple[str, ...], caption: str | None, spans: tuple[str, ...]) -> None:
    if [prompt is not None, bool(names), caption is not None].count(True) != 1:
        raise click.UsageError("give one of --prompt, --name and --caption")
    if caption is None and spans:
        raise click.UsageError("--span names phrases of a --caption")
    if caption is not None and not spans:
        raise click.UsageError("--caption needs a --span for each phrase to look for")


def _entries(
    images: Sequence[Path],
    places: Sequence[Path | None],
    detector: Detector,
    prompt: Any,
    threshold: float,
    advance: Callable[[int], object],
) -> Iterator[dict[str, Any]]:
    """What is found in each picture, or why it cannot be used; ModelError of the only one."""
    for path, place in zip(images, places, strict=True):
        try:
            entry = _detect_in(path, detector, prompt, threshold, place)
        except ModelError as error:
            if len(images) == 1:
                raise
            entry = {"error": str(error)}
        yield {"image": str(path), **entry}
        advance(1)


def _detect_in(path: Path, detector: Detector, prompt: Any, threshold: float, place: Path | None) -> dict[str, Any]:
    """What is found in a picture, drawn to `place` where there is one. Raises ModelError."""
    from converter.writing.destination import writing
    from converter.writing.staging import write_whole

    picture = detector.read(path)
    found = detector.detect(picture, prompt, threshold)
    entry = {"width": found.width, "height": found.height, **found.as_lists()}
    if place is not None:
        drawing = detector.draw(picture, found)
        with writing(place.parent):
            place.parent.mkdir(exist_ok=True)
        picture_file = BytesIO()
        drawing.save(picture_file, format="PNG")
        write_whole(place, picture_file.getvalue())
        entry["drawing"] = str(place)
    return entry


def _places(out: Path | None, images: tuple[Path, ...], force: bool) -> list[Path | None]:
    """Where each drawing goes; nothing is made yet. DestinationError if something would be lost."""
    from converter.writing.destination import writing
    from converter.writing.names import check_folder_name

    if out is None:
        return [None] * len(images)
    check_folder_name(out, "drawings and detections.json are written to")
    with writing(out):
        if not out.parent.is_dir():
            raise DestinationError(f"{plain(str(out.parent), 1024)} is not a folder to put another into; make it first")
        if out.exists() and any(out.iterdir()) and not force:
            raise DestinationError(f"{plain(str(out), 1024)} is not empty; --force writes into it")
    places: list[Path | None] = []
    taken: set[str] = set()
    for path in images:
        name, number = f"{path.stem}.png", 1
        while name.lower() in taken:
            number += 1
            name = f"{path.stem}-{number}.png"
        taken.add(name.lower())
        place = out / name
        if place.exists() and any(other.exists() and place.samefile(other) for other in images):
            raise DestinationError(f"{plain(str(place), 1024)} is one of the pictures; choose another folder")
        places.append(place)
    return places


def _print(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        if "error" in entry:
            continue
        click.echo(f"{plain(entry['image'], 1024)}: {entry['width']}x{entry['height']}, {len(entry['boxes'])} found")
        for box, score, phrase in zip(entry["boxes"], entry["scores"], entry["phrases"], strict=True):
            corners = " ".join(f"{corner:8.1f}" for corner in box)
            click.echo(f"  {score:.3f}  {corners}  {plain(phrase)}")
        if "drawing" in entry:
            click.echo(f"  drawn: {plain(entry['drawing'], 1024)}")
