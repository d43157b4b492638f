"""The folder that `converter detect` writes to: drawings, results, and what is done of a run that was stopped."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

from converter.cli.detections import Entry, is_entry
from converter.cli.pictures import Picture
from converter.display import file_name, listed, plain
from converter.errors import DestinationError
from converter.writing.destination import writing
from converter.writing.journal import Journal, differences
from converter.writing.names import check_folder_name
from converter.writing.staging import write_whole

JOURNAL = "detections.partial.jsonl"  # there until all is done
_QUALITY = 95  # of a JPEG
_LONGEST = 200  # bytes of a drawing's name without its suffix


class ResultFolder:
    """A context that keeps other runs out of the folder once it has results."""

    def __init__(self, path: Path, pictures: Sequence[Picture], *, force: bool, draws: bool) -> None:
        """DestinationError if something would be lost, or nothing can be written there; nothing is made yet."""
        self.path = path
        self.force = force
        self.kept = 0  # pictures that are done
        self._draws = draws
        self._settings: Mapping[str, Any] = {}
        check_folder_name(path, "drawings and results are written to")
        with writing(path):
            if not path.parent.is_dir():
                raise DestinationError(f"{file_name(path.parent)} is not a folder to put another into; make it first")
            there = [*path.iterdir()] if path.exists() else []
            if not os.access(path if path.exists() else path.parent, os.W_OK | os.X_OK):
                raise DestinationError(f"{file_name(path)} cannot be written: Permission denied; choose another folder")
        self._journal = Journal(path / JOURNAL, begin_anew=force)
        if not force and self._journal.settings is None and there not in ([], [path / JOURNAL]):
            self._journal.close()
            raise DestinationError(f"{file_name(path)} is not empty; --force writes into it")
        self._places = self._named(pictures) if draws else {}

    def __enter__(self) -> ResultFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._journal.close()

    def resume(self, settings: Mapping[str, Any], pictures: Sequence[Picture]) -> dict[str, Entry]:
        """What an earlier run did with the same settings, by the pictures' names, where their files are the same.

        DestinationError if it had other settings.
        """
        self._settings = json.loads(json.dumps(settings))
        then = self._journal.settings
        if then is None:
            return {}
        if changed := differences(then, self._settings):
            raise DestinationError(
                f"{file_name(self.path)} holds results of a run that was stopped, and that differed in "
                f"{listed(map(plain, changed))}. Give the same options as then, or another folder; --force starts over."
            )
        stamps = {picture.name: picture.stamp() for picture in pictures}
        done = {}
        for result in filter(is_entry, self._journal.results):
            name, stamp = result["image"], result.pop("stamp", None)
            if name in stamps and stamps[name] == stamp and "error" not in result and self._is_drawn(result):
                done[name] = result
        self.kept = len(done)
        return done

    def keep(self, picture: Picture, stamp: list[int] | None, entry: Entry, drawing: Callable[[], Any]) -> None:
        """Write what was found in a picture, drawn first: what is in the journal is all there. DestinationError."""
        if not self.path.exists() or self._journal.settings is None:
            with writing(self.path):
                self.path.mkdir(exist_ok=True)
            self._journal.begin(self._settings)
        if self._draws and "error" not in entry:
            place = self._places[picture.name]
            content = BytesIO()
            drawing().save(
                content, **({"format": "JPEG", "quality": _QUALITY} if picture.is_jpeg else {"format": "PNG"})
            )
            write_whole(place, content.getvalue())
            entry["drawing"] = str(place)
        self._journal.add({**entry, "stamp": stamp})
        self.kept += 1

    def finish(self, files: Mapping[str, bytes], on_done: Callable[[], object]) -> None:
        """Write the results; `on_done` is called once all are there. DestinationError."""
        with writing(self.path):
            self.path.mkdir(exist_ok=True)
        *others, last = files
        for name in others:
            write_whole(self.path / name, files[name])
        write_whole(self.path / last, files[last], on_done=on_done)
        self._journal.remove()

    def _is_drawn(self, entry: Entry) -> bool:
        place = self._places.get(entry["image"])
        return place is None or (entry.get("drawing") == str(place) and place.is_file())

    def _named(self, pictures: Sequence[Picture]) -> dict[str, Path]:
        """Where each drawing goes: names of their own, also where capitals count for nothing."""
        inputs = set()
        for picture in pictures:
            with suppress(OSError):
                status = os.stat(picture.name)
                inputs.add((status.st_dev, status.st_ino))
        places: dict[str, Path] = {}
        taken: set[str] = set()
        numbers: Counter[str] = Counter()
        for picture in pictures:
            suffix = ".jpg" if picture.is_jpeg else ".png"
            stem = _safe(picture.path.stem) if picture.is_remote else _short(picture.path.stem)
            name = stem + suffix
            while name.lower() in taken:
                numbers[stem.lower()] += 1
                name = f"{stem}-{numbers[stem.lower()] + 1}{suffix}"
            taken.add(name.lower())
            places[picture.name] = self.path / name
        with writing(self.path):
            for place in places.values():
                with suppress(FileNotFoundError):
                    status = os.stat(place)
                    if (status.st_dev, status.st_ino) in inputs:
                        raise DestinationError(f"{file_name(place)} is one of the pictures; choose another folder")
        return places


def _safe(stem: str) -> str:
    """A name of a host's as a file name."""
    return re.sub(r"[^\w-]+", "_", stem)[:100] or "picture"


def _short(stem: str) -> str:
    """A name that leaves room for a number, a suffix, and what is added to it while it is written."""
    name = os.fsencode(stem)
    return stem if len(name) <= _LONGEST else name[:_LONGEST].decode(errors="ignore")
