"""Results line by line; tests/faults/test_detect.py stops whole programs that write one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converter.errors import DestinationError
from converter.writing.journal import Journal, differences


def test_what_was_kept_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        assert (journal.settings, [*journal.results()]) == (None, [])
        assert not path.exists()
        journal.begin({"a": 1})
        journal.add({"n": 1})
        journal.add({"n": "\ud800\n"})
    with Journal(path) as journal:
        assert (journal.settings, [*journal.results()]) == ({"a": 1}, [{"n": 1}, {"n": "\ud800\n"}])
        journal.add({"n": 3})
    with Journal(path) as journal:
        assert len([*journal.results()]) == 3
        journal.remove()
    assert not path.exists()


@pytest.mark.parametrize("kept", range(3))
def test_of_a_file_that_ends_anywhere_whole_lines_are_read(kept: int, tmp_path: Path) -> None:
    path, whole = tmp_path / "journal", b'{"a":1}\n{"n":1}\n{"n":2}\n'
    for end in range(8 * kept, 8 * kept + 8):
        path.write_bytes(whole[:end])
        with Journal(path) as journal:
            assert journal.settings == ({"a": 1} if kept else None)
            assert [result["n"] for result in journal.results()] == [1, 2][: max(kept - 1, 0)]
            if kept:
                journal.add({"n": 7})
                assert path.read_bytes() == whole[: 8 * kept] + b'{"n":7}\n'


def test_begun_anew_what_was_there_is_dropped_once_there_is_something_new(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"what not\n")
    with Journal(path, begin_anew=True) as journal:
        assert path.read_bytes() == b"what not\n"
        journal.begin({"a": 2})
        assert path.read_bytes() == b'{"a":2}\n'


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as first, Journal(path) as second:
        first.begin({})
        with pytest.raises(DestinationError, match="appeared meanwhile"):
            second.begin({})
        with pytest.raises(DestinationError, match="another run is at work on it"):
            Journal(path)
        first.add({"n": 1})
    with Journal(path) as third:
        assert [*third.results()] == [{"n": 1}]


def test_what_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("journal")
    (tmp_path / "list").write_bytes(b"[1]\n")
    (tmp_path / "other").write_bytes(b"{}\n")
    (tmp_path / "second").hardlink_to(tmp_path / "other")
    (tmp_path / "endless").touch()
    os.truncate(tmp_path / "endless", 6 << 30)
    (tmp_path / "twice").write_bytes(b'{"a":1,"a":2}\n')
    for name, said in (
        ("folder", "cannot be written"),
        ("fifo", "not a file"),
        ("link", "cannot be written"),
        ("list", "line 1 cannot be read"),
        ("second", "another name"),
        ("endless", "line 1 cannot be read .larger than 16 MiB"),
        ("twice", "line 1 cannot be read"),
    ):
        with pytest.raises(DestinationError, match=said):
            Journal(tmp_path / name)


def test_differences_are_named() -> None:
    assert differences({"a": 1, "b": {"c": 1, "d": [1]}}, {"a": 1, "b": {"c": 2, "d": [1]}, "e": None}) == ["b.c"]
    assert differences({"a": {"b": 1}}, {"a": None}) == ["a"]
    assert differences({"a": 1}, {"a": 1.0}) == []
