"""A capture knows its weights, whichever file they come in; others are not compared with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter.cli import main
from converter.glip.family import FAMILY
from converter.mapping.load import load_table
from converter.parity.capture import load_capture
from converter.parity.same_weights import same_weights
from converter.writing.in_memory import open_converted
from converter.writing.state_dict import names_read, state_dict_of
from tests.parity.test_capture_official import script
from tests.support.small_formats import small_tables
from tests.support.small_glip import CONFIG, small_glip


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def judged(path: Path, capture: Path) -> bool | None:
    with open_converted(path) as checkpoint, load_capture(capture) as opened:
        return same_weights(opened, path, checkpoint, FAMILY)


def altered(source: Path, destination: Path, **facts: Any) -> Path:
    """A capture that says something else of its making; None takes an entry out."""
    with safe_open(source, "pt") as file:
        content = json.loads(file.metadata()["capture"]) | facts
    kept = {key: value for key, value in content.items() if value is not None}
    save_file(load_file(source), destination, {"capture": json.dumps(kept)})
    return destination


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Path]:
    """The small model in every form; here.safetensors, a capture of it; other.safetensors, a conversion of others."""
    folder = tmp_path_factory.mktemp("there")
    with small_tables(tmp_path_factory.mktemp("tables") / "mappings", sizes=CONFIG):
        weights = small_glip(torch.float32).state_dict()
        torch.save(weights, folder / "bare.pth")
        torch.save({n: t * 1.25 if n == "head.box.weight" else t for n, t in weights.items()}, folder / "tuned.pth")
        run("convert", "--src", folder / "bare.pth", "--dst", folder / "official.pth", "--to", "glip-official")
        run("convert", "--src", folder / "tuned.pth", "--dst", folder / "other.pth", "--to", "glip-official")
        official = folder / "official.pth"
        run("convert", "--src", official, "--dst", folder / "own.safetensors")
        run("convert", "--src", official, "--dst", folder / "half.safetensors", "--dtype", "bfloat16")
        run("convert", "--src", official, "--dst", folder / "shards", "--max-shard-size", "100kB")
        run("convert", "--src", official, "--dst", folder / "mmdet.pth", "--to", "mmdet-glip")
        run("convert", "--src", folder / "mmdet.pth", "--dst", folder / "back.safetensors")
        run("convert", "--src", folder / "other.pth", "--dst", folder / "other.safetensors")
        run("capture", official, "--dst", folder / "here.safetensors", "--errors", "", "--compact")
        yield folder


FORMS = ["official.pth", "own.safetensors", "shards", "half.safetensors", "mmdet.pth", "back.safetensors", "bare.pth"]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_weights_are_known_in_every_form(form: str, there: Path) -> None:
    assert judged(there / form, there / "here.safetensors") is True


@pytest.mark.parametrize("form", ["other.pth", "other.safetensors", "tuned.pth"])
def test_other_weights_are_known_as_such(form: str, there: Path) -> None:
    assert judged(there / form, there / "here.safetensors") is False


def test_the_official_environment_writes_the_same_hash(there: Path) -> None:
    state = torch.load(there / "official.pth", weights_only=True)["model"]
    assert all(name.startswith("module.") for name in state)
    table = load_table("glip-official")
    with open_converted(there / "own.safetensors") as checkpoint:
        expected = state_dict_of(checkpoint, table)
    names = names_read(table, table.spec.variant("small").config)
    assert script().state_dict_entry(state, script().unwrapped(state), names) == expected
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    assert script().state_dict_entry(bare, script().unwrapped(bare), names) == expected
    bare["backbone.body.norm0.weight"] = bare["rpn.head.bias_lang"] = torch.zeros(24)
    assert script().state_dict_entry(bare, script().unwrapped(bare), names) != expected


def test_what_cannot_be_known_is_not_guessed(there: Path, tmp_path: Path) -> None:
    here, entry = there / "here.safetensors", {"dtype": "bfloat16", "sha256": "0" * 64}
    old = altered(here, tmp_path / "old.safetensors", state_dict=None)
    half = altered(here, tmp_path / "half.safetensors", state_dict=entry)
    assert [judged(there / "own.safetensors", capture) for capture in (old, half)] == [None, None]


def test_other_weights_are_refused_before_the_model_runs(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.cli.families.load_subject", None)  # it would fail if it were called
    for command in (("parity",), ("parity", "--coverage"), ("parity", "--mutate", 3), ("certify",)):
        name, *options = command
        arguments = (name, there / "other.safetensors", "--reference", there / "here.safetensors", *options)
        said = run(*arguments, code=8).stderr
        assert re.fullmatch(r"error: .*holds other weights than those that capture 'here' was made of.*\n", said)
        assert "converter capture REFERENCE --dst mine.safetensors" in said
        assert ("--other-weights" in said) == (name == "parity")
        error = json.loads(run(*arguments, "--json", code=8).stdout)["error"]
        assert (error["type"], error["message"]) == ("OtherWeightsError", said.removeprefix("error: ").strip())


def test_for_a_capture_of_the_official_code_its_script_is_named(there: Path, tmp_path: Path) -> None:
    facts = {"official_config": "x.yaml", "weights": "synthetic"}
    capture = altered(there / "here.safetensors", tmp_path / "official.safetensors", **facts)
    said = run("parity", there / "other.pth", "--reference", capture, code=8).stderr
    assert "(synthetic), so nothing was compared; make a capture of your weights: `converter tables --taps" in said
    assert "--taps glip-official --variant small > taps.json`" in said
    assert "`python capture_official.py --config FILE --weights OFFICIAL.pth --taps taps.json" in said


def test_they_are_compared_if_that_is_asked_for(there: Path) -> None:
    arguments = ("parity", there / "other.safetensors", "--reference", there / "here.safetensors", "--other-weights")
    assert json.loads(run(*arguments, "--json", code=1).stdout)["same_weights"] is False
    assert "not those that the capture was made of" in run(*arguments, code=1).stdout


def test_a_conversion_that_was_changed_afterwards_is_compared_and_fails(there: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.safetensors"
    data = bytearray((there / "own.safetensors").read_bytes())
    data[-2] ^= 0x40  # the exponent of the last number
    changed.write_bytes(data)
    report = json.loads(run("parity", changed, "--reference", there / "here.safetensors", "--json", code=1).stdout)
    assert (report["passed"], report["same_weights"]) == (False, True)
