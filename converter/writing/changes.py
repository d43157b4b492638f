"""A converted file beside its own record: which tensors are not what the conversion wrote.

The record is the ledger in the file or in its folder, which has the SHA-256 of each tensor. It shows what was changed
by accident or without a thought. It does not show that the conversion was right, and whoever edits the record as well
is not noticed.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.checkpoint.hashes import tensor_hashes
from converter.checkpoint.strict_json import parse_json, read_json
from converter.display import counted, file_name, plain
from converter.errors import CheckpointError, ConverterWarning, ModelError, unreadable
from converter.writing.commit import signals_held
from converter.writing.destination import LEDGER
from converter.writing.ledger import TABLES, digest_of_checkpoint, files_of


@dataclass(frozen=True, slots=True)
class Changes:
    """What of the tensors in `path` is not as its record says, by name; nothing where all are.

    recorded    how many tensors the record names
    changed     of other values; missing, added: in the record or in the file alone
    relabelled  all bytes are as recorded, but not every shape and dtype: the record has one hash of all of them, which
                does not tell whose
    """

    path: Path
    recorded: int
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    relabelled: bool = False

    def __bool__(self) -> bool:
        return bool(self.changed or self.missing or self.added or self.relabelled)

    @property
    def named(self) -> list[tuple[str, str]]:
        """Each tensor that differs, as (`changed`, name), (`missing`, name) or (`added`, name)."""
        kinds = {"changed": self.changed, "missing": self.missing, "added": self.added}
        return [(kind, name) for kind, names in kinds.items() for name in names]

    @property
    def problems(self) -> list[str]:
        """A line for each: `changed: head.box.weight`."""
        lines = [f"{kind}: {plain(name)}" for kind, name in self.named]
        return (
            [*lines, "a shape or a dtype is not as recorded; the record does not tell of which tensor"]
            if self.relabelled
            else lines
        )

    @property
    def summary(self) -> str:
        """`1 of 650 tensors is not as recorded, first changed: head.box.weight`, without a full stop."""
        if not self:
            return f"all {counted(self.recorded, 'tensor')} are as recorded"
        if self.relabelled:
            return "the bytes of all tensors are as recorded, but a shape or a dtype is not"
        several = len(self.named) > 1
        of_all = "" if self.added else f" of {self.recorded}"
        return (
            f"{counted(len(self.named), 'tensor')}{of_all} {'are' if several else 'is'} not as recorded "
            f"({'first ' if several else ''}{self.problems[0]})"
        )

    @property
    def warning(self) -> str:
        """What it means, and what to do, in one line."""
        return (
            f"{file_name(self.path)}: was changed after it was written: {self.summary}. Convert the original again; "
            "or, if the change is meant (fine-tuning), save the model with save_pretrained, which records it"
        )


def changes(
    checkpoint: Checkpoint, path: Path | None = None, on_bytes: Callable[[int], object] = lambda count: None
) -> Changes | None:
    """Hash every tensor, and compare with the record; None if there is none.

    `path`: what `checkpoint` was opened from; a folder's record is its own, whatever tensors it names. Of one that is
    converted in memory, the file that was read is compared. Memory: a buffer. Raises ModelError for a record that is
    not sound, CheckpointError if it or a tensor cannot be read.
    """
    source = checkpoint.made_of or checkpoint
    record = find_record_of_tensors(source, path)
    return None if record is None else changes_from(record, source, tensor_hashes(source, on_bytes))


def changes_from(record: Mapping[str, Any], checkpoint: Checkpoint, hashes: Mapping[str, str]) -> Changes:
    """As `changes`, of a record and hashes that are known. Tensors without a hash are not compared."""
    stated, there = record["tensors"], checkpoint.tensors
    found = Changes(
        checkpoint.path,
        len(stated),
        tuple(name for name in stated if name in there and hashes.get(name, stated[name]) != stated[name]),
        tuple(name for name in stated if name not in there),
        tuple(name for name in there if name not in stated),
    )
    if found or hashes.keys() != there.keys() or digest_of_checkpoint(checkpoint, hashes) == record["sha256"]:
        return found
    return Changes(checkpoint.path, len(stated), relabelled=True)


def find_record_of_tensors(checkpoint: Checkpoint, path: Path | None = None) -> dict[str, Any] | None:
    """The ledger, with `tensors` and `sha256`; None if there is none of these tensors. Raises as `changes`."""
    beside, text = checkpoint.path.with_name(LEDGER), checkpoint.metadata.get("conversion")
    is_own = path is not None and path.is_dir()
    try:
        if beside.is_file() and (is_own or text is None):
            return _of_folder(beside, checkpoint, is_own=is_own or TABLES in checkpoint.metadata)
        return None if text is None else _checked(parse_json(text))
    except OSError as error:
        raise unreadable(file_name(beside), error) from error
    except ValueError as error:
        where = checkpoint.path if text is not None else beside
        raise ModelError(
            f"{file_name(where)}: its record of the conversion is invalid: {error}. Convert again."
        ) from None


def _of_folder(path: Path, checkpoint: Checkpoint, *, is_own: bool) -> dict[str, Any] | None:
    """The ledger of a folder. One that lies beside a file by chance names neither this file nor exactly its tensors."""
    try:
        record = _checked(read_json(path))
    except ValueError:
        if is_own:
            raise
        return None
    is_own = is_own or checkpoint.path.name in files_of(record)
    return record if is_own or record["tensors"].keys() == checkpoint.tensors.keys() else None


def _checked(record: Any) -> dict[str, Any]:
    kinds = {"tensors": dict, "sha256": str}
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise ValueError("it does not have the hash of each tensor and of all")
    return record


@contextmanager
def compared_meanwhile(checkpoint: Checkpoint, path: Path | None = None) -> Iterator[None]:
    """Compare with the record in a thread while the tensors are loaded, and warn at the end: a ConverterWarning.

    Where the body raises, nothing is said.
    """
    done = threading.Event()
    said: list[str] = []

    def stop(count: int) -> None:
        if done.is_set():
            raise _Stopped

    def compare() -> None:
        try:
            if found := changes(checkpoint, path, stop):
                said.append(found.warning)
        except (CheckpointError, ModelError) as error:
            said.append(f"not compared with the record of its conversion: {error}")
        except _Stopped:
            pass

    thread = threading.Thread(target=compare)
    try:
        try:
            thread.start()
        except RuntimeError:  # the system starts no more threads
            compare()
        yield
        if thread.ident is not None:
            thread.join()
    except BaseException:
        done.set()
        raise
    finally:
        with signals_held():  # a second Ctrl-C must not leave a thread that reads from what is closed by then
            if thread.ident is not None:
                thread.join()
    for text in said:
        warnings.warn(text, ConverterWarning, stacklevel=3)


class _Stopped(Exception):
    """Nobody waits for the result any more."""
