"""`converter evaluate`: how good a model's boxes are, on a data set."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from converter.cli.output import PATH, PREPARE, reports
from converter.cli.places import places, source
from converter.cli.run_options import JOINED, MODEL, root, run_options

_EPILOG = f"""{MODEL}
{JOINED}
Instead of MODEL, a file of predictions in COCO's results format is measured.

\b
Examples:
  converter evaluate glip-t/ --dataset coco --images coco/val2017 --out coco-zero-shot
  converter evaluate glip-t/ --dataset coco --images coco/val2017 --dry-run
  converter evaluate org/glip-l --dataset lvis --images coco --annotations lvis_v1_minival.json --device cuda
  converter evaluate glip-t/ --dataset odinw --images odinw --out odinw-zero-shot
  converter evaluate glip-t/ --dataset mine.json --images pictures --captions captions.json
  converter evaluate half/ --against glip-t/ --dataset coco --images coco/val2017
  converter evaluate predictions.json --against theirs.json --dataset coco --annotations instances_val2017.json
  torchrun --nproc-per-node 8 -m converter evaluate glip-t/ --dataset coco --images coco/val2017 --device cuda --out x
\b
With --out, a run that was stopped goes on when the same command is given again.
Exit codes: 0 done, 1 compared (--against) and not shown to be equal, 7 the data set
cannot be used, or pictures of it (the others are done); others as in
'converter --help'."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. `changed`: settings of the protocol, by name."""

    model_source: str
    dataset: str
    images: Path | None
    annotations: Path | None
    limit: int | None
    protocol: str
    changed: dict[str, str]
    captions: Path | None
    against: str | None
    record: bool
    dry_run: bool
    vocab: Path | None
    root: str | None
    batch: int
    workers: int
    out: Path | None
    force: bool
    device: str
    dtype: str
    tf32: bool
    threads: int | None
    as_json: bool


def _changes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Option callback: NAME=VALUE, each once."""
    changed: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or name in changed:
            raise click.BadParameter(f"{text!r}: write NAME=VALUE, each name once")
        changed[name] = value
    return changed


def _one_answers(command: Callable[..., None]) -> Callable[..., None]:
    """Of several processes the first alone prints JSON, of errors, too."""

    def prepare(given: dict[str, Any]) -> None:
        given["as_json"] = given["as_json"] and os.environ.get("RANK", "0") == "0"

    setattr(command, PREPARE, prepare)
    return command


@click.command(epilog=_EPILOG)
@places(source("The model: a path, org/name, or hf://org/name/file.pth.", "MODEL", "model_source"))
@click.option(
    "--dataset",
    required=True,
    metavar="NAME",
    help="coco, lvis, odinw, odinw-prompted, or annotations of your own in COCO's format.",
)
@click.option("--images", type=PATH, help="The folder that the file names in the annotations begin at.")
@click.option("--annotations", type=PATH, help="Of coco and lvis. Default: COCO's own beside --images.")
@click.option("--limit", type=click.IntRange(1), help="Take the first pictures only, by their ids.")
@click.option("--protocol", default="official", show_default=True, help="By whose rules: official or mmdet.")
@click.option(
    "--setting",
    "changed",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_changes,
    help="Change one choice of the protocol. Repeatable.",
)
@click.option("--captions", type=PATH, help="JSON that says how captions name classes.")
@click.option("--against", metavar="B", help="Compare with another model, or with predictions in COCO's format.")
@click.option("--record", is_flag=True, help="Keep the result beside MODEL, for package and publish.")
@click.option("--dry-run", is_flag=True, help="Check everything, tell what would be asked, and run nothing.")
@click.option(
    "--vocab",
    type=PATH,
    help="vocab.txt or tokenizer.json. Default: in MODEL's folder, else BERT base uncased's.",
)
@root
@click.option(
    "--batch", type=click.IntRange(1, 1024), default=1, show_default=True, help="How many to run at once, of one size."
)
@click.option(
    "--workers", type=click.IntRange(0, 256), default=2, show_default=True, help="Processes that read pictures."
)
@click.option("-o", "--dst", "--out", "out", type=PATH, help="Folder to write predictions, record and page to.")
@click.option("--force", is_flag=True, help="Write into a folder that is not empty, and start over.")
@run_options("float32", "Batches at once, a thread each. Default: one for each processor; 2 on a GPU.")
@reports
@_one_answers
def evaluate(as_json: bool, **values: Any) -> None:
    """Measure how good the boxes of MODEL are on a data set: AP and AR, by the rules of its authors."""
    options = Options(**values, as_json=as_json)
    _check(options)
    from converter.cli.evaluate_run import evaluate_and_tell

    code = evaluate_and_tell(options)
    if code:
        sys.exit(code)


def _check(options: Options) -> None:
    if options.annotations is not None and options.dataset not in ("coco", "lvis"):
        raise click.UsageError("--annotations is for --dataset coco and lvis; give your own file as --dataset FILE")
    if options.limit is not None and options.record:
        raise click.UsageError("--record keeps what is measured on the whole data set; it does not go with --limit")
    if options.dataset == "lvis" and options.annotations is None:
        raise click.UsageError("--dataset lvis needs --annotations, such as lvis_v1_minival_inserted_image_name.json")
