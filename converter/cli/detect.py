"""`converter detect`: boxes of what a prompt names, in pictures."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from converter.cli.output import PATH, note, reports
from converter.cli.places import Place, places, source
from converter.cli.run_options import JOINED, MODEL, root, run_options
from converter.errors import ModelError

FORMATS = ("json", "jsonl", "csv", "coco")

_EPILOG = f"""{MODEL}
{JOINED}

\b
IMAGE is a file, a folder, a pattern in quotes ('photos/*.jpg'), an http(s)
address, or @LIST, a file with one of these on each line (@- is stdin).

\b
Examples:
  converter detect glip-t/ street.jpg --prompt "person. traffic light."
  converter detect org/glip-t street.jpg --prompt "person."
  converter detect official.pth street.jpg --prompt "person."
  converter detect glip-t.safetensors photos/ --prompt "dog. cat." --out found/
  converter detect glip-t/ 'photos/2024-*.jpg' @more.txt --prompt "dog." --format csv > dogs.csv
  converter detect glip-t/ street.jpg --name "U.S. flag" --name "traffic light"
  converter detect glip-t/ park.jpg --caption "a person next to the umbrella" --phrase "a person" --phrase umbrella
\b
Boxes are x1 y1 x2 y2 in pixels of the upright picture; labels count the phrases
from 1. Class names are joined by '. ', as the reference does to evaluate.
With --out, a run that was stopped goes on when the same command is given again.
Exit codes: 0 done, 7 a picture or the prompt cannot be used (the other pictures
are done); others as in 'converter --help'."""


class _Score(click.FloatRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        score = super().convert(value, param, ctx)
        if math.isnan(score):  # which no range excludes
            self.fail("nan is not a score", param, ctx)
        return float(score)


def _given_once(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Option callback: the value. Of two the last would win, and names be lost in silence."""
    if len(values) > 1:
        names = " ".join(value.strip(". ") + "." for value in values)
        raise click.BadParameter(f"it is given {len(values)} times; write all names in one: {names!r}")
    return values[0] if values else None


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beside the model and the pictures. `format`: None for text."""

    prompt: str | None
    names: tuple[str, ...]
    caption: str | None
    spans: tuple[str, ...]
    phrases: tuple[str, ...]
    vocab: Path | None
    root: str | None
    threshold: float
    max_detections: int
    recursive: bool
    batch: int
    format: str | None
    out: Path | None
    no_drawings: bool
    line_width: int | None
    force: bool
    device: str
    dtype: str
    tf32: bool
    threads: int | None


@click.command(epilog=_EPILOG)
@places(
    source("The model: a path, org/name, or hf://org/name/file.pth.", "MODEL", "model_source"),
    Place("images", "IMAGE...", is_many=True),
)
@click.option(
    "--prompt",
    metavar="NAMES",
    multiple=True,
    callback=_given_once,
    help="Class names, a full stop after each: 'person. dog.'",
)
@click.option("--name", "names", multiple=True, help="A class name, which may hold full stops. Repeatable.")
@click.option("--caption", help="A sentence; --phrase says what to look for in it.")
@click.option("--phrase", "phrases", multiple=True, help="Words of --caption to look for. Repeatable.")
@click.option(
    "--span", "spans", multiple=True, metavar="FROM:TO", help="A phrase by its place in --caption, in characters."
)
@click.option(
    "--vocab",
    type=PATH,
    help="vocab.txt or tokenizer.json. Default: in MODEL's folder, else BERT base uncased's.",
)
@root
@click.option("--threshold", type=_Score(0, 1), default=0.5, show_default=True, help="Keep what scores above this.")
@click.option(
    "--max-detections",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Keep at most this many for each picture, the best.",
)
@click.option("--recursive", is_flag=True, help="Also take pictures from the folders inside a folder.")
@click.option(
    "--batch", type=click.IntRange(1, 1024), default=1, show_default=True, help="How many to run at once, of one size."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="Format of what is printed (default: text) and of the file in --out (default: json).",
)
@click.option("-o", "--dst", "--out", "out", type=PATH, help="Folder to write drawn pictures and a file of results to.")
@click.option("--no-drawings", is_flag=True, help="Write no pictures to --out.")
@click.option(
    "--line-width",
    type=click.IntRange(1, 1000),
    help="Width of the boxes' lines, in pixels. Default: by the picture's size.",
)
@click.option("--force", is_flag=True, help="Write into a folder that is not empty, and start over.")
@run_options("float32")
@reports
def detect(model_source: str, images: tuple[str, ...], as_json: bool, format_: str | None, **values: Any) -> None:
    """Find in each IMAGE what a prompt names, with MODEL, here or on the Hub (org/name, hf://org/name/file.pth)."""
    if as_json and format_ not in (None, "json"):
        raise click.UsageError(f"--json is --format json; give one of them, not also --format {format_}")
    options = Options(**values, format="json" if as_json else format_)
    _check_prompt(options)
    from converter.cli.detect_folder import Drawings
    from converter.cli.detect_run import find_and_tell
    from converter.cli.pictures import find_pictures

    pictures = find_pictures(images, recursive=options.recursive, without=options.out)
    with ExitStack() as stack:
        folder = None
        if options.out is not None:
            made = Drawings(options.out, pictures, force=options.force, draws=not options.no_drawings)
            folder = stack.enter_context(made)
        entries = find_and_tell(model_source, pictures, folder, options)
    scores = [entry["scores"] for entry in entries if "scores" in entry]
    if scores and not any(scores):
        note(f"nothing scores above {options.threshold}; a lower --threshold shows what comes near it")
    if failed := sum("error" in entry for entry in entries):
        if len(entries) > 1:
            note(f"{failed} of {len(entries)} pictures could not be used; the others are done")
        sys.exit(ModelError.exit_code)


def _check_prompt(options: Options) -> None:
    given = [options.prompt is not None, bool(options.names), options.caption is not None]
    if given.count(True) != 1:
        raise click.UsageError("give one of --prompt, --name and --caption")
    is_marked = bool(options.spans or options.phrases)
    if options.caption is None and is_marked:
        raise click.UsageError("--phrase and --span need a --caption; give one, or give names by --name")
    if options.caption is not None and not is_marked:
        raise click.UsageError("--caption needs a --phrase for each part of it to look for")
