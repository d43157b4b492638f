"""`converter detect` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from click.testing import CliRunner, Result
from PIL import Image

from converter.cli import main
from tests import ROOT
from tests.support.small_folder import small_folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["detect", *map(str, arguments)])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    small_folder(folder / "small")
    for name in ("rocket", "astronaut"):
        Image.fromarray(getattr(skimage.data, name)()).resize((120, 90)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def options(shared: Path) -> list[object]:
    return ["--vocab", shared / "small" / "vocab.txt", "--threshold", 0.3]


def test_what_is_found_is_printed(shared: Path, options: list[object]) -> None:
    result = run(shared / "small", shared / "rocket.png", "--prompt", "person. dog.", *options)
    assert result.exit_code == 0, result.output
    headline, *rows = result.stdout.splitlines()
    assert headline.startswith(f"{shared / 'rocket.png'}: 120x90, ")
    assert len(rows) == int(headline.split(", ")[1].split()[0]) > 0
    assert {row.split()[-1] for row in rows} <= {"person", "dog"}


def test_where_nothing_is_found_the_threshold_is_named(shared: Path) -> None:
    words = [shared / "small", shared / "rocket.png", "--prompt", "dog."]
    result = run(*words, "--threshold", 0.99)
    assert (result.exit_code, result.stdout) == (0, f"{shared / 'rocket.png'}: 120x90, 0 found\n")
    assert result.stderr == "nothing scores above 0.99; a lower --threshold shows what comes near it\n"
    assert run(*words, "--threshold", 0.3).stderr == ""


def test_a_second_prompt_is_refused_rather_than_the_first_forgotten(shared: Path) -> None:
    result = run(shared / "small", shared / "rocket.png", "--prompt", "dog.", "--prompt", "traffic light")
    assert result.exit_code == 2
    assert "it is given 2 times; write all names in one: 'dog. traffic light.'" in result.stderr


def test_json_says_everything(shared: Path, options: list[object]) -> None:
    pictures = [shared / "rocket.png", shared / "astronaut.png"]
    result = run(shared / "small", *pictures, "--prompt", "person. dog.", *options, "--json")
    content = json.loads(result.stdout)
    assert content["captions"] == ["person. dog"]
    assert [entry["image"] for entry in content["images"]] == list(map(str, pictures))
    for entry in content["images"]:
        assert (entry["width"], entry["height"]) == (120, 90)
        assert len(entry["boxes"]) == len(entry["scores"]) == len(entry["labels"]) == len(entry["phrases"]) > 0
        boxes = np.array(entry["boxes"])
        assert boxes.min() >= 0
        assert (boxes.max(axis=0) <= [120, 90, 120, 90]).all()
    assert content["images"][0]["boxes"] != content["images"][1]["boxes"]


def test_a_caption_with_spans(shared: Path, options: list[object]) -> None:
    spans = ["--caption", "a person with two dogs", "--span", "2:8", "--span", "18:22"]
    content = json.loads(run(shared / "small", shared / "rocket.png", *spans, *options, "--json").stdout)
    assert content["captions"] == ["a person with two dogs"]
    assert set(content["images"][0]["phrases"]) <= {"person", "dogs"}


def test_names_with_full_stops(shared: Path, options: list[object]) -> None:
    names = ["--name", "U.S. flag", "--name", "traffic light"]
    content = json.loads(run(shared / "small", shared / "rocket.png", *names, *options, "--json").stdout)
    assert content["captions"] == ["U.S. flag. traffic light"]
    assert set(content["images"][0]["phrases"]) == {"U.S. flag", "traffic light"}


def test_drawings_and_json_are_written(shared: Path, options: list[object], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with Image.open(shared / "astronaut.png") as picture:
        picture.save(tmp_path / "other" / "rocket.png")
    pictures = [shared / "rocket.png", tmp_path / "other" / "rocket.png"]
    out = tmp_path / "found"
    arguments = [shared / "small", *pictures, "--prompt", "person.", *options, "--out", out]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == ["detections.json", "rocket-2.png", "rocket.png"]
    content = json.loads((out / "detections.json").read_text())
    for entry, path in zip(content["images"], pictures, strict=True):
        with Image.open(entry["drawing"]) as drawing, Image.open(path) as picture:
            changed = (np.asarray(drawing) != np.asarray(picture)).any(axis=-1)
        left, top, _, bottom = (round(corner) for corner in entry["boxes"][0])
        # the frame of the best box is on top: nearly all of its left edge is changed
        assert changed[top : bottom + 1, min(left, 119)].mean() > 0.9
        assert 0 < changed.mean() < 1
    assert run(*arguments).exit_code == 6
    assert run(*arguments, "--force").exit_code == 0


def test_drawings_replace_no_picture(shared: Path, options: list[object], tmp_path: Path) -> None:
    with Image.open(shared / "rocket.png") as picture:
        picture.save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    arguments = [tmp_path / "a.png", "--prompt", "person.", *options, "--out", tmp_path, "--force"]
    result = run(shared / "small", *arguments)
    assert result.exit_code == 6
    assert "is one of the pictures" in result.stderr
    assert (tmp_path / "a.png").read_bytes() == before


def test_the_others_are_done_where_one_picture_is_bad(shared: Path, options: list[object], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    pictures = [tmp_path / "bad.png", shared / "rocket.png"]
    result = run(shared / "small", *pictures, "--prompt", "person.", *options, "--json")
    assert result.exit_code == 7
    bad, good = json.loads(result.stdout)["images"]
    assert "is not a picture" in bad["error"]
    assert good["boxes"]
    assert "bad.png: is not a picture" in result.stderr


def error_of(*arguments: object) -> tuple[int, dict[str, Any]]:
    result = run(*arguments, "--json")
    return result.exit_code, json.loads(result.stdout)["error"]


def test_exit_codes(shared: Path, options: list[object], tmp_path: Path) -> None:
    model, picture = shared / "small", shared / "rocket.png"
    (tmp_path / "bad.png").write_bytes(b"")
    for arguments in (
        [],
        ["--prompt", "a.", "--caption", "a"],
        ["--prompt", "a.", "--name", "a"],
        ["--name", "a", "--caption", "a", "--span", "0:1"],
        ["--name", "a", "--span", "0:1"],
        ["--caption", "a"],
        ["--prompt", "a.", "--span", "0:1"],
        ["--prompt", "a.", "--threshold", "nan"],
    ):
        assert run(model, picture, *arguments).exit_code == 2
    for arguments, message in (
        ([model, tmp_path / "bad.png", "--prompt", "dog."], "is not a picture"),
        ([model, tmp_path / "absent.png", "--prompt", "dog."], "No such file"),
        ([model, picture, "--prompt", "."], "expected names like"),
        ([model, picture, "--prompt", ""], "expected names like"),
        ([model, picture, "--name", ""], "none empty"),
        ([model, picture, "--name", "dog", "--name", "dog"], "'dog' is there twice"),
        ([model, picture, "--name", "dog " * 300], "alone has 302 tokens, expected at most 256"),
        ([model, picture, "--prompt", "zebra."], "no word of 'zebra'"),
        ([model, picture, "--caption", "dog", "--span", "0:9"], "within the 3 characters"),
        ([model, picture, "--caption", "dog", "--span", "0-3"], "like 2:8"),
        ([model, picture, "--prompt", "dog.", "--vocab", tmp_path / "absent.txt"], "No such file"),
    ):
        rest = [*(options if "--vocab" not in arguments else []), "--out", tmp_path / "out", *arguments[2:]]
        code, error = error_of(*arguments[:2], *rest)
        assert (code, error["type"]) == (7, "ModelError"), error
        assert message in error["message"]
        assert not (tmp_path / "out").exists()
    code, error = error_of(tmp_path / "absent.safetensors", picture, "--prompt", "dog.", *options)
    assert (code, error["type"]) == (3, "NotACheckpointError")
    assert "no such file or folder" in error["message"]
    code, error = error_of(model, picture, "--prompt", "dog.", *options, "--out", tmp_path / "no" / "folder")
    assert (code, error["type"]) == (6, "DestinationError")
    assert "make it first" in error["message"]
    assert error_of(model, picture, "--prompt", "dog.", *options, "--device", "cuda:99")[0] == 8


def test_what_takes_seconds_to_import_is_not(shared: Path) -> None:
    """Torch's compiler and sympy, for a model that only is to be loaded and run."""
    code = (
        "import sys; from converter.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "assert 'torch' in sys.modules and not {'torch._dynamo', 'sympy', 'huggingface_hub'} & sys.modules.keys()"
    )
    command = ["detect", shared / "small", shared / "rocket.png", "--prompt", "dog.", "--vocab", shared / "small"]
    subprocess.run([sys.executable, "-c", code, *map(str, command)], check=True, cwd=ROOT, capture_output=True)


def test_a_missing_package_is_named(shared: Path, options: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.startswith(("converter.glip.detect.", "converter.grounding.", "PIL"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = run(shared / "small", shared / "rocket.png", "--prompt", "dog.", *options)
    assert result.exit_code == 8
    assert "detect needs pillow, which is not installed: pip install 'converter[detect]'" in result.stderr
