"""What is no file, or cannot be read, wherever a file is expected: one sentence, at once, and nothing is changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file

from converter.checkpoint import open_checkpoint
from converter.errors import ModelError
from converter.writing.records import find_record
from tests.support.jobs import FORMS, Jobs, listing
from tests.support.program import Program
from tests.support.tiny import write_table

Make = Callable[[Path], object]  # puts it where the path says


def device(name: str) -> Make:
    return lambda path: path.symlink_to(f"/dev/{name}")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(path.parent, os.O_RDONLY)  # the whole path may be too long for an address
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


SPECIAL: dict[str, Make] = {
    "fifo": os.mkfifo,
    "zero": device("zero"),
    "null": device("null"),
    "full": device("full"),
    "random": device("random"),
    "terminal": device("tty"),
    "process": lambda path: path.symlink_to("/proc/self/mem"),
    "socket": unix_socket,
    "folder": Path.mkdir,
    "loop": loop,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "self": lambda path: path.symlink_to("."),
}
KIND = pytest.mark.parametrize("kind", SPECIAL)
SENTENCE = r"error: [^\n]+\n"


def ends(program: Program, *arguments: object, cwd: Path, codes: tuple[int, ...], said: str = "") -> str:
    """Run the command, which is refused in one sentence; what it says."""
    before = listing(cwd)
    done = program(*arguments, cwd=cwd, timeout=10)
    assert done.code in codes, done
    assert re.fullmatch(SENTENCE, done.err), done.err
    assert said in done.err
    assert listing(cwd) == before
    return done.err


@KIND
def test_as_source(kind: str, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    for name in ("given.pth", "given.index.json", "given"):
        SPECIAL[kind](tmp_path / name)
        ends(program, "convert", "--dst", "out.safetensors", "--src", name, cwd=tmp_path, codes=(3,), said="given")
    ends(program, "inspect", "given.pth", cwd=tmp_path, codes=(3,), said="given")


@KIND
def test_as_residue_that_is_named(kind: str, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    SPECIAL[kind](tmp_path / "residue.safetensors")
    arguments = [*jobs.arguments("file", 0), "--residue", "residue.safetensors"]
    ends(program, *arguments, cwd=tmp_path, codes=(3,), said="residue.safetensors" if kind != "self" else "")


@KIND
def test_as_residue_beside(kind: str, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    """What is no file is none: neither the reader of the weights nor the writer of new ones touches it."""
    jobs.put("file", 0, tmp_path)
    beside = tmp_path / "out.safetensors.residue.safetensors"
    SPECIAL[kind](beside)
    table = jobs.folder / "tiny-table.json"
    arguments = ["convert", "--src", "out.safetensors", "--to", table, "--dst", "again.pth"]
    if kind == "process":  # the system says that it is a file
        ends(program, *arguments, cwd=tmp_path, codes=(3,), said=beside.name)
    else:
        assert program(*arguments, cwd=tmp_path, timeout=10).code == 0
        (tmp_path / "again.pth").unlink()
    ends(program, *jobs.arguments("pair", 1, force=True), cwd=tmp_path, codes=(6,), said=beside.name)


@KIND
@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize("force", [False, True])
def test_as_destination(kind: str, form: str, force: bool, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    arguments = jobs.arguments(form, 1, force=force)
    name = arguments[arguments.index("--dst") + 1]
    SPECIAL[kind](tmp_path / name)
    if kind == "folder" and form == "folder":
        assert program(*arguments, cwd=tmp_path).code == 0
        assert jobs.seed(form, tmp_path) == 1
    else:
        ends(program, *arguments, cwd=tmp_path, codes=(6,), said="out")


@KIND
def test_as_parent_of_the_destination(kind: str, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    SPECIAL[kind](tmp_path / "parent")
    arguments = [argument.replace("out", "parent/out") for argument in jobs.arguments("file", 1)]
    if kind in ("folder", "self"):
        assert program(*arguments, cwd=tmp_path).code == 0
    else:
        ends(program, *arguments, cwd=tmp_path, codes=(6,), said="parent")


@KIND
def test_as_table_and_as_its_spec(kind: str, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    table = json.loads((jobs.folder / "tiny-table.json").read_text())
    SPECIAL[kind](tmp_path / "special.json")
    source = jobs.folder / "source0.pth"
    convert = ["convert", "--src", source, "--dst", "out.safetensors"]
    for arguments in ([*convert, "--table"], [*convert, "--to"], ["lint"]):
        ends(program, *arguments, "special.json", cwd=tmp_path, codes=(4,), said="special.json")
    SPECIAL[kind](tmp_path / "tiny.json")
    (tmp_path / "table.json").write_text(json.dumps(table))
    ends(program, *convert, "--table", "table.json", cwd=tmp_path, codes=(4,), said="tiny")


@KIND
def test_as_a_shard_and_as_an_index(kind: str, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(1)}, folder / "model-00001-of-00002.safetensors")
    where = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    SPECIAL[kind](folder / "model-00002-of-00002.safetensors")
    ends(program, "inspect", "model", cwd=tmp_path, codes=(3,), said="model-00002-of-00002")
    (folder / "model.safetensors.index.json").unlink()
    SPECIAL[kind](folder / "model.safetensors.index.json")
    ends(program, "inspect", "model", cwd=tmp_path, codes=(3,), said="model")


@pytest.mark.parametrize("where", ["source", "residue", "table", "destination"])
@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/full", "/dev/stdin", "/dev/fd/0", "/proc/self/mem"])
def test_devices_by_their_own_names(name: str, where: str, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    """stdin is a FIFO with a writer who never writes."""
    os.mkfifo(tmp_path / "stdin")
    arguments = jobs.arguments("file", 0, force=True)
    if where == "residue":
        arguments += ["--residue", name]
    else:
        option = {"source": "--src", "table": "--table", "destination": "--dst"}[where]
        arguments[arguments.index(option) + 1] = name
    code = {"source": 3, "residue": 3, "table": 4, "destination": 6}[where]
    done = program(*arguments, cwd=tmp_path, timeout=10, stdin=str(tmp_path / "stdin"))
    assert done.code == code, done
    assert re.fullmatch(SENTENCE, done.err), done.err
    assert listing(tmp_path) == {"stdin": None}


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_a_file_on_stdin_is_a_file(name: str, program: Program, jobs: Jobs, tmp_path: Path) -> None:
    arguments = jobs.arguments("file", 0)
    source = arguments[arguments.index("--src") + 1]
    arguments[arguments.index("--src") + 1] = name
    done = program(*arguments, cwd=tmp_path, stdin=source)
    assert done.code == 0, done
    assert (tmp_path / "out.safetensors").exists()


@KIND
@pytest.mark.parametrize("record", ["config", "conversion"])
def test_as_record_in_a_folder(kind: str, record: Literal["config", "conversion"], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(1)}, folder / "model.safetensors")
    SPECIAL[kind](folder / f"{record}.json")
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(10)
    try:
        with open_checkpoint(folder) as checkpoint:
            if kind == "dangling":
                assert find_record(folder, checkpoint, record) is None
            else:
                with pytest.raises(ModelError, match=record):
                    find_record(folder, checkpoint, record)
    finally:
        signal.alarm(0)


@pytest.fixture(scope="module")
def confined() -> Iterator[Program]:
    """The program as somebody whom permissions bind: for root, without the capabilities to pass over them."""
    prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--") if os.geteuid() == 0 else ()
    if prefix and shutil.which(prefix[0]) is None:
        pytest.skip("without setpriv, root cannot be refused anything")
    with Program(prefix=prefix) as started:
        yield started


@pytest.mark.parametrize(
    "where",
    ["source", "residue", "table", "spec", "shard", "folder of the source"],
)
def test_what_may_not_be_read(where: str, confined: Program, jobs: Jobs, tmp_path: Path) -> None:
    write_table(tmp_path)
    source = tmp_path / "source.pth"
    shutil.copy(jobs.folder / "source0.pth", source)
    arguments = ["convert", "--src", source.name, "--table", "tiny-table.json", "--dst", "out.safetensors"]
    locked = {"source": source, "table": tmp_path / "tiny-table.json", "spec": tmp_path / "tiny.json"}.get(where)
    if where == "residue":
        locked = tmp_path / "residue.safetensors"
        locked.touch()
        arguments += ["--residue", locked.name]
    elif locked is None:
        locked = folder = tmp_path / "model"
        folder.mkdir()
        torch.save({"w": torch.ones(1)}, folder / "one.bin")
        (folder / "pytorch_model.bin.index.json").write_text('{"metadata": {}, "weight_map": {"w": "one.bin"}}')
        locked = folder / "one.bin" if where == "shard" else folder
        arguments[2] = "model"
    locked.chmod(0)
    try:
        done = confined(*arguments, cwd=tmp_path)
        assert done.code == (4 if where in ("table", "spec") else 3), done
        assert re.fullmatch(SENTENCE, done.err), done.err
        assert "ermission" in done.err
        assert not (tmp_path / "out.safetensors").exists()
    finally:
        locked.chmod(0o700)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_may_not_be_written_to(
    form: str, force: bool, confined: Program, jobs: Jobs, tmp_path: Path
) -> None:
    if force:
        jobs.put(form, 0, tmp_path)
    tmp_path.chmod(0o500)
    ends(confined, *jobs.arguments(form, 1, force=force), cwd=tmp_path, codes=(6,), said="Permission denied")
    tmp_path.chmod(0o700)
