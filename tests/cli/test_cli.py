"""The command line as a user or a script meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from converter.cli import main
from tests.support.tiny import expected_target, tiny_weights, write_table


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.pth"
    torch.save({"model": tiny_weights(), "model_ema": tiny_weights(seed=1), "iteration": 7}, path)
    return path


def test_convert_says_what_it_did(source: Path, table: Path, tmp_path: Path) -> None:
    result = run("convert", "--src", source, "--dst", tmp_path / "out.safetensors", "--table", table)
    assert result.exit_code == 0, result.output
    assert "variant: tiny-2" in result.stdout
    assert "state dict: model; also there: model_ema (--root chooses)" in result.stdout
    assert "left out: 1 (training only)" in result.stdout
    assert result.stderr == ""
    assert set(load_file(tmp_path / "out.safetensors")) == set(expected_target(tiny_weights()))


def test_root_chooses(source: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    run("convert", "--src", source, "--dst", out, "--table", table, "--root", "model_ema")
    assert load_file(out)["scalar"] == expected_target(tiny_weights(seed=1))["scalar"]


def test_json_is_the_ledger(source: Path, table: Path, tmp_path: Path) -> None:
    result = run("convert", "--src", source, "--dst", tmp_path / "out", "--table", table, "--json")
    content = json.loads(result.stdout)
    assert content["files"] == ["model.safetensors"]
    ledger = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert {k: content[k] for k in ledger} == ledger


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_dry_run_writes_nothing(form: str, source: Path, table: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    flag = "--json" if form == "json" else "-v"
    result = run("convert", "--src", source, "--dst", tmp_path / "out", "--table", table, "--dry-run", flag)
    assert result.exit_code == 0, result.output
    assert sorted(tmp_path.iterdir()) == before
    if form == "json":
        steps = json.loads(result.stdout)["steps"]
        assert steps[-2]["ops"] == ["cast(float16 -> float32)"]
        assert all(step["lossless"] for step in steps)
    else:
        assert "module.merge.weight (4, 16) float32 -> merge.weight (4, 16) float32" in result.stdout
        assert "dry run: nothing was written" in result.stdout


def test_a_dry_run_lists_shapes_where_all_is_asked_for(source: Path, table: Path, tmp_path: Path) -> None:
    words = ["convert", "--src", source, "--dst", tmp_path / "out", "--table", table, "--dry-run"]
    short, long = (
        [line for line in run(*words, *more).stdout.splitlines() if "told apart" in line] for more in ([], ["-v"])
    )
    assert short == ["  same shape, told apart by values alone: 8 tensors of 3 shapes"]
    assert long[-1] == "  same shape, told apart by values alone: 4 tensors of [4, 2]"
    assert len(long) == 3


def test_a_dry_run_refuses_what_a_conversion_would(source: Path, table: Path, tmp_path: Path) -> None:
    torch.save({k: v for k, v in tiny_weights().items() if "merge" not in k}, source)
    result = run("convert", "--src", source, "--dst", tmp_path / "out", "--table", table, "--dry-run")
    assert result.exit_code == 5
    assert "'merge.weight' (4, 16) is missing" in result.stderr


def error_of(*arguments: object) -> tuple[int, dict[str, Any]]:
    result = run(*arguments, "--json")
    return result.exit_code, json.loads(result.stdout)["error"]


def test_exit_codes(source: Path, table: Path, tmp_path: Path) -> None:
    to = ["--dst", tmp_path / "out.safetensors"]
    assert run("convert", "--src", source).exit_code == 2
    assert run("convert", "--src", source, *to, "--max-shard-size", "many").exit_code == 2
    assert run("convert", "--src", source, *to, "--max-shard-size", "1GB").exit_code == 2
    (tmp_path / "empty.pth").write_bytes(b"")
    code, error = error_of("convert", "--src", tmp_path / "empty.pth", *to)
    assert (code, error["type"]) == (3, "NotACheckpointError")
    code, error = error_of("convert", "--src", tmp_path / "absent.pth", *to)
    assert (code, error["type"]) == (3, "NotACheckpointError")
    assert error_of("convert", "--src", source, *to, "--root", "nope")[0] == 3
    assert error_of("convert", "--src", source, *to, "--table", "nope")[0] == 4
    assert error_of("convert", "--src", source, *to, "--table", table, "--variant", "nope")[0] == 5
    code, error = error_of("convert", "--src", source, *to)
    assert (code, error["type"]) == (5, "PlanError")
    assert "no known format" in error["message"]
    code, error = error_of("convert", "--src", source, *to, "--from", "glip-official")
    assert (code, error["type"]) == (5, "PlanError")
    assert len(error["problems"]) > 500
    code, error = error_of("convert", "--src", source, "--dst", tmp_path / "no" / "out.safetensors", "--table", table)
    assert (code, error["type"]) == (6, "DestinationError")
    code, error = error_of("convert", "--src", source, "--dst", source, "--table", table, "--force")
    assert (code, error["type"]) == (6, "DestinationError")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_command_leaves_no_signal_handler_behind(source: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert CliRunner().invoke(main, ["inspect", str(source)]).exit_code == 0
    assert CliRunner().invoke(main, ["inspect", "absent"]).exit_code == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_long_refusal_is_cut_for_people(source: Path, tmp_path: Path) -> None:
    result = run("convert", "--src", source, "--dst", tmp_path / "out.safetensors", "--from", "glip-official")
    assert "more; -v lists all" in result.stderr
    assert len(result.stderr.splitlines()) < 50
    everything = run("convert", "--src", source, "--dst", tmp_path / "o.safetensors", "--from", "glip-official", "-v")
    assert len(everything.stderr.splitlines()) > 500


def test_nothing_is_overwritten_without_force(source: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    arguments = ["convert", "--src", source, "--dst", out, "--table", table]
    assert run(*arguments).exit_code == 6
    assert out.read_bytes() == b"precious"
    assert run(*arguments, "--force").exit_code == 0
    assert len(load_file(out)) > 5


def test_inspect_shows_everything(source: Path) -> None:
    content = json.loads(run("inspect", source, "--json").stdout)
    assert content["layout"] == "torch-zip"
    assert content["roots"] == {"model": len(tiny_weights()), "model_ema": len(tiny_weights())}
    assert content["fits"] == []
    assert "torch._utils._rebuild_tensor_v2" in content["globals"]
    shown = {t["name"]: (t["shape"], t["dtype"]) for t in content["tensors"]}
    assert shown == {k: (list(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in tiny_weights().items()}
    short = run("inspect", source).stdout
    text = run("inspect", source, "-v").stdout
    assert text.startswith(short.replace("; -v lists them", ""))
    assert "module.blocks.1.k.weight" in text
    assert "(a view)" in text
    assert "names (not imported): torch._utils._rebuild_tensor_v2" in text


def test_inspect_executes_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": tiny_weights(), "optimizer": Hostile()}, tmp_path / "h.pth")
    result = run("inspect", tmp_path / "h.pth")
    assert result.exit_code == 0
    assert "names (not imported): posix.mkdir" in result.stdout
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("key", ["module.blocks.2.k.bias", "blocks.2.k.bias", "layers.1.qkv.bias"])
def test_explain_names_rule_ops_and_shapes(key: str, source: Path, table: Path) -> None:
    text = run("explain", key, "--src", source, "--table", table).stdout
    assert "rule:     /rules/0" in text
    assert "source:   module.blocks.2.k.bias (4,) float32" in text
    assert "ops:      concat(axis=0, sizes=(4, 4, 4))" in text
    assert "target:   layers.1.qkv.bias (12,) float32" in text


def test_explain_says_why_a_key_is_left_out(source: Path, table: Path) -> None:
    content = json.loads(run("explain", "training.weight", "--src", source, "--table", table, "--json").stdout)
    assert content["rule"] == "/ignore/1"
    assert content["left_out"] == "training only; cannot be rebuilt"


def test_explain_offers_the_nearest(source: Path, table: Path) -> None:
    result = run("explain", "blocks.1.kk.bias", "--src", source, "--table", table)
    assert result.exit_code == 5
    assert "nearest: module.blocks.1.k.bias (4,)" in result.stderr


def test_explain_works_on_a_checkpoint_that_does_not_fit(source: Path, table: Path) -> None:
    torch.save(tiny_weights() | {"module.foo": torch.zeros(1)}, source)
    assert run("explain", "scalar", "--src", source, "--table", table).exit_code == 0
    assert "no rule matches 'module.foo' (1,)" in run("explain", "foo", "--src", source, "--table", table).stderr


def test_tables_and_lint(table: Path) -> None:
    (entry,) = (e for e in json.loads(run("tables", "--json").stdout)["formats"] if e["name"] == "glip-official")
    assert entry["variants"] == ["glip-t-a", "glip-t", "glip-t-b", "glip-t-c", "glip-l"]
    assert run("lint").exit_code == 0
    assert "tiny-table: 8 rules, sound" in run("lint", table).stdout
    assert json.loads(run("lint", table, "--json").stdout)["problems"] == []
    table.write_text(table.read_text().replace('"target": "scalar"', '"target": "scaler"'))
    result = run("lint", table, "--json")
    assert result.exit_code == 4
    assert any("scaler" in problem for problem in json.loads(result.stdout)["error"]["problems"])


def test_tables_lists_the_naming_of_the_target_and_its_parts() -> None:
    (entry,) = (e for e in json.loads(run("tables", "--json").stdout)["formats"] if e["name"] == "glip")
    assert entry["variants"][0] == "glip-t-a"
    assert entry["parts"]["text_encoder"][0] == "bert-base-uncased"
    shown = run("tables").stdout
    assert shown.startswith("glip: ")
    assert "a file may hold its part backbone alone" in shown


@pytest.mark.parametrize(
    ("option", "said", "meant"),
    [("--to", "mmdet_glip", "mmdet-glip"), ("--to", "glip-oficial", "glip-official"), ("--from", "Glip", "glip")],
)
def test_a_format_that_is_misspelt_is_guessed(option: str, said: str, meant: str, source: Path, tmp_path: Path) -> None:
    result = run("convert", "--src", source, "--dst", tmp_path / "o.safetensors", option, said)
    assert result.exit_code == 4
    assert f"no format is called {said!r}; known: glip, glip-official" in result.stderr
    assert f"Did you mean {meant!r}?" in result.stderr


COMMANDS = [[name] for name in sorted(main.commands)] + [[]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_an_example(command: list[str]) -> None:
    text = run(*command, "--help").stdout
    assert "Example" in text
    assert "converter " in text or "convert " in text


def modules_after(*arguments: object) -> set[str]:
    """Names of all modules that a command imports, in a process of its own."""
    code = (
        "import sys; from converter.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "print('|'.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split("|"))


def test_no_command_imports_torch(source: Path, table: Path, tmp_path: Path) -> None:
    for arguments in (
        ["convert", "--src", source, "--dst", tmp_path / "o.safetensors", "--table", table, "--dtype", "bfloat16"],
        ["inspect", source],
        ["explain", "scalar", "--src", source, "--table", table],
        ["tables"],
        ["lint"],
    ):
        assert not {"torch", "safetensors"} & modules_after(*arguments)


def test_what_is_known_and_here_needs_neither_the_schema_nor_the_hub(tmp_path: Path) -> None:
    torch.save({"head.weight": torch.ones(2)}, tmp_path / "a.pth")
    modules = modules_after("inspect", tmp_path / "a.pth")
    assert not {"jsonschema", "huggingface_hub", "tqdm", "socket", "importlib.metadata"} & modules


def test_help_imports_nothing_heavy() -> None:
    assert not {"torch", "numpy", "jsonschema", "tqdm", "pickle"} & modules_after("convert", "--help")


def test_the_list_of_commands_imports_none_of_them() -> None:
    modules = {name for name in modules_after("--help") if name.startswith("converter.")}
    assert modules == {f"converter.{name}" for name in ("cli", "cli.output", "cli.program", "display", "errors")}


def test_progress_goes_to_a_terminal_only(source: Path, table: Path, tmp_path: Path) -> None:
    import pty
    import termios

    arguments = [sys.executable, "-m", "converter", "convert", "--src", source, "--table", table, "--dst"]
    piped = subprocess.run([*arguments, tmp_path / "a.safetensors"], capture_output=True, check=True)
    assert piped.stderr == b""
    main_end, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    subprocess.run([*arguments, tmp_path / "b.safetensors"], stderr=terminal, stdout=subprocess.DEVNULL, check=True)
    assert b"b.safetensors" in os.read(main_end, 4096)
    os.close(terminal)
    os.close(main_end)
