"""`--force` replaces what an earlier run wrote and nothing else; what cannot be written is refused before any work."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.errors import ConverterWarning, DestinationError
from converter.writing import commit, staging
from converter.writing.destination import check_destination, recorded
from converter.writing.staging import Staging, write_whole
from tests.support.small_files import official, refusal, run

pytestmark = pytest.mark.usefixtures("small_mappings")


@pytest.fixture
def folder(tmp_path: Path) -> list[Any]:
    """The command that replaces a folder of shards."""
    torch.save(official(), tmp_path / "official.pth")
    command = ["convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own", "--max-shard-size", "40kB"]
    run(*command)
    return [*command, "--force"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"mappings"}


def test_a_folder_records_its_files(folder: list[Any], tmp_path: Path) -> None:
    there = names(tmp_path / "own")
    assert len(there) > 4
    assert recorded(tmp_path / "own") == there
    (tmp_path / "own" / "notes.txt").touch()
    assert recorded(tmp_path / "own") == there


def test_an_older_record_without_files_is_known_by_its_index(folder: list[Any], tmp_path: Path) -> None:
    ledger = json.loads((tmp_path / "own" / "conversion.json").read_text())
    del ledger["folder"]
    (tmp_path / "own" / "conversion.json").write_text(json.dumps(ledger))
    run(*folder)
    assert recorded(tmp_path / "own") == names(tmp_path / "own")


@pytest.mark.parametrize("name", ["model-ema.safetensors", "model.safetensors", "tokenizer.json", ".hidden", "folder"])
def test_what_is_not_ours_is_refused_by_name(name: str, folder: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "own" / name
    path.mkdir() if name == "folder" else path.write_bytes(b"mine")
    before = names(tmp_path / "own")
    assert name in refusal(*folder, code=6)["message"]
    assert names(tmp_path / "own") == before
    assert names(tmp_path) == {"official.pth", "own"}


def test_a_folder_without_a_record_is_not_ours(folder: list[Any], tmp_path: Path) -> None:
    (tmp_path / "own" / "conversion.json").write_text("{}")
    assert "holds files that no conversion wrote" in refusal(*folder, code=6)["message"]


@pytest.mark.parametrize(
    "record", ['{"tensors": {}, "folder": ["../official.pth", 7, "own"]}', '{"tensors": {}, "folder": 3}']
)
def test_a_record_that_lies_gives_nothing_away(record: str, folder: list[Any], tmp_path: Path) -> None:
    (tmp_path / "own" / "conversion.json").write_text(record)
    assert recorded(tmp_path / "own") <= {"own"}
    refusal(*folder, code=6)
    assert (tmp_path / "official.pth").exists()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("is_atomic", [True, False])
def test_what_arrives_during_the_commit_is_kept(
    moment: str, is_atomic: bool, folder: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the exchange it is in the way; from then on it moves to the new folder."""
    real = {"before": staging.replaceable, "after": staging.exchange}[moment]

    def arriving(*arguments: Any) -> Any:
        (tmp_path / "own" / "arrived").write_bytes(b"mine")
        return real(*arguments)

    monkeypatch.setattr(staging, real.__name__, arriving)
    if not is_atomic:
        monkeypatch.setattr(commit.sys, "platform", "other")
    if moment == "before":
        assert "arrived" in refusal(*folder, code=6)["message"]
    else:
        assert "warning" in run(*folder).stderr
    assert (tmp_path / "own" / "arrived").read_bytes() == b"mine"
    assert names(tmp_path) == {"official.pth", "own"}


@pytest.mark.parametrize(
    ("name", "fits"),
    [("x" * 225 + ".safetensors", True), ("x" * 226 + ".safetensors", False), ("x" * 237, True), ("x" * 238, False)],
)
def test_a_name_is_measured_with_what_is_added_to_it(name: str, fits: bool, tmp_path: Path) -> None:
    """A name has at most 255 bytes on the file systems of Linux, and 18 are added."""
    if fits:
        check_destination(tmp_path / name, force=False, inputs=[])
        with Staging(tmp_path / name, force=False) as stage:
            stage.create(name, 1)
            stage.commit()
    else:
        with pytest.raises(DestinationError, match="18 bytes are added"):
            check_destination(tmp_path / name, force=False, inputs=[])


def test_a_name_whose_residue_is_too_long_is_refused_first(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    command = ["convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / f"{'x' * 210}.safetensors"]
    assert "cannot be written" in refusal(*command, "--keep-residue", code=6)["message"]
    run(*command)


def leftover(destination: Path, token: str) -> Path:
    return destination.with_name(f".{destination.name}.{token}.partial")


@pytest.mark.parametrize("name", ["own.safetensors", "own", "report.html"])
def test_the_next_run_removes_what_the_dead_left_and_nothing_of_the_living(name: str, tmp_path: Path) -> None:
    destination = tmp_path / name
    dead, alive, other = (leftover(destination, token) for token in ("0123abcd", "89ab0123", "not-ours"))
    for path in (dead, alive, other, leftover(tmp_path / "another", "0123abcd")):
        path.write_bytes(b"half")
    with alive.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if name == "report.html":
            write_whole(destination, b"new")
        else:
            with Staging(destination, force=False) as stage:
                stage.create(name, 1)
                stage.commit()
    assert names(tmp_path) == {name, alive.name, other.name, ".another.0123abcd.partial"}


def test_a_folder_that_the_dead_left_goes_and_what_others_put_there_stays(folder: list[Any], tmp_path: Path) -> None:
    """After an exchange it is the one of before."""
    left = leftover(tmp_path / "own", "0123abcd")
    os.rename(tmp_path / "own", left)
    (left / "arrived").write_bytes(b"mine")
    run(*folder[:-1], "--dry-run")
    assert left.exists()
    run(*folder[:-1])
    assert names(tmp_path) == {"official.pth", "own", left.name}  # there was no folder to put it into
    with pytest.warns(ConverterWarning, match="kept what arrived there meanwhile: arrived"):
        commit.remove_leftovers(tmp_path / "own")
    assert names(tmp_path) == {"official.pth", "own"}
    assert (tmp_path / "own" / "arrived").read_bytes() == b"mine"


def test_what_was_put_aside_is_put_back_where_nothing_took_its_place(folder: list[Any], tmp_path: Path) -> None:
    """On a system that cannot exchange two folders, a kill between two renames."""
    own = tmp_path / "own"
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    os.rename(own, tmp_path / ".own.0123abcd.aside")
    leftover(own, "0123abcd").mkdir()
    refusal(*folder[:-1], code=6)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    assert names(tmp_path) == {"official.pth", "own"}
    os.rename(own, tmp_path / ".own.0123abcd.aside")
    (tmp_path / "own").mkdir()
    refusal(*folder[:-1], code=6)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    shutil.copytree(own, tmp_path / ".own.0123abcd.aside")
    run(*folder)
    assert names(tmp_path) == {"official.pth", "own"}


def test_the_record_of_a_folder_goes_last(folder: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody knew what is still to be removed."""
    real = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        assert "is still there, as .own." in run(*folder).stderr
    (left,) = names(tmp_path) - {"official.pth", "own"}
    assert {"conversion.json", "config.json"} <= names(tmp_path / left)
    run(*folder)
    assert names(tmp_path) == {"official.pth", "own"}


def test_a_leftover_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    leftover(tmp_path / "own", "0123abcd").symlink_to("precious")
    os.mkfifo(leftover(tmp_path / "own", "89ab0123"))
    commit.remove_leftovers(tmp_path / "own")
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_a_folder_that_others_hold_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "_PATIENCE", 0.1)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(DestinationError, match="is locked by another process"):
        write_whole(tmp_path / "a.json", b"new")
    os.close(holder)
    write_whole(tmp_path / "a.json", b"new")
    assert names(tmp_path) == {"a.json"}


def test_a_file_that_is_called_like_what_was_put_aside_replaces_nothing(folder: list[Any], tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    run("convert", "--src", tmp_path / "official.pth", "--dst", own)
    before = own.read_bytes()
    (tmp_path / ".own.safetensors.deadbeef.aside").write_bytes(b"mine")
    refusal("convert", "--src", tmp_path / "official.pth", "--dst", own, code=6)
    assert own.read_bytes() == before


@pytest.mark.parametrize("names_it", [b'"a\\u0000b"', b'"\\ud800"', b'".."'])
def test_a_leftover_whose_record_lies_stops_nothing(names_it: bytes, folder: list[Any], tmp_path: Path) -> None:
    left = leftover(tmp_path / "own", "0123abcd")
    left.mkdir()
    (left / "conversion.json").write_bytes(b'{"tensors": {}, "folder": ["conversion.json", ' + names_it + b"]}")
    run(*folder)
    assert names(tmp_path) == {"official.pth", "own"}


def test_an_older_leftover_that_lost_its_index_last_gives_nothing_to_the_new_folder(
    folder: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = json.loads((tmp_path / "own" / "conversion.json").read_text())
    del ledger["folder"]
    (tmp_path / "own" / "conversion.json").write_text(json.dumps(ledger))
    order: list[str] = []
    real = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, missing_ok=False: (order.append(path.name), real(path, missing_ok))
    )
    run(*folder)
    assert [name for name in order if not name.startswith(".")][-2:] == [
        "model.safetensors.index.json",
        "conversion.json",
    ]


def test_a_mount_point_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "own")
    with pytest.raises(DestinationError, match="is a mount point"):
        check_destination(tmp_path / "own", force=True, inputs=[])


def test_a_residue_that_arrives_meanwhile_is_not_replaced(
    folder: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = staging.replaceable

    def arriving(*arguments: Any) -> Any:
        (tmp_path / "own" / "residue.safetensors").write_bytes(b"mine")
        return real(*arguments)

    monkeypatch.setattr(staging, "replaceable", arriving)
    assert "residue.safetensors" in refusal(*folder, code=6)["message"]
    assert (tmp_path / "own" / "residue.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("refused", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_flushes_no_folders_is_written_to(
    refused: int, folder: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(refused, os.strerror(refused))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    assert "warning" not in run(*folder).stderr
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "a.safetensors", "--keep-residue")
