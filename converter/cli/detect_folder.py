"""The folder that `converter detect` writes to: drawings, results, and what is done of a run that was stopped."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from converter.cli.detections import Entry, is_entry
from converter.cli.pictures import Picture
from converter.display import file_name
from converter.errors import DestinationError
from converter.writing.destination import writing
from converter.writing.results import ResultFolder
from converter.writing.staging import write_whole

JOURNAL = "detections.partial.jsonl"  # there until all is done
_QUALITY = 95  # of a JPEG
_LONGEST = 200  # bytes of a drawing's name without its suffix


class Drawings(ResultFolder):
    """The folder of results, with a drawing of each picture."""

    def __init__(self, path: Path, pictures: Sequence[Picture], *, force: bool, draws: bool) -> None:
        """DestinationError if something would be lost, or nothing can be written there; nothing is made yet."""
        super().__init__(path, JOURNAL, force=force)
        self.kept = 0  # pictures that are done
        self._draws = draws
        self._places = self._named(pictures) if draws else {}

    def done(self, settings: Mapping[str, Any], pictures: Sequence[Picture]) -> dict[str, Entry]:
        """What an earlier run did with the same settings, by the pictures' names, where their files are the same.

        DestinationError if it had other settings.
        """
        stamps = {picture.name: picture.stamp() for picture in pictures}
        done = {}
        for result in filter(is_entry, self.resume(settings)):
            name, stamp = result["image"], result.pop("stamp", None)
            if name in stamps and stamps[name] == stamp and "error" not in result and self._is_drawn(result):
                done[name] = result
        self.kept = len(done)
        return done

    def keep_drawn(self, picture: Picture, stamp: list[int] | None, entry: Entry, drawing: Callable[[], Any]) -> None:
        """Write what was found in a picture, drawn first: what is in the journal is all there. DestinationError."""
        self.begin()
        if self._draws and "error" not in entry:
            place = self._places[picture.name]
            content = BytesIO()
            drawing().save(
                content, **({"format": "JPEG", "quality": _QUALITY} if picture.is_jpeg else {"format": "PNG"})
            )
            write_whole(place, content.getvalue())
            entry["drawing"] = str(place)
        self.keep({**entry, "stamp": stamp})
        self.kept += 1

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
