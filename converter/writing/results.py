"""A folder of results of a long run: what is done of a run that was stopped is kept in it until all of it is there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from converter.display import file_name, listed, plain
from converter.errors import DestinationError
from converter.writing.destination import writing
from converter.writing.journal import Journal, differences
from converter.writing.names import check_folder_name
from converter.writing.staging import write_whole


class ResultFolder:
    """A context that keeps other runs out of the folder once it has results."""

    def __init__(self, path: Path, journal: str, *, force: bool) -> None:
        """DestinationError if something would be lost, or nothing can be written there; nothing is made yet.

        journal: name of the file that is there until all is done; force: what is there may be written over.
        """
        self.path = path
        self.force = force
        self.is_of_use = False  # whether results are kept in it with which the same run goes on
        self._settings: Mapping[str, Any] = {}
        check_folder_name(path, "results are written to")
        with writing(path):
            if not path.parent.is_dir():
                raise DestinationError(f"{file_name(path.parent)} is not a folder to put another into; make it first")
            there = [*path.iterdir()] if path.exists() else []
            if not os.access(path if path.exists() else path.parent, os.W_OK | os.X_OK):
                raise DestinationError(f"{file_name(path)} cannot be written: Permission denied; choose another folder")
        self._journal = Journal(path / journal, begin_anew=force)
        if not force and self._journal.settings is None and there not in ([], [path / journal]):
            self._journal.close()
            raise DestinationError(f"{file_name(path)} is not empty; --force writes into it")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._journal.close()

    def resume(self, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What an earlier run with the same settings has kept. DestinationError if it had others."""
        self._settings = json.loads(json.dumps(settings))
        then = self._journal.settings
        if then is not None and (changed := differences(then, self._settings)):
            raise DestinationError(
                f"{file_name(self.path)} holds results of a run that was stopped, and that differed in "
                f"{listed(map(plain, changed))}. Give the same options as then, or another folder; --force starts over."
            )
        self.is_of_use = then is not None
        return self._journal.results()

    def results(self) -> Iterator[dict[str, Any]]:
        """All that is kept by now, of an earlier run and of this one."""
        return self._journal.results()

    def begin(self) -> None:
        """Make the folder and the journal, if they are not there yet. DestinationError."""
        if not self.path.exists() or self._journal.settings is None:
            with writing(self.path):
                self.path.mkdir(exist_ok=True)
            self._journal.begin(self._settings)
            self.is_of_use = True

    def keep(self, *results: Mapping[str, Any]) -> None:
        """Add results to what is kept. DestinationError."""
        self.begin()
        self._journal.add(*results)

    def finish(self, files: Mapping[str, bytes], on_done: Callable[[], object]) -> None:
        """Write the results; `on_done` is called once all are there. DestinationError."""
        self.write(files, on_done)
        self.clear()

    def write(self, files: Mapping[str, bytes], on_done: Callable[[], object] = lambda: None) -> None:
        """The same, but the same run can still go on: where there are several folders, until all have their files."""
        with writing(self.path):
            self.path.mkdir(exist_ok=True)
        *others, last = files
        for name in others:
            write_whole(self.path / name, files[name])
        write_whole(self.path / last, files[last], on_done=on_done)

    def clear(self) -> None:
        """Take away what a run would go on with. DestinationError."""
        self._journal.remove()
