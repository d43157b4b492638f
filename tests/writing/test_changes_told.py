"""Who reads a converted file that was changed after it was written says so: the conversion from it, and loading."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from converter.checkpoint import open_checkpoint
from converter.errors import ConverterWarning
from converter.glip import GLIP, get_model
from converter.writing.changes import compared_meanwhile
from tests.support.changed_file import flip
from tests.support.small_files import official, run
from tests.support.small_formats import small_tables

NAME = "head.box.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """own.safetensors, and folder/, which `convert` wrote."""
    folder = tmp_path_factory.mktemp("written")
    with small_tables(tmp_path_factory.mktemp("tables") / "mappings", "glip-t"):
        torch.save({"model": official()}, folder / "official.pth")
        for name in ("own.safetensors", "folder"):
            run("convert", "--src", folder / "official.pth", "--dst", folder / name)
        yield folder


@pytest.fixture
def changed(written: Path, tmp_path: Path) -> Path:
    """Copies in which one bit is another."""
    copy = Path(shutil.copytree(written, tmp_path / "copy"))
    flip(copy / "own.safetensors", NAME)
    flip(copy / "folder" / "model.safetensors", NAME)
    return copy


@pytest.mark.parametrize("name", ["own.safetensors", "folder"])
def test_a_conversion_from_it_warns(name: str, written: Path, changed: Path, tmp_path: Path) -> None:
    there = ("--dst", tmp_path / "back.pth", "--to", "glip-official")
    assert "changed" not in run("convert", "--src", written / name, *there).stderr
    result = run("convert", "--src", changed / name, *there, "--force")
    count = len(load_file(written / "own.safetensors"))
    said = f"was changed after it was written: 1 tensor of {count} is not as recorded (changed: {NAME}). Convert the or"
    assert said in result.stderr
    assert result.stderr.count("warning") == 1
    assert "changed" not in run("convert", "--src", changed / name, *there, "--force", "--dry-run").stderr


def test_one_that_reads_a_part_of_it_compares_that_part(written: Path, changed: Path, tmp_path: Path) -> None:
    """The image encoder has no boxes."""
    part = ("--to", "timm-swin", "--dst", tmp_path / "swin.safetensors", "--force")
    assert run("convert", "--src", changed / "own.safetensors", *part).stderr == ""
    encoder = next(name for name in load_file(written / "own.safetensors") if name.endswith("qkv.weight"))
    flip(changed / "own.safetensors", encoder)
    assert f"(changed: {encoder})" in run("convert", "--src", changed / "own.safetensors", *part).stderr


def test_an_unsound_record_does_not_stop_a_conversion(changed: Path, tmp_path: Path) -> None:
    (changed / "folder" / "conversion.json").write_text("{")
    done = run("convert", "--src", changed / "folder", "--dst", tmp_path / "back.pth", "--to", "glip-official")
    assert "its record of the conversion is invalid" in done.stderr


@pytest.mark.parametrize("name", ["own.safetensors", "folder"])
def test_loading_it_warns(name: str, written: Path, changed: Path) -> None:
    GLIP.from_pretrained(written / name)
    with pytest.warns(ConverterWarning, match=f"changed: {NAME}") as told:
        GLIP.from_pretrained(changed / name)
    assert len(told) == 1
    with pytest.warns(ConverterWarning, match=f"changed: {NAME}"):
        get_model("glip-t", pretrained=changed / name)


def test_what_was_fine_tuned_and_saved_has_a_record_of_its_own(written: Path, tmp_path: Path) -> None:
    model = GLIP.from_pretrained(written / "own.safetensors")
    with torch.no_grad():
        model.head.box.weight += 1
    model.save_pretrained(tmp_path / "tuned")
    GLIP.from_pretrained(tmp_path / "tuned")
    shown = run("verify", tmp_path / "tuned").stdout
    assert shown.splitlines()[-1] == "as recorded"
    assert "saved by save_pretrained, not converted: 1 of" in shown
    back = ("convert", "--src", tmp_path / "tuned", "--to", "glip-official", "--json", "--dst")
    assert run(*back, tmp_path / "back.pth").stderr == ""
    flip(tmp_path / "tuned" / "model.safetensors", NAME)
    assert f"changed: {NAME}" in run("verify", tmp_path / "tuned", code=1).stdout
    assert f"(changed: {NAME})" in run(*back, tmp_path / "again.pth").stderr


def test_what_is_converted_on_the_way_is_compared_where_it_was_read(written: Path, tmp_path: Path) -> None:
    """By the record of the other format, which names the tensors otherwise."""
    other = tmp_path / "mmdet.safetensors"
    run("convert", "--src", written / "official.pth", "--dst", other, "--to", "mmdet-glip")
    GLIP.from_pretrained(other)
    name = next(name for name in load_file(other) if "log_scale" in name)
    flip(other, name)
    with pytest.warns(ConverterWarning, match=f"changed: {name}"):
        GLIP.from_pretrained(other)


def test_a_record_that_cannot_be_compared_is_told_and_stops_nothing(changed: Path) -> None:
    (changed / "folder" / "conversion.json").write_text("{")
    with pytest.warns(ConverterWarning, match="not compared with the record"):
        GLIP.from_pretrained(changed / "folder")


def test_what_fails_meanwhile_ends_the_comparison_in_silence(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(checkpoint: object, on_bytes: Callable[[int], object]) -> dict[str, str]:
        for _ in range(1000):
            time.sleep(0.02)
            on_bytes(1)
        return {}

    monkeypatch.setattr("converter.writing.changes.tensor_hashes", slowly)
    before, began = threading.active_count(), time.monotonic()
    with warnings.catch_warnings(), open_checkpoint(changed / "own.safetensors") as checkpoint:
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="of something else"), compared_meanwhile(checkpoint):
            raise ValueError("of something else")
    assert threading.active_count() == before
    assert time.monotonic() - began < 10


def test_where_no_thread_can_be_had_it_is_compared_all_the_same(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.warns(ConverterWarning, match=f"changed: {NAME}"):
        GLIP.from_pretrained(changed / "own.safetensors")


def test_the_record_of_a_folder_is_of_its_file_although_that_is_given(changed: Path) -> None:
    result = run("verify", changed / "folder" / "model.safetensors", code=1)
    assert f"changed: {NAME}" in result.stdout


def test_verify_says_what_a_record_proves(written: Path, changed: Path) -> None:
    done = json.loads(run("verify", written / "folder", "--json").stdout)
    assert (done["verdict"], done["certificate"], done["problems"]) == ("as recorded", None, [])
    assert "not that the conversion is right" in done["record"]["proves"]
    done = json.loads(run("verify", changed / "folder", "--json", code=1).stdout)
    assert (done["verdict"], done["record"]["changed"]) == ("FAIL", [NAME])
    assert done["record"]["proves"] is None


def test_a_record_does_not_stand_in_for_a_certificate_that_is_gone(written: Path, tmp_path: Path) -> None:
    """A published folder lists all its files: to take the certificate out is no way to pass."""
    folder = Path(shutil.copytree(written / "folder", tmp_path / "folder"))
    ledger = json.loads((folder / "conversion.json").read_text())
    (folder / "conversion.json").write_text(json.dumps(ledger | {"folder": [*ledger["folder"], "parity.json"]}))
    assert "there is no certificate" in run("verify", folder, code=8).stderr
    assert "there is no certificate" in run("verify", written / "folder", "--certificate", "mine.json", code=8).stderr


def test_without_a_record_there_is_nothing_to_verify_by(written: Path) -> None:
    assert "there is no certificate" in run("verify", written / "official.pth", code=8).stderr


def test_verify_by_a_record_needs_no_torch(written: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from converter.cli import main; main(['verify', sys.argv[1]])"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, written / "own.safetensors"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "as recorded"), done.stderr
