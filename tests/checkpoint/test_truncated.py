"""A download that broke off is told from other damage, with how much there is of how much."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from converter.errors import CheckpointError, CorruptCheckpointError
from tests.support.reading import refusal

STATE_DICT = {"w": torch.arange(300_000.0), "half": torch.ones(1000, dtype=torch.float16), "view": torch.ones(6)[:2]}
WRITERS = {
    "zip": lambda path: torch.save({"model": STATE_DICT}, path),
    "legacy": lambda path: torch.save({"model": STATE_DICT}, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path: save_file(STATE_DICT, path),
}
AMOUNTS = re.compile(r"has (.+) of (at least )?(.+?), and ends inside (.+?):")


@pytest.fixture(params=WRITERS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"model.{'safetensors' if request.param == 'safetensors' else 'pth'}"
    WRITERS[request.param](path)
    return path


def test_a_file_cut_in_half_says_how_much_there_is_of_how_much(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
    message = refusal(path, CorruptCheckpointError)
    there, at_least, needed, _ = AMOUNTS.search(message).groups()
    assert (there, needed) == (f"{path.stat().st_size / 1e3:.1f} kB", "1.2 MB")
    assert bool(at_least) == (path.suffix == ".pth")
    assert "broke off. Get it again, or resume the download." in message


@pytest.mark.parametrize("lost", [1, 100, 1000, 3000])
def test_a_file_that_lacks_its_end_is_cut_off(lost: int, path: Path) -> None:
    os.truncate(path, path.stat().st_size - lost)
    message = refusal(path, CorruptCheckpointError)
    assert ("broke off" in message, "crafted" in message) == (True, False)


def test_amounts_that_look_the_same_are_given_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(STATE_DICT, path)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert f"has {size - 1} bytes of {size} bytes, and ends inside tensor" in refusal(path, CorruptCheckpointError)


def test_a_file_with_something_appended_is_not_cut_off(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"appended")
    message = refusal(path, CorruptCheckpointError)
    assert ("broke off" in message, "crafted" in message) == (False, True)


def test_a_header_cut_in_two_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(STATE_DICT, path)
    os.truncate(path, 60)
    assert "has 60 B of at least" in refusal(path, CorruptCheckpointError)


@pytest.mark.parametrize("keep", [0, 1, 8, 9, 30, 64, 100, 300, 700, 2000])
def test_a_file_cut_anywhere_is_refused(keep: int, path: Path) -> None:
    os.truncate(path, keep)
    refusal(path, CheckpointError)


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_a_legacy_file_cut_anywhere_in_its_pickles_is_cut_off(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {"w": torch.ones(9)}}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    begin = whole.index(b"model")
    for keep in range(begin, len(whole) - 36):  # up to the numbers
        path.write_bytes(whole[:keep])
        message = refusal(path, CorruptCheckpointError)
        assert ("most likely its download broke off" in message, "crafted" in message) == (True, False), (keep, message)


def test_a_legacy_file_whose_pickle_stops_amid_the_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {"w": torch.ones(9)}}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for what in (b"X\5\xff\xff\xffmodel", b"\xff\5\0\0\0model"):  # a length beyond all pickles, an unknown opcode
        path.write_bytes(whole.replace(b"X\5\0\0\0model", what))
        assert "damaged or crafted" in refusal(path, CorruptCheckpointError)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_an_archive_that_does_not_begin_with_its_pickle_is_cut_off_too(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(200, 200)), path)
    os.truncate(path, 100_000)
    assert "has 100.0 kB, and ends inside the zip archive" in refusal(path, CorruptCheckpointError)
