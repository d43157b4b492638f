"""What a table of one's own made says so, on the terminal and in the ledger, however often it is converted again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from converter.checkpoint import open_checkpoint
from converter.mapping import folders
from converter.mapping.load import load_table
from converter.writing.ledger import UNKNOWN_TABLE, custom_tables
from tests.support.small_files import official, run, tensors_in

pytestmark = pytest.mark.usefixtures("small_mappings")


def ledger(path: Path) -> dict[str, Any]:
    with open_checkpoint(path) as checkpoint:
        found: dict[str, Any] = json.loads(checkpoint.metadata["conversion"])
    return found


@pytest.fixture
def custom(tmp_path: Path) -> dict[str, Any]:
    """Ours, and the entry of a ledger that names it."""
    content = json.loads((folders.mappings_folder() / "glip-official.json").read_text())
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content | {"name": "mine"}))
    torch.save(official(), tmp_path / "official.pth")
    return {"name": "mine", "sha256": load_table(path).sha256, "custom": True}


def test_it_is_said(custom: dict[str, Any], tmp_path: Path) -> None:
    arguments = ["convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.safetensors"]
    said = f"custom table 'mine', sha256 {custom['sha256']}: verify and publish what it makes with --accept-table"
    assert "custom" not in run(*arguments, "--dry-run").output
    more = ["--table", tmp_path / "mine.json"]
    assert said in run(*arguments, *more, "--dry-run").output
    assert json.loads(run(*arguments, *more, "--dry-run", "--json").output)["custom_tables"] == [custom]
    assert said in run(*arguments, *more).output
    assert ledger(tmp_path / "own.safetensors")["table"] == custom


def test_it_is_said_of_what_is_written_through_it(custom: dict[str, Any], tmp_path: Path) -> None:
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.pth", "--to", tmp_path / "mine.json")
    found = ledger(tmp_path / "own.pth")
    assert (found["table"].get("custom"), found["through"]) == (None, custom)


def test_converting_again_does_not_wash_it_off(custom: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    run("convert", "--src", tmp_path / "official.pth", "--dst", own, "--table", tmp_path / "mine.json")
    run("convert", "--src", own, "--dst", tmp_path / "half.safetensors", "--dtype", "float16")
    run("convert", "--src", tmp_path / "half.safetensors", "--dst", tmp_path / "mmdet.pth", "--to", "mmdet-glip")
    said = run("convert", "--src", tmp_path / "mmdet.pth", "--dst", tmp_path / "folder").output
    assert f"custom table 'mine', sha256 {custom['sha256']}" in said
    found = json.loads((tmp_path / "folder" / "conversion.json").read_text())
    assert (found["table"]["name"], found["earlier"]) == ("mmdet-glip", [custom])
    assert [table.entry for table in custom_tables(found)] == [custom]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_file_of_a_folder_keeps_it_by_itself(sharded: bool, custom: dict[str, Any], tmp_path: Path) -> None:
    """As it comes from the Hub, without the documents beside it."""
    shards = ["--max-shard-size", "100kB"] if sharded else []
    own, alone = tmp_path / "own", tmp_path / "alone"
    run("convert", "--src", tmp_path / "official.pth", "--dst", own, "--table", tmp_path / "mine.json", *shards)
    alone.mkdir()
    for path in own.glob("model*"):
        shutil.copy(path, alone)
    assert (len(list(alone.iterdir())) > 2) is sharded
    said = run("convert", "--src", alone, "--dst", tmp_path / "again.safetensors").output
    assert f"custom table 'mine', sha256 {custom['sha256']}" in said
    assert UNKNOWN_TABLE not in said
    assert ledger(tmp_path / "again.safetensors")["earlier"] == [custom]


def test_a_ledger_beside_another_checkpoint_is_not_its_own(custom: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "own"
    run("convert", "--src", tmp_path / "official.pth", "--dst", own, "--table", tmp_path / "mine.json")
    shutil.copy(tmp_path / "official.pth", own)
    said = run("convert", "--src", own / "official.pth", "--dst", tmp_path / "again.safetensors").output
    assert "custom" not in said
    assert "earlier" not in ledger(tmp_path / "again.safetensors")


def test_a_converted_file_without_a_record_is_by_an_unknown_table(custom: dict[str, Any], tmp_path: Path) -> None:
    """Also once it was converted again."""
    bare, again = tmp_path / "bare.safetensors", tmp_path / "again.safetensors"
    save_file(tensors_in("glip"), bare)
    said = run("convert", "--src", bare, "--dst", again).output
    assert f"the source was {UNKNOWN_TABLE}\n" in said
    assert json.loads(run("convert", "--src", again, "--dst", "x", "--dry-run", "--json").output)["unknown_table"]
    run("convert", "--src", again, "--dst", tmp_path / "folder")
    found = json.loads((tmp_path / "folder" / "conversion.json").read_text())
    assert (found["unknown_table"], custom_tables(found)) == (True, [])
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "known.safetensors")
    assert "unknown_table" not in ledger(tmp_path / "known.safetensors")


def test_what_a_ledger_says_of_itself_counts_for_nothing() -> None:
    known, unknown = load_table("glip-official").sha256, "0" * 64
    named = {
        "table": {"name": "glip-official", "sha256": known, "custom": True},
        "through": {"name": "glip-official", "sha256": unknown, "custom": False},
        "earlier": [{"name": "mine", "sha256": unknown}],
    }
    assert [(table.name, table.sha256) for table in custom_tables(named)] == [
        ("glip-official", unknown), ("mine", unknown),
    ]  # fmt: skip
