"""scripts/benchmark_model.py on a small model: what it prints, what is missing, what fails, and growth."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts import benchmark_model, model_growth, model_ways, usual_ways
from scripts.model_parts import NOT_COUNTED, PARTS, Parts, needed, seed
from tests import ROOT
from tests.support.saved_glip import saved_glip
from tests.support.small_glip import small_glip

TEXT_PARTS = {"text_encoder", "fusion", "text_layer", "forward"}
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_glip(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def run(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the script on the small model; its exit code and its document."""
    monkeypatch.setattr(benchmark_model, "SHORT", 0)
    monkeypatch.setitem(model_ways.SIDES, "cpu", 64)

    def call(*options: str) -> tuple[int, dict[str, Any]]:
        written = tmp_path / "written.json"
        few = ["--size", "64x96", "--tokens", "3", "5", "--repeat", "1", "--output", str(written)]
        code = benchmark_model.main([str(weights), *few, *options])
        return code, json.loads(written.read_text(encoding="utf-8"))

    return call


def test_all_parts_in_both_formats(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run("--json")
    assert code == 0
    assert json.loads(capsys.readouterr().out) == document
    assert {"machine", "torch", "threads", "revision", "size", "model"} <= document["facts"].keys()
    for dtype in ("float32", "bfloat16"):
        rows = [row for row in document["rows"] if row["dtype"] == dtype]
        ours = {(row["part"], row["tokens"]): row for row in rows if row["way"] == "ours"}
        assert ours.keys() == {(p, t) for p in PARTS for t in ((3, 5) if p in TEXT_PARTS else (None,))}
        assert all(row["median"] > 0 and row["needed"] and row["done"] for row in ours.values())
        assert {row["part"] for row in rows if row["way"] == "usual" and row["median"]} == set(PARTS)
        assert document["peak"][dtype] > 0


def test_the_table_says_how_much_of_the_peak_each_part_reaches(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _, document = run("--dtype", "float32")
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("| forward | 5"))
    row = next(r for r in document["rows"] if (r["part"], r["way"], r["tokens"]) == ("forward", "ours", 5))
    share = row["needed"] / document["peak"]["float32"] / row["median"]
    assert line.endswith(f"| {share:.0%} |")
    assert "float32 (IEEE), peak" in said


def test_the_package_of_another_checkout_runs_in_turn(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run("--dtype", "float32", "--against", str(ROOT))
    before = [row for row in document["rows"] if row["way"] == "before"]
    assert code == 0
    assert len(before) == len([row for row in document["rows"] if row["way"] == "ours"])
    assert all(row["median"] for row in before)
    assert "before/ours" in capsys.readouterr().out


def test_a_missing_package_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("transformers", "torchvision"):
        monkeypatch.setitem(sys.modules, package, None)
    code, document = run("--dtype", "float32")
    assert code == 0
    absent = {row["part"]: row["absent"] for row in document["rows"] if row["absent"]}
    assert absent.keys() == {"backbone", "text_encoder", "dynamic_conv"}
    assert "transformers" in absent["backbone"]
    assert "grid_sample" in absent["dynamic_conv"]
    assert f"backbone, usual: {absent['backbone']}" in capsys.readouterr().out
    assert any(r["median"] for r in document["rows"] if (r["part"], r["way"]) == ("forward", "usual"))


def test_a_measurement_that_fails_is_told_and_the_others_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel for this\nand more")

    monkeypatch.setattr(usual_ways, "text_layer", broken)
    code, document = run("--dtype", "float32")
    failed = {(row["part"], row["way"]) for row in document["rows"] if row["error"]}
    assert code == 1
    assert failed == {("text_layer", "usual"), ("text_layer", "unpadded"), ("forward", "usual")}
    assert "text_layer, usual, float32: RuntimeError: no kernel for this\n" in capsys.readouterr().err
    assert all(row["median"] for row in document["rows"] if not row["error"] and not row["absent"])


def test_what_the_time_does_not_suffice_for_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run("--dtype", "float32", "--limit", "0.001")
    assert code == 0
    assert "forward, ours, 5 tokens, float32" in document["not_measured"]
    assert "not measured for want of time: backbone, ours, float32; " in capsys.readouterr().out


def test_the_compiled_forward_is_measured_beside_the_eager_one(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: model)
    asked = {"model": str(weights), "device": "cpu", "size": [64, 96], "batch": 1, "tokens": [3, 5], "threads": None}
    assert benchmark_model.main(["--compiled", json.dumps({**asked, "repeat": 2, "dtype": "float32"})]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["way"], row["tokens"], len(row["seconds"]) >= 2) for row in rows] == [
        ("eager", 5, True),
        ("compile", 5, True),
    ]


@pytest.mark.parametrize("message", ["", "Traceback:\nInductorError: no compiler"])
def test_a_compilation_that_takes_too_long_or_fails_is_told(
    message: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if not message:
            raise subprocess.TimeoutExpired(command, 1)
        return subprocess.CompletedProcess(command, 1, "", message)

    monkeypatch.setattr(benchmark_model, "revision", lambda _: "none")
    monkeypatch.setattr(benchmark_model.subprocess, "run", ended)
    code, document = run("--dtype", "float32", "--compile")
    assert code == (1 if message else 0)
    assert document["not_measured"] == ([] if message else ["forward, compile, 5 tokens, float32"])
    assert ("InductorError: no compiler" in capsys.readouterr().err) == bool(message)


@pytest.mark.parametrize("fusion", [True, False])
def test_no_part_does_less_than_is_needed(fusion: bool) -> None:
    """Both counts are made independently, from sizes and by running; they differ by padded windows alone."""
    size, tokens = (288, 384), 7  # whole windows of 3 x 3 at strides 4 to 32
    parts = Parts(small_glip(torch.float32, fusion=fusion), size, 2, [tokens])
    least = needed(parts.model.config, size, 2, tokens)
    assert least.keys() == set(parts.names())
    for part in parts.names():
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=NOT_COUNTED) as counter:
            parts.call(part, tokens)()
        assert 1 <= counter.get_total_flops() / least[part] < 1.02, part


@pytest.mark.parametrize("fusion", [True, False])
@torch.no_grad()
def test_what_a_cuda_graph_holds_is_the_forward(fusion: bool) -> None:
    parts = Parts(small_glip(torch.float32, fusion=fusion), (64, 96), 1, [7])
    for one, other in zip(parts.unchecked(7)(), parts.call("forward", 7)(), strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


def test_weights_from_a_seed_keep_activations_and_offsets_in_range() -> None:
    model = small_glip(torch.float32).requires_grad_(False)
    seed(model)
    levels, text, fused = Parts(model, (128, 192), 1, [8]).given[8]
    assert all(0.2 < float(x.std()) < 5 for x in (*levels[:3], text, *fused[:3]))
    offsets = model.head.blocks[1].dynamic_conv.offset(fused[0])[:, :18]
    assert 0.5 < float(offsets.std()) < 5  # cells


def test_growth(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(model_growth, "AREAS", (0.01, 0.04))
    monkeypatch.setattr(model_growth, "TOKENS", (2, 4))
    monkeypatch.setattr(model_growth, "BATCHES", ())
    monkeypatch.setattr(model_growth, "LARGEST", (64, 64))
    monkeypatch.setattr(model_growth, "in_a_process", model_growth.point)
    code, document = run("--dtype", "float32", "--growth", str(tmp_path / "growth.svg"))
    assert code == 0
    assert [row["series"] for row in document["rows"]] == ["area", "area", "tokens", "tokens", "largest", "largest"]
    assert all(row["seconds"] > 0 for row in document["rows"])
    assert "time against area: slope" in capsys.readouterr().out
    drawn = ElementTree.parse(tmp_path / "growth.svg").getroot()
    assert len([*drawn.iter("{http://www.w3.org/2000/svg}polyline")]) >= 2


def test_a_point_has_memory_of_its_own(weights: Path) -> None:
    asked = {"model": str(weights), "device": "cpu", "dtype": "float32", "repeat": 1, "threads": 1, "batch": 1}
    found = model_growth.in_a_process({**asked, "size": (768, 1024), "tokens": 4})
    first_map = 768 * 1024 / 16 * 8 * 4  # bytes
    assert first_map < found["memory"] < 50 * first_map


def test_a_slope_in_words() -> None:
    linear = [(x, 3.0 * x) for x in (1, 2, 4)]
    assert model_growth.fitted(linear) == pytest.approx(1)
    assert model_growth.word(1.0) == "in proportion"
    assert model_growth.word(0.4) == "less than in proportion"
    assert model_growth.word(1.4) == "more than in proportion"
