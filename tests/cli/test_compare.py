"""`converter compare`: two files of outputs are the same, different, or cannot be judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from converter.cli import main

TOKENS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IDS = torch.arange(12).view(2, 6)


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def written(folder: Path, **outputs: torch.Tensor) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    save_file({name.replace("__", "."): value.contiguous() for name, value in outputs.items()}, path)
    return path


def judged(code: int, a: Path, b: Path, *options: object) -> Mapping[str, Any]:
    """The first output of the comparison, as JSON has it."""
    content = json.loads(run(a, b, *options, "--json", code=code).stdout)
    assert content["verdict"] == {0: "same", 1: "DIFFERENT", 8: "could not be judged"}[code]
    found: Mapping[str, Any] = content["outputs"][0]
    return found


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return written(tmp_path, tokens=TOKENS, input__ids=IDS)


def test_rounding_is_the_same(reference: Path, tmp_path: Path) -> None:
    found = judged(0, reference, written(tmp_path, tokens=TOKENS * (1 + 1e-13), input__ids=IDS))
    assert found["relative"] == pytest.approx(1e-13, rel=0.05)
    assert found["limit"] == 1e-10
    assert "inputs: 1 tensor, the same in both" in run(reference, tmp_path / "1.safetensors").stdout


def test_what_differs_is_told_with_its_place(reference: Path, tmp_path: Path) -> None:
    other = TOKENS.clone()
    other[1, 2, 3] += 0.5
    path = written(tmp_path, tokens=other, input__ids=IDS)
    found = judged(1, reference, path)
    assert (found["worst"], found["max_abs"]) == ([1, 2, 3], pytest.approx(0.5))
    assert found["relative"] == pytest.approx(0.5 / float(TOKENS.norm()))
    assert found["values"] == [TOKENS[1, 2, 3].item(), other[1, 2, 3].item()]
    said = run(reference, path, code=1).stdout
    assert said.startswith("DIFFERENT\n1 output: 0 within the limit, 1 beyond, 0 not judged\n")
    assert "largest difference 5.0e-01 at [1, 2, 3]" in said


def test_a_little_more_than_rounding_has_a_cause(reference: Path, tmp_path: Path) -> None:
    path = written(tmp_path, tokens=TOKENS * (1 + 1e-7), input__ids=IDS)
    assert "an epsilon, another GELU, or a part that computes in float32" in run(reference, path, code=1).stdout
    judged(0, reference, path, "--gate", "1e-6")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_the_same(value: float, reference: Path, tmp_path: Path) -> None:
    other = TOKENS.clone()
    other[0, 0, 0] = value
    path = written(tmp_path, tokens=other, input__ids=IDS)
    assert judged(1, reference, path, "--gate", "1e9")["unsound"] == 1
    if np.isnan(value):  # on both sides, too
        assert judged(1, path, written(tmp_path, tokens=other, input__ids=IDS))["unsound"] == 1


def test_a_mask_of_minus_infinity_is_compared_around(tmp_path: Path) -> None:
    masked = TOKENS.clone()
    masked[:, :, 4] = -torch.inf
    a, b = (written(tmp_path, tokens=masked + noise) for noise in (0, 1e-3))
    assert judged(1, a, b)["max_abs"] == pytest.approx(1e-3)
    judged(0, a, written(tmp_path, tokens=masked))
    judged(1, a, written(tmp_path, tokens=masked.nan_to_num(neginf=np.inf)))


def test_outputs_of_other_inputs_say_nothing(reference: Path, tmp_path: Path) -> None:
    done = run(reference, written(tmp_path, tokens=TOKENS, input__ids=IDS + 1), code=8)
    assert "'input.ids' of A is not what B got" in done.stderr
    # the argument may have another name there
    run(reference, written(tmp_path, tokens=TOKENS, input__text=IDS))
    assert "is not known" in run(reference, written(tmp_path, tokens=TOKENS)).stdout


def test_every_output_needs_its_counterpart_or_is_paired(reference: Path, tmp_path: Path) -> None:
    other = written(tmp_path, last_hidden_state=TOKENS, pooled=TOKENS[0].clone(), input__ids=IDS)
    done = run(reference, other, code=8)
    assert "only in A: 'tokens'" in done.stderr
    assert "only in B: 'last_hidden_state', 'pooled'" in done.stderr
    assert "not compared: pooled of B" in run(reference, other, "--pair", "tokens=last_hidden_state").stdout
    assert "it has 'last_hidden_state', 'pooled'" in run(reference, other, "--pair", "tokens=last", code=8).stderr
    run(reference, other, "--pair", "tokens", code=2)


def test_shapes_types_and_integers_have_to_be_equal(tmp_path: Path) -> None:
    a = written(tmp_path, labels=IDS)
    judged(0, a, written(tmp_path, labels=IDS.clone()))
    changed = IDS.clone()
    changed[1, 1] = 99
    found = judged(1, a, written(tmp_path, labels=changed))
    assert (found["differing"], found["worst"]) == (1, [1, 1])
    assert "(2, 6) in A and (6, 2) in B" in judged(1, a, written(tmp_path, labels=IDS.T))["problem"]
    assert "int64 in A and float64 in B" in judged(1, a, written(tmp_path, labels=IDS.double()))["problem"]


def test_in_float32_somebody_has_to_say_what_may_differ(tmp_path: Path) -> None:
    a, b = (written(tmp_path, tokens=TOKENS.to(dtype)) for dtype in (torch.float64, torch.float32))
    assert "--gate 1e-5" in judged(8, a, b)["why"]
    judged(0, a, b, "--gate", "1e-5")
    judged(0, a, written(tmp_path, tokens=TOKENS.bfloat16()), "--gate", "1e-2")


def test_a_capture_says_so_itself(tmp_path: Path) -> None:
    """Of its own model's error in float32."""
    facts = {"name": "a", "model": "m", "dtype": "float64", "errors": {"float32": {"tokens": 1e-7}}}
    path = tmp_path / "capture.safetensors"
    save_file({"tokens": TOKENS}, path, {"capture": json.dumps(facts)})
    assert judged(0, path, written(tmp_path, tokens=TOKENS.float()))["limit"] == pytest.approx(4e-7)
    judged(1, path, written(tmp_path, tokens=(TOKENS * (1 + 1e-5)).float()))
    save_file({"tokens": TOKENS}, path, {"capture": json.dumps(facts | {"compact": {}})})
    assert "is a compact capture" in run(path, tmp_path / "1.safetensors", code=8).stderr


def test_what_proves_nothing_is_not_called_the_same(reference: Path, tmp_path: Path) -> None:
    a, b = (written(tmp_path, tokens=torch.ones(3, 4, dtype=torch.float64)) for _ in range(2))
    assert "which proves nothing" in judged(8, a, b)["why"]
    assert "are one file" in run(reference, reference, code=8).stderr
    assert "holds no output" in run(reference, written(tmp_path, input__ids=IDS), code=8).stderr


def test_a_dict_of_torch_save_is_read_and_nothing_in_it_run(reference: Path, tmp_path: Path) -> None:
    torch.save({"tokens": TOKENS, "input.ids": IDS}, tmp_path / "outputs.pth")
    run(reference, tmp_path / "outputs.pth")
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    run(reference, tmp_path / "evil.pth", code=3)
    assert not Path("executed").exists()


def test_the_template_records_what_any_module_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "record.py").write_text(run("--template").stdout)
    space: dict[str, Any] = {}
    exec(compile((tmp_path / "record.py").read_text(), "record.py", "exec"), space)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = torch.nn.Linear(3, 4), torch.nn.Dropout()

        def forward(self, x: torch.Tensor, scale: float) -> dict[str, Any]:
            y = self.drop(self.fc(x)) * scale
            return {"logits": y, "states": (y[0], {"last": y[1]})}

    model = Model()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    path = tmp_path / "out.safetensors"
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    space["record"](Model(), tmp_path / "weights.safetensors", path, inputs={"x": x, "scale": 2.0})
    made = load_file(path)
    assert set(made) == {"input.x", "logits", "states.0", "states.1.last"}
    assert torch.equal(made["logits"], 2 * model.double().fc(x.double()))
    torch.save(Model().state_dict() | {"more": x}, tmp_path / "wrong.pth")
    with pytest.raises(RuntimeError, match="more"):
        space["record"](Model(), tmp_path / "wrong.pth", path, inputs={"x": x, "scale": 2.0})


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e200, 1.7e308])
def test_numbers_whose_squares_no_float_holds(size: float, tmp_path: Path) -> None:
    values = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64) * size
    same, other = written(tmp_path, tokens=values), written(tmp_path, tokens=values * (1 + 1e-13))
    assert judged(0, same, other)["relative"] < 1e-11
    for factor in (0.9, -1.0):
        found = judged(1, same, written(tmp_path, tokens=values * factor))
        assert found["relative"] == pytest.approx(1 - factor, rel=1e-6)


def test_inputs_that_would_take_hours_to_pair(tmp_path: Path) -> None:
    files = [written(tmp_path, tokens=TOKENS, **{f"input__{x}{n}": IDS + n for n in range(200)}) for x in "ab"]
    assert "200 inputs of A have other names in B" in run(*files, code=8).output
    run(files[0], written(tmp_path, tokens=TOKENS, **{f"input__a{n}": IDS + n for n in range(200)}))
