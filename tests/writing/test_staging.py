"""A destination appears whole or not at all, and nothing else is touched."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from converter.errors import DestinationError
from converter.writing import commit, staging
from converter.writing.destination import check_destination
from converter.writing.staging import Staging, write_whole


@pytest.fixture(params=["anonymous", "named", "without links"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems with unnamed files, without, and without hard links either."""
    if request.param != "anonymous":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    if request.param == "without links":

        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    return str(request.param)


def write(destination: Path, files: dict[str, bytes], *, force: bool = False, fail: bool = False) -> None:
    with Staging(destination, force=force) as stage:
        for name, content in files.items():
            os.pwrite(stage.create(name, len(content)), content, 0)
        if fail:
            raise RuntimeError("stopped half-way")
        stage.commit()


def record(*names: str) -> bytes:
    """What says that a folder's files were written together."""
    return json.dumps({"tensors": {}, "folder": ["conversion.json", *names]}).encode()


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_file_appears(tmp_path: Path, system: str) -> None:
    write(tmp_path / "a.safetensors", {"a.safetensors": b"new"})
    assert listing(tmp_path) == {"a.safetensors": b"new"}
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_folder_appears(tmp_path: Path, system: str) -> None:
    write(tmp_path / "model", {"model.safetensors": b"1", "config.json": b"2"})
    assert listing(tmp_path) == {"model/model.safetensors": b"1", "model/config.json": b"2"}


@pytest.mark.parametrize("name", ["a.safetensors", "model"])
def test_nothing_is_left_of_a_failure(tmp_path: Path, system: str, name: str) -> None:
    with pytest.raises(RuntimeError):
        write(tmp_path / name, {name: b"new"}, fail=True)
    assert list(tmp_path.iterdir()) == []


def test_force_replaces_a_file(tmp_path: Path, system: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write(tmp_path / "a.safetensors", {"a.safetensors": b"new"}, force=True, fail=True)
    assert listing(tmp_path) == {"a.safetensors": b"old"}
    write(tmp_path / "a.safetensors", {"a.safetensors": b"new"}, force=True)
    assert listing(tmp_path) == {"a.safetensors": b"new"}


@pytest.mark.parametrize("atomic", [True, False])
def test_force_replaces_a_folder(tmp_path: Path, system: str, atomic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not atomic:
        monkeypatch.setattr(commit.sys, "platform", "other")
    write(tmp_path / "model", {"conversion.json": record("shard"), "shard": b"old"})
    write(tmp_path / "model", {"model.safetensors": b"new"}, force=True)
    assert listing(tmp_path) == {"model/model.safetensors": b"new"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["model.safetensors", "model"])
def test_a_second_writer_loses_and_harms_nothing(tmp_path: Path, system: str, name: str) -> None:
    with Staging(tmp_path / name, force=False) as late:
        os.pwrite(late.create("model.safetensors", 4), b"late", 0)
        write(tmp_path / name, {"model.safetensors": b"early"})
        before = listing(tmp_path)
        with pytest.raises(DestinationError, match="something of that name appeared meanwhile"):
            late.commit()
    assert {k: v for k, v in listing(tmp_path).items() if "partial" not in k} == {
        k: v for k, v in before.items() if "partial" not in k
    }
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_the_system_refuses_is_a_destination_error(tmp_path: Path) -> None:
    with Staging(Path("/proc/a.safetensors"), force=False) as stage, pytest.raises(DestinationError, match="/proc/a"):
        stage.create("a", 1)


def test_too_little_space_is_said_before_writing(tmp_path: Path) -> None:
    with Staging(tmp_path / "a.safetensors", force=False) as stage, pytest.raises(DestinationError, match="GB free"):
        stage.require_space(1 << 60)


def refusal(destination: Path, *inputs: Path, force: bool = False) -> str:
    with pytest.raises(DestinationError) as caught:
        check_destination(destination, force=force, inputs=list(inputs))
    return str(caught.value)


def test_refuses_what_could_not_be_committed_or_would_harm(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    source.write_bytes(b"x")
    (tmp_path / "link.safetensors").symlink_to(source)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    assert "create it first" in refusal(tmp_path / "no" / "a.safetensors")
    assert "is the source itself" in refusal(source, source, force=True)
    os.link(source, tmp_path / "hard.safetensors")
    assert "is the source itself" in refusal(tmp_path / "hard.safetensors", source, force=True)
    assert "symbolic link" in refusal(tmp_path / "link.safetensors", force=True)
    assert "symbolic link" in refusal(tmp_path / "dangling", force=True)
    assert "is a folder, a file was to be written" in refusal(tmp_path / "folder.safetensors", force=True)
    assert "is a file, a folder was to be written" in refusal(tmp_path / "file", force=True)
    assert "--force replaces it" in refusal(source)
    assert "letter.txt" in refusal(tmp_path / "home", force=True)
    assert "holds the source" in refusal(tmp_path, source, force=True)
    assert refusal(tmp_path / "out.onnx").endswith(
        "out.onnx: looks like the name of a file, but only .safetensors, .pth, .pt, .bin files are written. "
        "Did you mean 'out.safetensors'? For a folder choose a name without .onnx"
    )


def test_accepts_an_empty_folder_and_a_new_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty", force=False, inputs=[])
    check_destination(tmp_path / "new", force=False, inputs=[])
    write(tmp_path / "empty", {"model.safetensors": b"1"})
    assert listing(tmp_path) == {"empty/model.safetensors": b"1"}


@pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", ".safetensors", "..", "a\0b"])
def test_a_destination_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DestinationError):
        check_destination(tmp_path / name, force=True, inputs=[])


def test_the_current_folder_is_no_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", ""):
        with pytest.raises(DestinationError):
            check_destination(Path(name), force=True, inputs=[])


def test_a_fifo_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.safetensors")
    with pytest.raises(DestinationError, match="neither a file nor a folder"):
        check_destination(tmp_path / "out.safetensors", force=True, inputs=[])


def test_a_folder_can_hold_files_that_exist(tmp_path: Path, system: str) -> None:
    source = tmp_path / "in.safetensors"
    source.write_bytes(b"weights")
    with Staging(tmp_path / "model", force=False) as stage:
        os.pwrite(stage.create("config.json", 1), b"2", 0)
        stage.take("model.safetensors", source)
        stage.commit()
    assert listing(tmp_path / "model") == {"model.safetensors": b"weights", "config.json": b"2"}
    assert source.read_bytes() == b"weights"
    assert (tmp_path / "model" / "model.safetensors").samefile(source) == (system != "without links")


def test_nothing_is_left_where_a_file_to_hold_is_gone(tmp_path: Path, system: str) -> None:
    with Staging(tmp_path / "model", force=False) as stage:
        os.pwrite(stage.create("config.json", 1), b"2", 0)
        stage.take("model.safetensors", tmp_path / "gone.safetensors")
        with pytest.raises(DestinationError):
            stage.commit()
    assert list(tmp_path.iterdir()) == []


def test_a_document_does_not_follow_a_planted_link(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(staging.secrets, "token_hex", lambda count: "guessed!")
    (tmp_path / ".table.json.guessed!.partial").symlink_to(victim)
    if system == "anonymous":
        write_whole(tmp_path / "table.json", b"new", force=False)
    else:
        with pytest.raises(DestinationError):
            write_whole(tmp_path / "table.json", b"new", force=False)
    assert victim.read_text() == "precious"


def test_a_document_replaces_another_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("old")
    with pytest.raises(DestinationError, match="something of that name appeared meanwhile"):
        write_whole(path, b"new", force=False)
    assert listing(tmp_path) == {"table.json": b"old"}
    write_whole(path, b"new")
    assert listing(tmp_path) == {"table.json": b"new"}


def test_a_pair_is_named_in_an_order_that_a_power_cut_respects(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The companion waits on the disk before the file gets its name, and that is on the disk before the next step."""
    steps: list[str] = []
    named = Staging._name

    def name(stage: Staging, name: str, path: Path, *, replace: bool) -> None:
        named(stage, name, path, replace=replace)
        steps.append(path.name)

    monkeypatch.setattr(Staging, "_name", name)
    monkeypatch.setattr(commit.Parent, "sync", lambda parent: steps.append(f"sync {listing_names(tmp_path)}"))
    write(tmp_path / "a.pth", {"a.pth": b"1", "a.pth.more": b"2"})
    assert steps == [
        ".a.pth.more.partial",
        "sync .a.pth.more.partial",
        "a.pth",
        "sync .a.pth.more.partial a.pth",
        "sync a.pth a.pth.more",
    ]


def listing_names(folder: Path) -> str:
    return " ".join(sorted(name for name in os.listdir(folder) if not re.search(r"[0-9a-f]{8}\.partial", name)))


@pytest.mark.parametrize("body", ["passes", "fails"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_was_held_back_is_not_lost(number: signal.Signals, body: str) -> None:
    came: list[int] = []
    before = signal.signal(number, lambda number, frame: came.append(number))
    try:
        with suppress(OSError), commit.signals_held():
            os.kill(os.getpid(), number)
            assert not came
            if body == "fails":
                raise OSError
        assert came == [number]
    finally:
        signal.signal(number, before)


def test_the_lock_of_a_folder_does_not_outlast_its_holder_in_a_fork(tmp_path: Path) -> None:
    with commit.Parent(tmp_path):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with commit.Parent(tmp_path) as again:
            assert again is not None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
