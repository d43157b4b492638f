"""`parity --coverage`, with one capture and with several, as a user or a CI job meets it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from converter.cli import main
from tests.support.saved_glip import save, saved_glip
from tests.support.small_capture import write
from tests.support.small_glip import small_glip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, two captures of them, and weights that are not the captured ones."""
    folder = tmp_path_factory.mktemp("coverage")
    saved_glip(folder)
    write(folder / "one.safetensors")
    run("capture", folder / "small.safetensors", "--dst", folder / "two.safetensors", "--compact")
    other = small_glip()
    with torch.no_grad():
        other.head.bias += 1
    save(other, folder / "wrong.safetensors")
    return folder


def test_several_captures_add_up(folder: Path, tmp_path: Path) -> None:
    page, xml = tmp_path / "page.html", tmp_path / "parity.xml"
    references = ("--reference", folder / "one.safetensors", "--reference", folder / "two.safetensors")
    outputs = ("--html", page, "--junit", xml, "--json")
    result = run("parity", folder / "small.safetensors", *references, "--coverage", "--mutate", 30, *outputs)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert (content["passed"], content["verdict"], content["problems"]) == (True, "pass", [])
    assert [report["capture"] for report in content["references"]] == ["small", "two"]
    found = content["coverage"]
    assert found["captures"] == ["small", "two"]
    assert found["seen"] + sum(found["unseen"].values()) == found["elements"]
    assert all(survivor["explained"] for survivor in content["mutations"]["survivors"] if survivor["kind"] != "mistake")
    assert sum(kind["made"] for kind in content["mutations"]["kinds"].values()) == 30
    text = page.read_text()
    assert "<dt>capture two</dt><dd><span class='pass'>pass" in text
    assert f"{found['gaps']:,} are gaps" in text
    suites = ET.fromstring(xml.read_bytes())
    # of each the summary, two modes, of which the compact one has one skipped, and the detections
    assert len(suites) == 8
    assert {p.get("value") for p in suites.iter("property") if p.get("name") == "capture"} == {"small", "two"}


def test_the_table_names_tensor_share_and_places(folder: Path) -> None:
    result = run("parity", folder / "small.safetensors", "--reference", folder / "one.safetensors", "--coverage")
    assert result.exit_code == 0, result.output
    assert "fpn.p7.weight (32, 32, 3, 3)" in result.stdout
    assert "no position reached it: kernel row 0; kernel column 0" in result.stdout
    assert "rows 13-255" in result.stdout  # positions beyond 13 tokens
    assert "there is no record of a conversion" in result.stdout


def test_a_model_that_fails_beside_one_capture_fails(folder: Path, tmp_path: Path) -> None:
    references = ("--reference", folder / "one.safetensors", "--reference", folder / "two.safetensors")
    result = run("parity", folder / "wrong.safetensors", *references, "--coverage", "--html", tmp_path / "page.html")
    assert (result.exit_code, "no coverage computed" in result.stdout) == (1, True)
    assert result.stdout.startswith("FAIL: 0 of 2 captures agree\n\nFAIL: ")
    assert "Not computed." in (tmp_path / "page.html").read_text()


def test_it_is_of_float64(folder: Path) -> None:
    arguments = ("--reference", folder / "one.safetensors", "--coverage", "--dtype", "float32")
    result = run("parity", folder / "small.safetensors", *arguments)
    assert (result.exit_code, "leave out --dtype float32" in result.stderr) == (2, True)
