"""A conversion that is stopped, by whatever, leaves the disk as it was."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from converter.cli import main
from tests.support.tiny import tiny_weights, write_table

# runs the command line, and stops itself with a signal as soon as the first bytes are written
STOPPED = """
import contextlib, importlib, os, signal, sys, time

command = importlib.import_module("converter.cli.convert")

@contextlib.contextmanager
def progress(total, description):
    def stop(count):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(5)
    yield stop

command.progress = progress
from converter.cli import main
main(sys.argv[2:])
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    torch.save(tiny_weights(), tmp_path / "source.pth")
    table = write_table(tmp_path)
    return ["convert", "--src", str(tmp_path / "source.pth"), "--table", str(table), "--dst"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["kill", "term", "int"]
)
@pytest.mark.parametrize("name", ["out.safetensors", "out"])
@pytest.mark.parametrize("there", [False, True], ids=["new", "replacing"])
def test_a_signal_leaves_nothing(
    number: signal.Signals, code: int, name: str, there: bool, arguments: list[str], tmp_path: Path
) -> None:
    out = tmp_path / name
    if there:
        main([*arguments, str(out)], standalone_mode=False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    command = [sys.executable, "-c", STOPPED, str(int(number)), *arguments, str(out), *(["--force"] * there)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert code == -9 or "nothing is half-written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_size_limit_is_a_typed_error(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "converter", *arguments, str(tmp_path / "out.safetensors")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 6
    assert "File too large; free some space or choose another destination" in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_a_disk_that_fills_up_is_a_typed_error(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, str(tmp_path / "out.safetensors")])
    assert stopped.value.code == 6
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_two_at_once_give_one_whole_result(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "converter", *arguments, str(tmp_path / "out.safetensors")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 6], [0, 0]), errors
    assert codes.count(0) == 1, errors
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.safetensors",
        "source.pth",
        "tiny-table.json",
        "tiny.json",
    ]
