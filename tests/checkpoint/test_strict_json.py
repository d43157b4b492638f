"""JSON of a stranger: what two readers could understand differently, and what would take all memory, is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converter.checkpoint.strict_json import parse_json, read_json, read_limited

REFUSED = {
    "a name twice": ('{"a": 1, "a": 1}', "'a' is there twice"),
    "a long name twice": (f'{{"{"n" * 300}": 1, "{"n" * 300}": 1}}', "is there twice"),
    "NaN": ("[NaN]", "NaN is not a JSON number"),
    "infinity": ("[-Infinity]", "-Infinity is not a JSON number"),
    "a number beyond all floats": ("[1e999]", "the number '1e999' is too large"),
    "digits without end": ("1" * 10_000, "digits"),
    "depth": ("[" * 100_000, "nested too deeply"),
    "many objects": ("[" + "{}," * 1_000_000 + "{}]", "more than 300000 commas, colons and brackets"),
    "many numbers": ("[" + "1," * 300_000 + "1]", "more than 300000 commas, colons and brackets"),
    "levels below Python's own limit": ("[" * 101 + "]" * 101, "nested too deeply"),
    "a number of many digits": ("[" + "9" * 310 + "]", "310 digits"),
    "bytes that are not text": (b'"\xff"', "utf-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "nothing": (b"", "Expecting value"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_a_few_words(what: str) -> None:
    text, said = REFUSED[what]
    with pytest.raises(ValueError, match=said) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 500


def test_a_byte_order_mark_is_skipped_in_files_alone(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbf{"a": [1, 2.5, "\xc3\xa9", null]}'
    (tmp_path / "file.json").write_bytes(text)
    assert read_json(tmp_path / "file.json") == {"a": [1, 2.5, "é", None]}
    with pytest.raises(ValueError, match=r"BOM|Expecting"):
        parse_json(text)


def test_only_regular_files_of_a_sensible_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b" " * 2_000_000)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_limited(tmp_path / "large", 1 << 20)
    with pytest.raises(ValueError, match="not a file"):
        read_json(tmp_path / "fifo")
    with pytest.raises(OSError, match="directory"):
        read_json(tmp_path)
