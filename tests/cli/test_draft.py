"""`converter draft` as it is run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from converter.cli import main
from converter.mapping.draft import Named
from converter.mapping.lint import lint
from converter.mapping.load import load_table
from tests.support.hub.server import HubServer
from tests.support.publishing import REPO


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
    assert "3 rules, 2 sure; 1 doubt\n" in result.stdout
    assert f"next: look at each, then converter settle {out / 'mine.json'} keep" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ["mine.json", "theirs-v2.json"]
    assert lint(load_table(out / "mine.json"))[0].startswith("/rules/2 is in doubt")


def test_json_says_all(files: tuple[Path, Path, Path]) -> None:
    source, target, out = files
    content = json.loads(run("--src", source, "--target", target, "--out", out, "--name", "other", "--json").stdout)
    assert (content["table"], content["rules"], content["sure"]) == (str(out / "other.json"), 3, 2)
    assert (content["spec"], content["squares_as_stored"]) == (str(out / "theirs-v2.json"), [])
    assert content["doubtful"][0]["rule"] == "/rules/2"
    assert content["unmatched_source"] == content["unmatched_target"] == []


def test_a_copy_is_told_by_its_numbers(files: tuple[Path, Path, Path]) -> None:
    source, target, out = files
    norm = np.arange(4, dtype="float32")
    save_file({**load_file(source), "norm.weight": norm, "ema.norm.weight": norm, "other.weight": norm + 1}, source)
    said = run("--src", source, "--target", target, "--out", out).stdout
    assert "1 tensor with the numbers of another, as its copies in 'ignore'\n" in said
    assert "1 tensor of the source without a counterpart, in 'ignore':\n  other.weight (4,)\n" in said
    content = json.loads(run("--src", source, "--target", target, "--out", out, "--force", "--json").stdout)
    assert content["copies"] == {"ema.norm.weight": "norm.weight"}


def test_heads_that_are_one_come_back_under_all_their_names(tmp_path: Path) -> None:
    """draft, settle, convert, back: the file is as it was, its wrappers too."""
    weight, bias = (np.random.default_rng(0).random(shape).astype("float32") for shape in ((5, 4), (5,)))
    heads = {f"heads.{i}.fc.{p}": value for i in range(3) for p, value in (("weight", weight), ("bias", bias))}
    wrapped = {f"module.{name}": torch.from_numpy(value) for name, value in heads.items()}
    torch.save({"model": wrapped}, source := tmp_path / "mine.pth")
    save_file({"head.fc.weight": weight, "head.fc.bias": bias}, target := tmp_path / "theirs.safetensors")
    out, there, back = tmp_path / "out", tmp_path / "there.safetensors", tmp_path / "back.pth"
    assert run("--src", source, "--target", target, "--out", out).exit_code == 0
    table = out / "mine.json"
    for command in (
        ["settle", table, "keep", *(f"/ignore/{i}" for i in range(2))],
        ["lint", table],
        ["convert", "--src", source, "--from", table, "--dst", there],
        ["convert", "--src", there, "--to", table, "--dst", back],
    ):
        done = CliRunner().invoke(main, [*map(str, command)])
        assert done.exit_code == 0, done.output
    assert sorted(load_file(there)) == ["head.fc.bias", "head.fc.weight"]
    written = torch.load(back)["model"]
    assert {name: value.numpy().tobytes() for name, value in written.items()} == {
        f"module.{name}": value.tobytes() for name, value in heads.items()
    }


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


def test_a_doubt_is_counted_once(files: tuple[Path, Path, Path]) -> None:
    """By the terminal, by JSON, by the table itself, by what lists doubts, and by what refuses them."""
    source, target, out = files
    more = load_file(source) | {"teacher.weight": np.zeros((5, 6), "float32")}
    save_file(more, source)
    said = run("--src", source, "--target", target, "--out", out).stdout
    content = json.loads(run("--src", source, "--target", target, "--out", out, "--force", "--json").stdout)
    table = out / "mine.json"
    listed = CliRunner().invoke(main, ["settle", str(table), "--json"])
    refused = CliRunner().invoke(main, ["convert", "--src", str(source), "--from", str(table), "--dst", "x.pth"])
    linted = CliRunner().invoke(main, ["lint", str(table)])
    assert "3 rules, 2 sure; 2 doubts\n" in said
    assert [row["rule"] for row in content["doubtful"]] == ["/rules/2", "/ignore/0"]
    assert content["doubts"] == json.loads(listed.stdout)["doubts"] == table.read_text().count('"doubt"') == 2
    assert (listed.exit_code, refused.exit_code, linted.exit_code) == (4, 4, 4)
    for done in (refused, linted):
        assert f"{table}: 2 doubts to settle first: 'converter settle" in done.stderr
        assert done.stderr.count("is in doubt") == 2


def test_a_second_source_takes_the_spec_that_is_there(files: tuple[Path, Path, Path]) -> None:
    """Whatever the file of the target is called by then, and however the spec is laid out."""
    source, target, out = files
    run("--src", source, "--target", target, "--out", out)
    spec = out / "theirs-v2.json"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"title": "Theirs, looked at"}, indent=1))
    before = spec.read_bytes()
    second = source.rename(source.with_name("second.safetensors"))
    renamed = target.with_name("other name.safetensors")
    save_file(load_file(target), renamed)
    for again in (target, renamed, spec):
        done = run("--src", second, "--target", again, "--out", out, "--force")
        assert done.exit_code == 0, done.output
        assert f"spec of the target: {spec}, there already" in done.stdout
        assert sorted(path.name for path in out.iterdir()) == ["mine.json", "second.json", "theirs-v2.json"]
        assert load_table(out / "second.json").spec.name == "theirs-v2"
    assert spec.read_bytes() == before


def test_another_target_of_the_same_name_is_told(files: tuple[Path, Path, Path]) -> None:
    source, target, out = files
    run("--src", source, "--target", target, "--out", out)
    save_file({**load_file(target), "more.weight": np.zeros((5,), "float32")}, target)
    done = run("--src", source, "--target", target, "--out", out, "--name", "second")
    assert done.exit_code == 6
    assert f"{out / 'theirs-v2.json'} is a spec of another target" in done.stderr
    assert not (out / "second.json").exists()


def test_a_target_may_be_a_format_of_a_part(files: tuple[Path, Path, Path]) -> None:
    source, _, out = files
    bert = load_table("transformers-bert")
    tensors = bert.spec.tensors(bert.spec.variants[0].config)
    write(source, [Named(f"text.{name}", shape) for name, shape in tensors.items()])
    done = run("--src", source, "--target", "transformers-bert", "--out", out)
    assert done.exit_code == 0, done.output
    assert "transformers-bert is a format of glip: the table is to glip" in done.stderr
    table = load_table(out / "mine.json")
    assert (table.spec.label, [path.name for path in out.iterdir()]) == (bert.spec.label, ["mine.json"])
    assert len(table.doubts()) < len(table.pointers("rules"))


def test_a_target_may_be_on_the_hub(
    files: tuple[Path, Path, Path], hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, target, out = files
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.storage.create(REPO, False, "somebody")
    hub.push(REPO, {"model.safetensors": target.read_bytes(), "config.json": b"{}"})
    for reference in (f"hf://{REPO}", f"hf://{REPO}/model.safetensors"):
        done = run("--src", source, "--target", reference, "--out", out, "--force")
        assert done.exit_code == 0, done.output
        assert sorted(path.name for path in out.iterdir()) == [f"{REPO.split('/')[1]}.json", "mine.json"]


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
