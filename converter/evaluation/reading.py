"""Picture files on their way to the process that has the model: workers read and resize them."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.display import counted, file_name, listed, plain
from converter.errors import ModelError
from converter.evaluation.dataset import DataSet, Picture

if TYPE_CHECKING:
    from converter.parity.family import Prepared, Task

Stamp = list[int] | None  # size and time of change of a file, which differ once it is another


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """A picture of the data set, its file's stamp before it was read, and what is in it, or why it cannot be used."""

    picture: Picture
    stamp: Stamp
    content: Prepared | str


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """The pictures of a batch, prepared by a worker; for torch's DataLoader, which sends it there.

    folder   that the names of files begin at
    batches  the pictures of each
    """

    task: Task
    folder: Path
    batches: Sequence[Sequence[Picture]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, at: int) -> list[Read]:
        return [self._read(picture) for picture in self.batches[at]]

    def _read(self, picture: Picture) -> Read:
        path = self.folder / picture.file_name
        before = stamp_of(path)
        try:
            return Read(picture, before, self._prepared(path, picture))
        except ModelError as error:
            return Read(picture, before, plain(str(error), 1024))

    def _prepared(self, path: Path, picture: Picture) -> Prepared:
        prepared = self.task.read(path)
        found = prepared.width, prepared.height
        stated = picture.width or prepared.width, picture.height or prepared.height
        if found == stated:
            return prepared
        turned = " Either is turned by the picture's EXIF, the other not." if found == stated[::-1] else ""
        raise ModelError(
            f"{file_name(path)}: has {found[0]}x{found[1]} pixels, and the annotations say {stated[0]}x{stated[1]}, so "
            f"that boxes would be elsewhere.{turned}"
        )


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def check_pictures(dataset: DataSet, folder: Path) -> dict[int, Stamp]:
    """The stamp of each picture's file. ModelError if there is not one: then the folder is another."""
    stamps = {picture.id: stamp_of(folder / picture.file_name) for picture in dataset.pictures}
    if not folder.is_dir():
        raise ModelError(f"{file_name(folder)}: is not a folder. Give the one that holds the pictures (--images).")
    if all(stamp is None for stamp in stamps.values()):
        names = listed(plain(picture.file_name) for picture in dataset.pictures[:3])
        raise ModelError(
            f"{file_name(folder)}: holds none of the {counted(len(stamps), 'picture')} that {file_name(dataset.path)} "
            f"lists ({names}). Give the folder that these names begin at (--images)."
        )
    return stamps


@contextmanager
def loaded(reader: Reader, workers: int) -> Iterator[Iterator[list[Read]]]:
    """What the workers read, batch by batch in order. They begin at once, and end with the context.

    ModelError if a worker is killed.
    """
    from torch.utils.data import DataLoader

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more than there are processors: as asked for
        loader: Any = DataLoader(
            reader,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=min(workers, len(reader)),
            collate_fn=_as_it_is,
            worker_init_fn=_begin,
        )
        batches = iter(loader)
    try:
        yield batches
    except RuntimeError as error:  # raised wherever this process is when a worker ends
        if "DataLoader worker" not in str(error):
            raise
        raise ModelError(
            f"a process that reads pictures ended: {plain(str(error), 200)}. Give fewer --workers."
        ) from error
    finally:
        if stop := getattr(batches, "_shutdown_workers", None):  # else when the garbage collector finds it
            stop()


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(number: int) -> None:
    """In a worker: Ctrl-C reaches all processes of a terminal, but the one that has the model ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """End once the process that takes pictures was killed: nobody else would end a wait to hand one over."""
    parent.join()
    os._exit(1)
