"""capture, parity, certify and verify as a user or a CI job meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from converter.cli import main
from converter.writing.ledger import UNKNOWN_TABLE
from tests.support.saved_glip import save, saved_glip
from tests.support.small_capture import write
from tests.support.small_folder import small_folder
from tests.support.small_glip import small_glip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_same_model_passes(dtype: str, weights: Path, reference: Path) -> None:
    result = run("parity", weights, "--reference", reference, "--dtype", dtype, "--mode", "propagated")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert "pass" in result.stdout


def test_another_model_fails_and_its_block_is_named(wrong: Path, reference: Path) -> None:
    result = run("parity", wrong, "--reference", reference)
    assert result.exit_code == 1
    assert "text_encoder.layers.1" in result.stdout
    assert "FAIL" in result.stdout
    assert re.search(r"the worst 20 \(--rows \d+ shows all\)", result.stdout)
    assert "shows all" not in run("parity", wrong, "--reference", reference, "-v").stdout  # no list is cut short


def test_a_format_that_cannot_be_judged_is_no_pass(weights: Path, reference: Path) -> None:
    result = run("parity", weights, "--reference", reference, "--dtype", "float16", "--mode", "propagated")
    assert result.exit_code == 8
    assert "could not be judged" in result.stdout


def test_a_looser_gate_is_said(wrong: Path, reference: Path) -> None:
    result = run("parity", wrong, "--reference", reference, "--gate", "1e6", "--mode", "injected")
    assert result.exit_code == 0
    assert "LOOSER" in result.stdout


def test_every_form_of_the_report(wrong: Path, reference: Path, tmp_path: Path) -> None:
    page, xml = tmp_path / "report.html", tmp_path / "parity.xml"
    result = run("parity", wrong, "--reference", reference, "--json", "--html", page, "--junit", xml)
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["passed"] is False
    assert set(content["sha256"]) == {str(wrong), str(reference)}
    assert ET.parse(xml).getroot().findall(".//failure")
    assert "text_encoder.layers.1" in page.read_text()


def test_mutations_are_scored(weights: Path, reference: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    result = run("parity", weights, "--reference", reference, "--mutate", 25, "--summary", summary)
    assert result.exit_code == 0
    assert "mutations: 2" in result.stdout
    assert "no input can show it" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("mutations: ")]
    assert "that no input can show do not count" in line  # why the score is not simply their share
    assert line.removeprefix("mutations: ") in summary.read_text()


def test_a_comparison_that_fails_is_reported_and_not_mutated(wrong: Path, reference: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run("parity", wrong, "--reference", reference, "--mutate", 5, "--html", page)
    assert (result.exit_code, "no mutations were made" in result.stdout, page.exists()) == (1, True, True)


def test_an_input_is_never_overwritten(weights: Path, reference: Path) -> None:
    before = reference.read_bytes()
    for output in (weights, reference):
        assert run("parity", weights, "--reference", reference, "--html", output).exit_code == 6
        assert run("parity", weights, "--reference", reference, "--junit", output).exit_code == 6
    assert reference.read_bytes() == before


def test_mutations_in_bfloat16(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "here.safetensors"
    run("capture", weights, "--dst", out, "--errors", "bfloat16")
    options = ("--dtype", "bfloat16", "--mode", "injected", "--mutate", 30)
    assert run("parity", weights, "--reference", out, *options).exit_code == 0


def test_what_cannot_be_judged_is_not_certified(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "here.safetensors"
    run("capture", weights, "--dst", out, "--errors", "")
    result = run("certify", weights, "--reference", out, "--json")
    assert (result.exit_code, json.loads(result.stdout)["passed"]) == (8, False)


def test_what_is_missing_is_named_and_nothing_is_lost(weights: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"precious")
    missing = tmp_path / "absent.safetensors"
    for code, arguments in (
        (3, ("capture", missing, "--dst", there, "--force")),
        (3, ("capture", weights, "--inputs", missing, "--dst", there, "--force")),
        (3, ("parity", missing, "--reference", weights)),
        (3, ("certify", missing, "--reference", weights)),
        (3, ("verify", missing)),
    ):
        result = run(*arguments)
        assert (result.exit_code, "absent.safetensors" in result.stderr) == (code, True), result.output
    assert there.read_bytes() == b"precious"


def test_a_capture_does_not_replace_the_weights_of_a_folder(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "small")
    before = (folder / "model.safetensors").read_bytes()
    result = run("capture", folder, "--dst", folder / "model.safetensors", "--force")
    assert (result.exit_code, "is the source itself" in result.stderr) == (6, True)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_capture_goes_only_where_it_can(weights: Path, tmp_path: Path) -> None:
    assert run("capture", weights, "--dst", tmp_path / "missing" / "x.safetensors").exit_code == 6


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_number_of_mutations_that_is_none(value: str, weights: Path, reference: Path) -> None:
    assert run("parity", weights, "--reference", reference, "--mutate", value).exit_code == 2


def test_what_cannot_be_compared_is_said_by_exit_codes(weights: Path, reference: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(reference.read_bytes()[:-1])
    codes = {
        run("parity", weights, "--reference", tmp_path / "missing.safetensors").exit_code: "missing",
        run("parity", weights, "--reference", tmp_path / "broken.safetensors").exit_code: "broken",
    }
    assert list(codes) == [3]
    assert run("parity", weights, "--reference", weights).exit_code == 8  # weights are not a capture
    assert run("parity", tmp_path / "none", "--reference", reference).exit_code == 3
    for device in ("tpu", "meta", "cuda:99", ""):
        result = run("parity", weights, "--reference", reference, "--device", device)
        assert (result.exit_code, "choose" in result.stderr) == (8, True), device


def test_a_capture_of_the_model_is_one_that_it_passes(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "here.safetensors"
    result = run("capture", weights, "--dst", out, "--errors", "float32,bfloat16")
    assert result.exit_code == 0, result.output
    for dtype in ("float64", "float32"):
        assert run("parity", weights, "--reference", out, "--dtype", dtype).exit_code == 0
    assert run("parity", weights, "--reference", out, "--dtype", "bfloat16", "--mode", "injected").exit_code == 0
    assert run("capture", weights, "--dst", out).exit_code == 6
    whole = out.stat().st_size
    assert run("capture", weights, "--dst", out, "--force", "--compact").exit_code == 0
    assert out.stat().st_size < whole / 3


def test_a_capture_may_take_its_inputs_from_another(weights: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.safetensors"
    assert run("capture", weights, "--dst", out, "--inputs", reference, "--json").exit_code == 0
    from safetensors.torch import load_file

    ours, theirs = load_file(out), load_file(reference)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_certify_and_verify(reference: Path, tmp_path: Path) -> None:
    weights = saved_glip(tmp_path)
    assert run("verify", weights).exit_code == 8  # no certificate yet
    result = run("certify", weights, "--reference", reference, "--mutate", 15)
    assert result.exit_code == 0, result.output
    assert "small.parity.json" in result.stdout
    assert f"\n{UNKNOWN_TABLE}\n" in result.stdout  # they were made by hand
    assert run("certify", weights, "--reference", reference).exit_code == 6  # there is one
    result = run("verify", weights, "--json")
    assert (result.exit_code, json.loads(result.stdout)["verdict"]) == (0, "pass")
    assert json.loads(result.stdout)["unknown_table"] is True
    assert f"\n{UNKNOWN_TABLE}\n" in run("verify", weights).stdout
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = run("verify", weights)
    assert (result.exit_code, "changed: " in result.stdout) == (1, True)
    other = small_glip()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.neg_()
    save(other, weights)
    assert re.search(r"\.\.\. and \d+ more; -v lists all", run("verify", weights).stdout)
    assert " more; " not in run("verify", weights, "-v").stdout


def test_several_captures_make_one_certificate(reference: Path, tmp_path: Path) -> None:
    weights = saved_glip(tmp_path)
    run("capture", weights, "--dst", tmp_path / "here.safetensors", "--errors", "float32")
    more = ("--reference", tmp_path / "here.safetensors", "--mutate", 0)
    result = run("certify", weights, "--reference", reference, *more)
    assert result.exit_code == 0, result.output
    content = json.loads(weights.with_suffix(".parity.json").read_text())
    names = [capture["name"] for capture in content["captures"]]
    assert names == ["small", "here"]
    dtypes = ("float64", "float32")
    assert [(r["capture"], r["dtype"]) for r in content["runs"]] == [(n, d) for n in names for d in dtypes]
    assert run("verify", weights).exit_code == 0


def test_captures_of_one_name_are_refused_before_anything_is_compared(
    wrong: Path, reference: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.safetensors")
    result = run("certify", wrong, "--reference", reference, "--reference", other)
    assert (result.exit_code, f"{reference} and {other} are both captures" in result.stderr) == (8, True), result.output
    assert "another --name" in result.stderr


def test_what_no_input_can_show_is_said_beside_the_score(reference: Path, tmp_path: Path) -> None:
    result = run("certify", saved_glip(tmp_path), "--reference", reference, "--mutate", 20)
    why = r"mutations: (\d+) of 20 noticed; (\d+) that no input can show do not count: score [01]\.\d{4} "
    found = re.search(why + r"\((\d+) of (\d+)\)", result.stdout)
    assert found is not None, result.stdout
    caught, never, counted, of = map(int, found.groups())
    assert (caught, 20 - never) == (counted, of)


def test_what_fails_is_not_certified(wrong: Path, reference: Path) -> None:
    result = run("certify", wrong, "--reference", reference)
    assert (result.exit_code, result.stdout) == (1, "")
    _, *lines = result.stderr.splitlines()  # the first says what it does
    assert lines[0] == "not certified: 2 of 2 comparisons did not pass: small in float64, small in float32"
    labels = ["first difference", "record", "weights", "next"]
    assert [next(x for x in labels if line.startswith(f"  {x} ")) for line in lines[1:]] == labels
    assert f"converter parity {wrong} --reference {reference}" in lines[-1]
    assert not wrong.with_suffix(".parity.json").exists()


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from converter.cli import main\n"
        "for name in ('parity', 'capture', 'certify', 'verify'):\n"
        "    result = CliRunner().invoke(main, [name, '--help'])\n"
        "    assert result.exit_code == 0 and 'Example' in result.output\n"
        "assert not {'torch', 'numpy', 'jsonschema'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("module", "code", "said"), [("torch", 8, "pip install 'converter[model]'"), ("safetensors", 0, "")]
)
def test_without_torch_the_next_step_is_said(module: str, code: int, said: str, weights: Path, reference: Path) -> None:
    """The package of the format's name is not needed: this one reads and writes it."""
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from converter.cli import main; main(['parity', *sys.argv[1:]])"
    )  # fmt: skip
    command = [sys.executable, "-c", program, str(weights), "--reference", str(reference)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
