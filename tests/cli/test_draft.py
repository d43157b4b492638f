"""`converter draft` as it is run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from converter.cli import main
from converter.mapping.draft import Named
from converter.mapping.lint import lint
from converter.mapping.load import load_table


def write(path: Path, tensors: Iterable[Named]) -> Path:
    save_file({t.name: np.zeros(t.shape, t.kind or "float32") for t in tensors}, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    small = [Named("blocks.0.attn.qkv.weight", (12, 4)), Named("norm.weight", (4,)), Named("steps", (), "int64")]
    other = [Named(f"layers.0.attention.{p}_proj.weight", (4, 4)) for p in "qkv"]
    other += [Named("layernorm.weight", (4,)), Named("steps", (), "int64")]
    return (
        write(tmp_path / "mine.safetensors", small),
        write(tmp_path / "Theirs v2.safetensors", other),
        tmp_path / "out",
    )


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["draft", *map(str, arguments)])


def test_the_command_writes_a_table_that_waits_for_a_person(files: tuple[Path, Path, Path]) -> None:
    source, target, out = files
    result = run("--src", source, "--target", target, "--out", out)
    assert result.exit_code == 0, result.output
    assert "3 rules: 2 sure, 1 doubtful" in result.stdout
    assert f"next: settle 1 doubt, then converter lint {out / 'mine.json'}" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ["mine.json", "theirs-v2.json"]
    assert lint(load_table(out / "mine.json"))[0].startswith("/rules/2 is in doubt")


def test_json_says_all(files: tuple[Path, Path, Path]) -> None:
    source, target, out = files
    content = json.loads(run("--src", source, "--target", target, "--out", out, "--name", "other", "--json").stdout)
    assert (content["table"], content["rules"], content["sure"]) == (str(out / "other.json"), 3, 2)
    assert content["doubtful"][0]["rule"] == "/rules/2"
    assert content["unmatched_source"] == content["unmatched_target"] == []


def test_nothing_is_replaced_without_force(files: tuple[Path, Path, Path]) -> None:
    source, target, out = files
    run("--src", source, "--target", target, "--out", out)
    (out / "mine.json").write_text("reviewed for days")
    refused = run("--src", source, "--target", target, "--out", out)
    assert (refused.exit_code, (out / "mine.json").read_text()) == (6, "reviewed for days")
    assert "--force replaces it" in refused.stderr
    assert run("--src", source, "--target", target, "--out", out, "--force").exit_code == 0


def test_what_was_killed_between_the_spec_and_the_table_goes_on(files: tuple[Path, Path, Path]) -> None:
    source, target, out = files
    arguments = ["--src", source, "--target", target, "--out", out]
    run(*arguments)
    (out / "mine.json").unlink()
    assert run(*arguments).exit_code == 0
    (out / "mine.json").unlink()
    (out / "theirs-v2.json").write_text("reviewed for days")
    assert run(*arguments).exit_code == 6
    assert (out / "theirs-v2.json").read_text() == "reviewed for days"
    assert not (out / "mine.json").exists()


def test_a_target_may_be_a_spec_or_nothing_known(files: tuple[Path, Path, Path]) -> None:
    source, target, out = files
    unknown = run("--src", source, "--target", "no-such-model", "--out", out)
    assert unknown.exit_code == 4
    assert "known: glip" in unknown.stderr
    assert not out.exists()
    missing = run("--src", source, "--target", target.with_name("none.pth"), "--out", out)
    assert missing.exit_code == 3
    assert run("--src", source, "--target", target, "--out", out / "deep" / "er").exit_code == 6


def test_a_drafted_spec_is_never_called_like_a_built_in_one(files: tuple[Path, Path, Path]) -> None:
    source, target, out = files
    result = run("--src", source, "--target", target.rename(target.with_name("glip.safetensors")), "--out", out)
    assert result.exit_code == 0, result.output
    assert load_table(out / "mine.json").spec.name == "glip-spec"
    assert not (out / "glip.json").exists()


@pytest.mark.parametrize("target", ["glip", "checkpoint"])
def test_a_model_with_nothing_in_common_is_refused(target: str, files: tuple[Path, Path, Path]) -> None:
    _, known, out = files
    source = write(known.with_name("other.safetensors"), [Named("odd.weight", (17, 19))])
    result = run("--src", source, "--target", target if target == "glip" else known, "--out", out)
    assert result.exit_code == 4
    assert "no tensor of the source has a counterpart" in result.stderr
    assert not out.exists()


def test_a_spec_whose_option_has_no_tensor_is_refused(files: tuple[Path, Path, Path]) -> None:
    source, _, out = files
    spec = {"kind": "spec", "name": "own", "title": "t", "config": {"more": "m"}, "variants": {"v": {"title": "v"}}}
    spec["variants"]["v"]["config"] = {}
    spec |= {"options": {"more": {"tensor": "none", "axis": 0, "absent": 0}}}
    spec |= {"tensors": [{"name": "norm", "weight": [4]}]}
    path = source.with_name("own.json")
    path.write_text(json.dumps(spec))
    result = run("--src", source, "--target", path, "--out", out)
    assert result.exit_code == 4
    assert "/options/more: no tensor 'none' has an axis 0" in result.stderr


def test_without_scipy_the_message_says_what_to_install(
    files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    source, target, out = files
    result = run("--src", source, "--target", target, "--out", out)
    assert result.exit_code == 8
    assert "draft needs scipy, which is not installed: pip install 'converter[draft]'" in result.stderr
