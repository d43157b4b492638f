"""Sources that are written to while they are read: the result is of one state of them, or there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from converter.checkpoint import open_checkpoint, shards
from converter.checkpoint.source import SourceFile
from converter.errors import CorruptCheckpointError
from tests.support.jobs import listing
from tests.support.mounts import mounted
from tests.support.small_files import run
from tests.support.tiny import expected_target, tiny_weights, write_table

KINDS = ("zip", "legacy", "safetensors", "shards", "torch-shards")
Change = Callable[[Path, Path], None]  # of the file that is read, with another like it


def truncated(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path, other: Path) -> None:
    os.truncate(path, 0)


def appended(path: Path, other: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def rewritten(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def one_byte(path: Path, other: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(byte)  # the same: what else was written in between is not known


def put_back(path: Path, other: Path) -> None:
    """As `cp -p` and tar leave it: other bytes, the same size and time."""
    before = path.stat()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def mapped(path: Path, other: Path) -> None:
    """By another process that maps it into its memory."""
    code = (
        "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); m[-40:] = bytes(40); m.flush()"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)


def replaced(path: Path, other: Path) -> None:
    shutil.copy(other, path.with_name("new"))
    os.replace(path.with_name("new"), path)


def removed(path: Path, other: Path) -> None:
    path.unlink()


IN_PLACE = (truncated, emptied, appended, rewritten, one_byte, put_back, mapped)
UNDER_ITS_NAME = (replaced, removed)


def save(kind: str, folder: Path, seed: int) -> Path:
    """The weights of a seed as a checkpoint of a kind; what to give as --src."""
    folder.mkdir()
    weights = {name: tensor.contiguous().clone() for name, tensor in tiny_weights(seed=seed).items()}
    if kind == "zip":
        torch.save(weights, folder / "a.pth")
        return folder / "a.pth"
    if kind == "legacy":
        torch.save(weights, folder / "a.pth", _use_new_zipfile_serialization=False)
        return folder / "a.pth"
    if kind == "safetensors":
        save_file(weights, folder / "a.safetensors")
        return folder / "a.safetensors"
    stem, end, write = {
        "shards": ("model", ".safetensors", save_file), "torch-shards": ("pytorch_model", ".bin", torch.save),
    }[kind]  # fmt: skip
    names = list(weights)
    parts = {f"{stem}-0000{i + 1}-of-00003{end}": names[i::3] for i in range(3)}
    for file, part in parts.items():
        write({name: weights[name] for name in part}, folder / file)  # type: ignore[operator]
    where = {name: file for file, part in parts.items() for name in part}
    (folder / f"{stem}{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def files_of(path: Path) -> list[Path]:
    """Those that hold weights."""
    return [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix != ".json")


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have something happen as soon as the first tensor was written."""

    def install(change: Callable[[], None]) -> None:
        todo = [change]

        @contextmanager
        def progress(total: int, description: str) -> Iterator[Callable[[int], None]]:
            yield lambda count: todo.pop()() if todo else None

        monkeypatch.setattr(import_module("converter.cli.convert"), "progress", progress)
        monkeypatch.setattr("converter.writing.transfer._THREADS", 1)  # so that the others are read after it

    return install


class Case:
    """Two checkpoints of one kind in `tmp_path`, of which the first is read, and the command line."""

    def __init__(self, kind: str, tmp_path: Path) -> None:
        self.table = write_table(tmp_path)
        self.source = save(kind, tmp_path / "source", 0)
        self.others = files_of(save(kind, tmp_path / "other", 1))
        self.files = files_of(self.source)
        self.place = tmp_path / "place"
        self.place.mkdir()

    def convert(self, name: str = "out.safetensors", *options: str, code: int) -> Any:
        return run("convert", "--src", self.source, "--table", self.table, "--dst", self.place / name, *options,
                   code=code)  # fmt: skip

    def change(self, change: Change, which: int = -1) -> None:
        change(self.files[which], self.others[which])


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_to_is_refused(kind: str, change: Change, during: Any, tmp_path: Path) -> None:
    case = Case(kind, tmp_path)
    (case.place / "out.safetensors").write_bytes(b"old")
    during(lambda: case.change(change))
    result = case.convert("out.safetensors", "--force", code=3)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert listing(case.place) == {"out.safetensors": b"old"}


@pytest.mark.parametrize("change", UNDER_ITS_NAME)
@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_under_its_name(kind: str, change: Change, during: Any, tmp_path: Path) -> None:
    """One file that was opened is a whole; of several, it is not known which belong together."""
    case = Case(kind, tmp_path)
    during(lambda: case.change(change))
    if len(case.files) > 1:
        result = case.convert(code=3)
        assert "was replaced or removed while it was read" in result.stderr
        assert listing(case.place) == {}
    else:
        case.convert(code=0)
        with open_checkpoint(case.place / "out.safetensors") as written:
            for name, values in expected_target(tiny_weights(seed=0)).items():
                assert written.read(name).tobytes() == values.tobytes()


@pytest.mark.parametrize("kind", ["shards", "torch-shards"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_shards_that_are_replaced_while_they_are_opened(
    kind: str, first: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = Case(kind, tmp_path)

    class Opened(SourceFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            if path == case.files[first]:
                for which in range(3):
                    case.change(replaced, which)

    monkeypatch.setattr(shards, "SourceFile", Opened)
    assert "was replaced or removed" in case.convert(code=3).stderr
    assert listing(case.place) == {}


@pytest.mark.parametrize("change", [truncated, rewritten, put_back])
def test_a_residue_is_a_source_too(change: Change, during: Any, tmp_path: Path) -> None:
    case = Case("zip", tmp_path)
    for number, source in enumerate((case.source, case.others[0])):
        (tmp_path / str(number)).mkdir()
        run("convert", "--src", source, "--table", case.table, "--dst", tmp_path / str(number) / "w.safetensors",
            "--keep-residue")  # fmt: skip
    residues = [tmp_path / str(number) / "w.safetensors.residue.safetensors" for number in (0, 1)]
    during(lambda: change(*residues))
    case.source = tmp_path / "0" / "w.safetensors"
    result = run("convert", "--src", case.source, "--to", case.table, "--dst", case.place / "again.pth", code=3)
    assert "residue.safetensors" in result.stderr
    assert listing(case.place) == {}


def test_links_and_permissions_are_no_change(during: Any, tmp_path: Path) -> None:
    case = Case("safetensors", tmp_path)

    def change() -> None:
        os.link(case.source, tmp_path / "link")
        case.source.chmod(0o400)

    during(change)
    case.convert(code=0)


def test_where_time_goes_in_seconds(tmp_path: Path) -> None:
    """On exFAT a file that is written twice in a second has the same time after both."""
    with mounted("exfat", tmp_path) as mount:
        code = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
from safetensors.torch import save
from converter.checkpoint import open_checkpoint
from converter.errors import CorruptCheckpointError
path = Path("a.safetensors")
time.sleep(1 - time.time() % 1)  # the beginning of a second
path.write_bytes(save({{"w": torch.zeros(9)}}))
with open_checkpoint(path) as checkpoint:
    path.write_bytes(save({{"w": torch.ones(9)}}))
    try:
        checkpoint.verify_unchanged()
    except CorruptCheckpointError:
        print("noticed")
"""
        assert mount.run(sys.executable, "-c", code) == "noticed\n"


def test_only_a_file_of_this_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    save_file({"w": torch.zeros(9)}, tmp_path / "a.safetensors")

    def opened(modified: int) -> list[float]:
        os.utime(tmp_path / "a.safetensors", ns=(modified, modified))
        waited.clear()
        open_checkpoint(tmp_path / "a.safetensors").close()
        return list(waited)

    second = int(time.time()) * 10**9
    assert 0 < opened(second)[0] <= 2
    assert opened(second + 1) == opened(second - 2 * 10**9) == opened(second + 3600 * 10**9) == []


def test_a_file_that_is_written_while_it_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(9)}, path)
    os.utime(path, (int(time.time()),) * 2)
    monkeypatch.setattr(time, "sleep", lambda seconds: path.write_bytes(path.read_bytes() + b"x"))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CorruptCheckpointError, match="was changed while it was read"):
        open_checkpoint(path)
    assert len(os.listdir("/proc/self/fd")) == before
