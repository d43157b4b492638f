"""A run of `converter detect`: picture by picture, each told and kept as soon as it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import click

from converter import __version__
from converter.cli.detections import Entry, Results, as_csv, as_json_line, as_text, csv_header
from converter.cli.families import family_of_weights, load_subject, open_weights
from converter.cli.output import done_with, is_read, note, print_json, progress
from converter.cli.sources import locate
from converter.display import counted, file_name
from converter.errors import ModelError
from converter.writing.records import read_record

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.cli.detect import Options
    from converter.cli.detect_folder import Drawings
    from converter.cli.pictures import Picture
    from converter.parity.family import Detector, Query


def find_and_tell(
    model_source: str, pictures: Sequence[Picture], folder: Drawings | None, options: Options
) -> Sequence[Entry]:
    """All that the command does once it knows the pictures. The weights are loaded when a picture has been read."""
    located = locate(model_source, quiet=options.format == "json")
    model = located.path
    with open_weights(model, options.root) as checkpoint:
        family = family_of_weights(model, checkpoint)
        prompt = family.prompt(options.names or options.prompt, options.caption, options.spans, options.phrases)
        query = family.query(prompt, model, read_record(model, checkpoint, "config")["config"], options.vocab)

        @cache
        def load() -> tuple[Detector, Any]:
            how = (options.device, options.dtype, options.tf32, options.threads)
            detector = family.detector(load_subject(model, checkpoint, *how).model, model, options.vocab)
            return detector, detector.encode(query.prompt)

        done: dict[str, Entry] = {}
        if folder is not None:
            done = folder.done(_settings(checkpoint, query, options), pictures)
            if done:
                said = f"{len(done)} of {counted(len(pictures), 'picture')} are done already"
                note(f"{file_name(folder.path)}: {said}; going on")
        run = Run(query, load, folder, options, pictures, done)
        with run.interruptible():
            for entry in run.entries():
                run.tell(entry)
                if folder is None and not is_read():  # nothing else is there to be done
                    break
    about = {
        "model": located.origin["reference"] if located.origin else str(model),
        "captions": list(query.captions),
        "threshold": options.threshold,
    }
    results = Results(about, query.phrases, pictures, run.found)
    if folder is not None:
        with run.interruptible():
            is_whole = not any("error" in entry for entry in run.found)
            on_done = done_with(str(folder.path)) if is_whole else lambda: None
            folder.finish(results.files(options.format or "json"), on_done)
    if options.format == "json":
        print_json(results.document())
    elif options.format == "coco":
        click.echo(json.dumps(results.coco()))
    return run.found


def _settings(checkpoint: Checkpoint, query: Query, options: Options) -> dict[str, Any]:
    """What results depend on, besides the pictures: those of a run that was stopped are of use with the same alone."""
    from converter.checkpoint.hashes import tensor_hashes
    from converter.writing.ledger import digest_of_checkpoint

    return {
        "converter": __version__,
        "model": digest_of_checkpoint(checkpoint, tensor_hashes(checkpoint)),
        "prompt": {"captions": list(query.captions), "phrases": list(query.phrases)},
        "reading": query.facts,
        **{
            name: getattr(options, name) for name in ("threshold", "max_detections", "batch", "device", "dtype", "tf32")
        },
        "drawings": None if options.no_drawings else {"line_width": options.line_width},
    }


@dataclass(slots=True)
class Run:
    """The pictures on their way to entries.

    load  the detector, and the prompt as it has encoded it
    done  entries of an earlier run, by the pictures' names
    """

    query: Query
    load: Callable[[], tuple[Detector, Any]]
    folder: Drawings | None
    options: Options
    pictures: Sequence[Picture]
    done: Mapping[str, Entry]
    found: list[Entry] = field(default_factory=list)

    def entries(self) -> Iterator[Entry]:
        """What is found in each picture, or why it cannot be used, in their order. ModelError of the only one.

        Batches begin at the same pictures whatever was done before, so that it is found as it would have been.
        """
        size = self.options.batch
        with progress(len(self.pictures), "detecting", " pictures") as advance:
            for begin in range(0, len(self.pictures), size):
                batch = self.pictures[begin : begin + size]
                is_done = all(picture.name in self.done for picture in batch)
                for entry in (self.done[picture.name] for picture in batch) if is_done else self._detect(batch):
                    self.found.append(entry)
                    yield entry
                    advance(1)

    def _detect(self, batch: Sequence[Picture]) -> Iterator[Entry]:
        """Run a batch, and keep what is found."""
        images: dict[str, Any] = {}
        failed: dict[str, str] = {}
        stamps = {picture.name: picture.stamp() for picture in batch}
        for picture in batch:
            try:
                with picture.opened() as path:
                    images[picture.name] = self.query.read(path)
            except ModelError as error:
                if len(self.pictures) == 1:
                    raise
                failed[picture.name] = str(error)
        found = self._found_in(images)
        for picture in batch:
            name = picture.name
            if name in self.done:
                yield self.done[name]
                continue
            entry: Entry = {"image": name}
            if name in failed:
                entry["error"] = failed[name]
            else:
                entry |= {"width": found[name].width, "height": found[name].height, **found[name].as_lists()}
            if self.folder is not None:
                draw = partial(self._draw, images.get(name), found.get(name))
                self.folder.keep_drawn(picture, stamps[name], entry, draw)
            yield entry

    def _found_in(self, images: Mapping[str, Any]) -> dict[str, Any]:
        """What is found in each. Run at once are those of one size to the model: it sees what fills up smaller ones."""
        alike: dict[tuple[int, int], list[str]] = {}
        for name, image in images.items():
            alike.setdefault(self.query.size(image), []).append(name)
        found: dict[str, Any] = {}
        for names in alike.values():
            detector, prompt = self.load()
            some = [images[name] for name in names]
            limits = (self.options.threshold, self.options.max_detections)
            found |= zip(names, detector.detect(some, prompt, *limits), strict=True)
        return found

    def _draw(self, image: Any, found: Any) -> Any:
        return self.load()[0].draw(image, found, self.options.line_width)

    def tell(self, entry: Entry) -> None:
        """Print an entry, where the format has something to print for each. Errors go to stderr."""
        from tqdm import tqdm

        with tqdm.external_write_mode():  # which takes the bar away meanwhile
            if "error" in entry:
                click.echo(f"error: {entry['error']}", err=True)
            if self.options.format == "csv":
                click.echo((csv_header() if len(self.found) == 1 else b"") + as_csv(entry), nl=False)
            elif self.options.format == "jsonl":
                click.echo(as_json_line(entry), nl=False)
            elif self.options.format is None and "error" not in entry:
                click.echo(as_text(entry), nl=False)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Say what is done where the run ends too early."""
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._state()) from None
        except Exception:
            if self.folder is not None and self.folder.kept:
                click.echo(self._state(), err=True)
            raise

    def _state(self) -> str:
        count = len(self.found) if self.folder is None else self.folder.kept
        of = f"{count} of {counted(len(self.pictures), 'picture')}"
        if not count:
            return f"{of} are done"
        if self.folder is not None:
            again = "the same command goes on" + (", without --force" if self.folder.force else "")
            return f"{of} are done and kept in {file_name(self.folder.path)}; {again}"
        lost = ", but lost" if self.options.format in ("json", "coco") else " and printed"
        return f"{of} are done{lost}; with --out FOLDER they are kept, and the same command goes on"
