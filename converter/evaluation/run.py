"""The pictures of a data set on their way through a model, in batches, in one process or in many.

What is predicted in a picture depends on its batch, and a batch on nothing but the data set: so the results are the
same, bit for bit, however many processes, threads and workers there are, and wherever a run was stopped before. On a
CPU each batch is computed by one thread, since sums in another order are rounded otherwise; threads take batches.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.arrays import np
from converter.display import counted, plain
from converter.errors import DestinationError
from converter.evaluation.dataset import DataSet, Picture
from converter.evaluation.large_json import is_number
from converter.evaluation.predictions import Predictions
from converter.evaluation.ranks import Ranks
from converter.evaluation.reading import Read, Reader, check_pictures, loaded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from converter.parity.family import Boxes, Prepared, Task
    from converter.writing.results import ResultFolder

Entry = dict[str, Any]  # of one picture: its id, classes, boxes, scores; or error
Runner = Callable[[Sequence["Prepared"]], Sequence["Boxes"]]
Progress = Callable[[int, int], AbstractContextManager[Callable[[int], None]]]  # of all pictures, and those done
_MOST_THREADS = 16  # unless more are asked for: each takes some hundred megabytes
_ROUND = 8  # batches of a process between two meetings with the others


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A data set, the folder of its pictures, and how the model is asked about them.

    device    'cpu', 'cuda:0'
    batch     pictures of one size that are run at once, at most
    workers   processes that read pictures
    threads   that take a batch each; None for one for each processor of a CPU, two of a GPU
    settings  all that results depend on besides the pictures, JSON; `folder`: where they are kept, of the first process
    """

    dataset: DataSet
    images: Path
    task: Task
    device: str
    batch: int
    workers: int
    threads: int | None
    settings: Mapping[str, Any]
    folder: ResultFolder | None
    ranks: Ranks

    def done(self) -> set[int]:
        """Pictures that an earlier run has kept, and whose files are the same; in all processes.

        ModelError if the folder holds none of the pictures. DestinationError if that run had other settings.
        """
        stamps = check_pictures(self.dataset, self.images)
        kept: set[int] = set()
        if self.folder is not None:
            for entry in self._own(self.folder.resume(self.settings)):  # of two of a picture the later one counts
                number, stamp = entry["picture"], entry.get("stamp")
                is_current = "error" not in entry and stamp is not None and stamp == stamps[number]
                (kept.add if is_current else kept.discard)(number)
        return self.ranks.told(kept)

    def results(self, done: set[int], load: Callable[[], Runner], progress: Progress) -> Results | None:
        """All that is predicted, in the first process. The model is loaded while workers begin to read.

        ModelError if it cannot be run; DestinationError if results cannot be kept. What is kept stays.
        """
        batches = batches_of(self.dataset.pictures, self.batch)
        todo = [batch for batch in batches if not all(picture.id in done for picture in batch)]
        mine = todo[self.ranks.rank :: self.ranks.count]
        collected = Results()
        if todo:
            with loaded(Reader(self.task, self.images, mine), self.workers) as read, self._threads() as at_once:
                computed = run_batches(read, load(), at_once) if mine else iter(())
                with progress(len(self.dataset.pictures), len(done)) as advance:
                    for entries in self._in_rounds(computed, len(mine), len(todo)):
                        if self.folder is not None:
                            self.folder.keep(*entries)
                        else:
                            collected.add(entries)
                        advance(sum(entry["picture"] not in done for entry in entries))
        if not self.ranks.is_first:
            return None
        if self.folder is not None:
            collected.add(self._own(self.folder.results()))
        collected.check_whole(self.dataset)
        return collected

    def _own(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Those that are entries of this data set."""
        pictures = {picture.id for picture in self.dataset.pictures}
        classes = {category.id for category in self.dataset.categories}
        return (entry for entry in entries if is_entry(entry, pictures, classes))

    @contextmanager
    def _threads(self) -> Iterator[int]:
        """How many batches are on their way at once: on a CPU each by one thread, whatever torch takes elsewhere."""
        import torch

        from converter.parity.device import deterministic

        if not self.device.startswith("cpu"):
            with deterministic():  # two: while one waits for the device, the other makes lists of what it found
                yield self.threads or 2
            return
        there = len(os.sched_getaffinity(0)) // self.ranks.here
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield self.threads or max(1, min(there, _MOST_THREADS))
        finally:
            torch.set_num_threads(before)

    def _in_rounds(self, computed: Iterator[list[Entry]], mine: int, all_: int) -> Iterator[list[Entry]]:
        """What all processes compute, as it comes, in the first of them; nothing in the others."""
        for begin in range(0, -(-all_ // self.ranks.count), _ROUND):
            waiting: list[Entry] = []
            for entries in islice(computed, max(0, min(_ROUND, mine - begin))):
                if self.ranks.is_first:  # at once, so that it is not lost with another process
                    yield entries
                else:
                    waiting += entries
            if gathered := self.ranks.gathered(waiting):
                yield gathered


@dataclass(slots=True)
class Results:
    """What is predicted in each picture, as arrays; of two entries of a picture the later one counts."""

    _boxes: dict[int, tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=dict)
    _errors: dict[int, str] = field(default_factory=dict)
    _unturned: set[int] = field(default_factory=set)

    def add(self, entries: Iterable[Entry]) -> None:
        """Entries of pictures of the data set."""
        for entry in entries:
            number = entry["picture"]
            self._boxes.pop(number, None)
            self._errors.pop(number, None)
            self._unturned.discard(number)
            if entry.get("unturned"):
                self._unturned.add(number)
            if "error" in entry:
                self._errors[number] = str(entry["error"])
            else:
                boxes = np.array(entry["boxes"], np.float64).reshape(-1, 4)
                self._boxes[number] = np.array(entry["classes"], np.int64), boxes, np.array(entry["scores"], np.float64)

    def check_whole(self, dataset: DataSet) -> None:
        """DestinationError if a picture has no entry: what was kept was changed meanwhile."""
        lost = [each for each in dataset.pictures if each.id not in self._boxes and each.id not in self._errors]
        if lost:
            raise DestinationError(
                f"results of {counted(len(lost), 'picture')}, such as {plain(lost[0].file_name)}, were kept and are "
                "gone: something else changed what is kept. The same command does them again."
            )

    def skipped(self, dataset: DataSet) -> list[tuple[Picture, str]]:
        """Pictures that could not be used, and why."""
        return [(picture, self._errors[picture.id]) for picture in dataset.pictures if picture.id in self._errors]

    def unturned(self, dataset: DataSet) -> list[Picture]:
        """Pictures that were used as they are stored, and not turned as their EXIF says."""
        return [picture for picture in dataset.pictures if picture.id in self._unturned]

    def predictions(self, dataset: DataSet) -> Predictions:
        """In the order of the data set."""
        found = [(picture.id, *self._boxes[picture.id]) for picture in dataset.pictures if picture.id in self._boxes]
        return Predictions(
            np.concatenate([np.zeros(0, np.int64), *(np.full(len(scores), number) for number, _, _, scores in found)]),
            np.concatenate([np.zeros(0, np.int64), *(classes for _, classes, _, _ in found)]),
            np.concatenate([np.zeros((0, 4)), *(boxes for _, _, boxes, _ in found)]),
            np.concatenate([np.zeros(0), *(scores for _, _, _, scores in found)]),
        )


def batches_of(pictures: Sequence[Picture], size: int) -> list[Sequence[Picture]]:
    """The pictures in groups, in their order."""
    return [pictures[begin : begin + size] for begin in range(0, len(pictures), size)]


def run_batches(read: Iterator[Sequence[Read]], run: Runner, at_once: int) -> Iterator[list[Entry]]:
    """The entries of each batch, in order; `at_once`: how many threads take one."""
    if at_once == 1:
        yield from (predict(batch, run) for batch in read)
        return
    with ThreadPoolExecutor(at_once) as threads:
        running: deque[Future[list[Entry]]] = deque()
        try:
            for batch in read:
                running.append(threads.submit(predict, batch, run))
                if len(running) > at_once:  # one waits, so that no thread does
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def predict(batch: Sequence[Read], run: Runner) -> list[Entry]:
    """An entry for each picture of a batch. Run at once are those of one size: the model sees what fills up others."""
    alike: dict[tuple[int, int], list[Read]] = {}
    entries: dict[int, Entry] = {}
    for each in batch:
        if isinstance(each.content, str):
            entries[each.picture.id] = {"picture": each.picture.id, "error": each.content}
        else:
            alike.setdefault(each.content.size, []).append(each)
    for group in alike.values():
        found = run([each.content for each in group if not isinstance(each.content, str)])
        for each, boxes in zip(group, found, strict=True):
            entries[each.picture.id] = {
                "picture": each.picture.id,
                "classes": boxes.classes.tolist(),
                "boxes": [[round(number, 3) for number in box] for box in boxes.boxes.tolist()],
                "scores": [float(str(score)) for score in boxes.scores],  # as few digits as tell it from others
                "stamp": each.stamp,
                **({"unturned": True} if _is_unturned(each) else {}),
            }
    return [entries[each.picture.id] for each in batch]


def _is_unturned(each: Read) -> bool:
    return not isinstance(each.content, str) and each.content.is_unturned


def is_entry(value: Mapping[str, Any], pictures: Collection[int], known: Collection[int]) -> bool:
    """Whether it reads like one, of these pictures and `known` classes: anybody may have written what it comes from."""
    if type(value.get("picture")) is not int or value["picture"] not in pictures:
        return False
    if "error" in value:
        return isinstance(value["error"], str)
    lists = [value.get(name) for name in ("classes", "boxes", "scores")]
    if not all(isinstance(part, list) for part in lists):
        return False
    classes, boxes, scores = (part or [] for part in lists)
    if not len(classes) == len(boxes) == len(scores) or not all(isinstance(b, list) and len(b) == 4 for b in boxes):
        return False
    numbers = [*scores, *(number for box in boxes for number in box)]
    return all(type(label) is int and label in known for label in classes) and all(map(is_number, numbers))
